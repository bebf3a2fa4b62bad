"""Writes unicode_tables.c: what each code point is to Hugging Face `tokenizers`, learnt from its behaviour.

Its parts carry different Unicode versions (regular expressions, Rust's char, the crates unicode_categories and
unicode-normalization-alignments), so no single Unicode database gives its results. Every table is therefore read off
by feeding all 1,112,064 scalar values through the library itself.

    python csrc/tokenizer/make_unicode_tables.py [--check]
"""
from __future__ import annotations

import itertools
import struct
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models
from tokenizers import normalizers as N
from tokenizers import pre_tokenizers as P

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
ALL = "".join(map(chr, CODE_POINTS))
BLOCK = 256
FLAGS = ["L", "N", "S", "WHITE_SPACE", "NUMERIC", "PUNCT", "CONTROL", "MN", "CJK", "WORD", "SECOND", "NFD_NO", "NFC_NO", "MARK", "UPPER", "LOWER"]
GRAPHEME = ["CONTROL", "JOIN", "EXTEND", "PREPEND", "PICT", "CONSONANT", "LINKER", "INCB_EXTEND", "BEFORE_L", "BEFORE_V", "BEFORE_T", "AFTER_L", "AFTER_V", "AFTER_T"]
HANGUL = range(0xAC00, 0xAC00 + 11172)


def matched(pattern: str) -> set[int]:
    """Code points that a one-character pattern of the regular expression engine (Oniguruma) matches."""
    kept = P.Split(Regex(pattern + "+"), "removed").pre_tokenize_str(ALL)
    rest = {i for _, (begin, end) in kept for i in range(begin, end)}
    return {c for i, c in enumerate(CODE_POINTS) if i not in rest}


def white_space() -> set[int]:
    kept = P.WhitespaceSplit().pre_tokenize_str(ALL)
    rest = {i for _, (begin, end) in kept for i in range(begin, end)}
    return {c for i, c in enumerate(CODE_POINTS) if i not in rest}


def numeric() -> set[int]:
    """Digits splits where is_numeric changes, and U+0000 is none."""
    out: set[int] = set()
    for k, (_, (begin, end)) in enumerate(P.Digits(individual_digits=False).pre_tokenize_str(ALL)):
        if k % 2:
            out.update(CODE_POINTS[begin:end])
    return out


def punctuation(space: set[int]) -> set[int]:
    """BertPreTokenizer cuts `aca` in three."""
    text = " ".join(f"a{chr(c)}a" for c in CODE_POINTS)
    cuts = {begin for _, (begin, _) in P.BertPreTokenizer().pre_tokenize_str(text)}
    return {c for i, c in enumerate(CODE_POINTS) if 4 * i + 2 in cuts and c not in space}


def bert(**on: bool) -> N.BertNormalizer:
    return N.BertNormalizer(**{"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False, **on})


def word_and_check_space(space: set[int]) -> set[int]:
    """The regular expressions behind AddedToken: \\w for single_word, \\s for rstrip and lstrip."""
    def starts(text: str, **options: bool) -> set[int]:
        tok = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        tok.add_tokens([AddedToken("\x01", normalized=False, **options)])
        found = set()
        for first in range(0, len(CODE_POINTS), 50000):
            part = CODE_POINTS[first:first + 50000]
            for c, e in zip(part, tok.encode_batch([text.replace("c", chr(c)) for c in part])):
                if any(i == 1 and end - begin == 1 for i, (begin, end) in zip(e.ids, e.offsets)):
                    found.add(c)
        return found
    every = set(CODE_POINTS)
    after, before = starts("\x01c?", single_word=True), starts("?c\x01", single_word=True)
    assert after - {1} == before - {1}
    assert every - starts("\x01c?", rstrip=True) == space and every - starts("?c\x01", lstrip=True) == space
    return every - after


def combining_classes() -> dict[int, int]:
    """Canonical ordering swaps two marks when the first has the higher class, and never a starter. Each class is known by its position among probes."""
    nfd = N.NFD()
    low, high = "\u0334", "\u0345"       # the lowest and the highest class

    def swaps(a: str, b: str) -> bool:
        return nfd.normalize_str("x" + a + b) == "x" + b + a

    probes = {1: low, 240: high}
    for c in CODE_POINTS:
        s, ccc = chr(c), unicodedata.combining(chr(c))
        if ccc and ccc not in probes and nfd.normalize_str(s) == s and swaps(high, s) and swaps(s, low):
            probes[ccc] = s

    out = {}
    for c in CODE_POINTS:
        s = chr(c)
        if s == high or s == low or nfd.normalize_str(s) != s or not (swaps(high, s) or swaps(s, low)):
            continue
        below = [v for v, p in sorted(probes.items()) if p != s and swaps(s, p)]      # classes below ours
        above = [v for v, p in sorted(probes.items()) if p != s and swaps(p, s)]
        between = [v for v in sorted(probes) if (not below or v > below[-1]) and (not above or v < above[0])]
        assert len(between) == 1, (hex(c), below, above)
        out[c] = between[0]
    out[ord(low)], out[ord(high)] = 1, 240
    return out


def normal_forms() -> tuple[dict[int, str], dict[tuple[int, int], int]]:
    nfd, nfc = N.NFD(), N.NFC()
    decompositions, pairs = {}, {}
    for c in CODE_POINTS:
        full = nfd.normalize_str(chr(c))
        if full == chr(c):
            continue
        if c in HANGUL:
            assert full == unicodedata.normalize("NFD", chr(c)) and nfc.normalize_str(full) == chr(c)
            continue
        decompositions[c] = full
        if nfc.normalize_str(full) == chr(c):
            first, second = nfc.normalize_str(full[:-1]), full[-1]
            assert len(first) == 1, hex(c)
            pairs[ord(first), ord(second)] = c
    return decompositions, pairs


def lowercase() -> dict[int, str]:
    lower, of_bert = N.Lowercase(), bert(lowercase=True)
    out = {}
    for c in CODE_POINTS:
        s = lower.normalize_str(chr(c))
        assert s == of_bert.normalize_str(chr(c))
        if s != chr(c):
            out[c] = s
    assert [c for c in out if len(out[c]) > 1] == [0x130] and out[0x130] == "i\u0307"    # the one that grows: see ha_uc_lower
    return {c: s for c, s in out.items() if len(s) == 1}


def compatibility_forms(decompositions: dict[int, str]) -> dict[int, str]:
    """Full compatibility decompositions where they differ from the canonical ones."""
    nfkd = N.NFKD()
    out = {}
    for c in CODE_POINTS:
        s = nfkd.normalize_str(chr(c))
        if c in HANGUL:
            assert s == unicodedata.normalize("NFD", chr(c))
        elif s != decompositions.get(c, chr(c)):
            out[c] = s
    return out


def one_byte_charsmap(keys: Iterable[int], value: str) -> bytes:
    """A charsmap (sentencepiece's Darts double array, then its texts) that turns every character whose first byte is a key into `value`."""
    units = [0] * 1024
    units[0] = 256 << 10
    for byte in keys:
        units[256 ^ byte] = byte | 1 << 8 | ((256 ^ byte) ^ (512 + byte)) << 10
        units[512 + byte] = 1 << 31
    return struct.pack("<1025I", 4096, *units) + value.encode() + b"\0"


def graphemes() -> dict[str, set[int]]:
    """What unicode-segmentation's tables say, as far as the Precompiled normalizer shows it: that looks up a grapheme cluster of fewer than 6 bytes as one
    unit (and drops all of it but the matched prefix), and a longer one by its characters. A charsmap that turns everything into `z` counts units. Whether
    two regional indicators join does not show: either way they are 4 bytes each and looked up one by one."""
    normalizer = N.Precompiled(one_byte_charsmap([ord("a"), *range(0xC2, 0xF5)], "z"))
    rest = [c for c in CODE_POINTS if c >= 0x80]
    size = {c: len(chr(c).encode()) for c in rest}

    def where(pattern: str, n_units: int) -> set[int]:
        """The code points that make `n_units` units of the pattern in which they stand for @."""
        lines = normalizer.normalize_str("\n".join(pattern.replace("@", chr(c)) for c in rest)).split("\n")
        return {c for c, line in zip(rest, lines, strict=True) if line.count("z") == n_units}

    acute, zwj, copyright, ka, virama, prefix = "\u0301", "\u200d", "\u00a9", "\u0915", "\u094d", "\u0600"
    out = {"JOIN": where("a@", 1), "PREPEND": where("@a", 1)}
    join, prepend = out["JOIN"], out["PREPEND"]
    control = {c for c in where("@" + acute, 2) if size[c] < 4} | {c for c in where("@" + acute + "\u0302", 2) if size[c] == 4}
    out["CONTROL"] = control | set(range(0x20)) | {0x7F}
    out["EXTEND"] = where(copyright + "@" + zwj + copyright + acute, 5) & join
    out["PICT"] = where(copyright + zwj + "@" + acute, 4) - join
    assert out["PICT"] == where("@" + zwj + copyright + acute, 4) - join
    out["CONSONANT"] = where("@" + virama + ka + acute, 4)
    assert {c for c in out["CONSONANT"] if size[c] < 4} == {c for c in where(ka + virama + "@" + acute, 4) if size[c] < 4} - join - control
    out["LINKER"] = where(ka + "@" + ka + acute, 4) - prepend
    out["INCB_EXTEND"] = where(ka + virama + "@" + ka + acute, 5) - prepend - out["LINKER"]
    three = {c for c in rest if size[c] == 3} - control - prepend - join
    before = {k: where(prefix + "@" + y, 3) & three for k, y in (("L", "\u1100"), ("V", "\u1161"), ("T", "\u11a8"))}
    after = {k: where(prefix + y + "@", 3) & three for k, y in (("L", "\u1100"), ("V", "\u1161"), ("T", "\u11a8"))}
    out["BEFORE_L"], out["BEFORE_V"], out["BEFORE_T"] = before["L"], before["V"] & before["T"], before["T"] - before["V"]
    out["AFTER_L"], out["AFTER_V"], out["AFTER_T"] = after["L"] - after["V"], after["L"] & after["V"], after["T"]
    assert before["V"] - before["T"] == before["L"] and after["V"] & after["T"] == after["T"] and before["L"] and out["AFTER_V"]
    return out


def two_level(values: list[int]) -> tuple[list[int], list[int]]:
    """(block of each 256 code points, blocks): equal blocks once."""
    seen: dict[tuple[int, ...], int] = {}
    index = [seen.setdefault(tuple(values[i:i + BLOCK]), len(seen)) for i in range(0, 0x110000, BLOCK)]
    assert len(seen) < 256
    return index, list(itertools.chain.from_iterable(seen))


def array(kind: str, name: str, values: list[int], per_line: int = 32) -> str:
    lines = [",".join(map(str, values[i:i + per_line])) for i in range(0, len(values), per_line)]
    return f"const {kind} {name}[{len(values)}] = {{\n" + ",\n".join(lines) + "\n};\n"


def generate() -> str:
    space = white_space()
    sets = {"L": matched(r"\p{L}"), "N": matched(r"\p{N}"), "S": matched(r"\s"), "WHITE_SPACE": space,
            "NUMERIC": numeric(), "PUNCT": punctuation(space), "WORD": word_and_check_space(space),
            "UPPER": matched(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"), "LOWER": matched(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")}
    clean, cjk, strip, nfd = bert(clean_text=True), bert(handle_chinese_chars=True), bert(strip_accents=True), N.NFD()
    sets["CONTROL"] = {c for c in CODE_POINTS if clean.normalize_str(chr(c)) == ""}
    assert {c for c in CODE_POINTS if clean.normalize_str(chr(c)) == " "} == space - sets["CONTROL"]
    sets["CJK"] = {c for c in CODE_POINTS if cjk.normalize_str(chr(c)) == f" {chr(c)} "}
    sets["MN"] = {c for c in CODE_POINTS if nfd.normalize_str(chr(c)) == chr(c) and strip.normalize_str(chr(c)) == ""}
    decompositions, pairs = normal_forms()
    sets["SECOND"] = {b for _, b in pairs} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    sets["NFD_NO"] = {*decompositions, *HANGUL}
    sets["NFC_NO"] = set(decompositions) - set(pairs.values())
    sets["MARK"] = {c for c in CODE_POINTS if N.StripAccents().normalize_str(chr(c)) == ""}
    ccc = combining_classes()

    masks = [0] * 0x110000
    for bit, name in enumerate(FLAGS):
        for c in sets[name]:
            masks[c] |= 1 << bit
    classes: dict[tuple[int, int], int] = {}
    class_of = [classes.setdefault((masks[c], ccc.get(c, 0)), len(classes)) for c in range(0x110000)]
    deltas: dict[int, int] = {0: 0}
    lower = lowercase()
    delta_of = [deltas.setdefault(ord(lower[c]) - c, len(deltas)) if c in lower else 0 for c in range(0x110000)]
    pool, place = [0], [0] * 0x110000
    for c, s in decompositions.items():
        place[c] = len(pool)
        pool += [len(s), *map(ord, s)]
    compatible = compatibility_forms(decompositions)
    compatible_place = list(place)
    for c, s in compatible.items():
        compatible_place[c] = len(pool)
        pool += [len(s), *map(ord, s)]
    assert max(len(classes), len(deltas)) < 256 and len(pool) < 65536 and max(map(len, compatible.values())) == 18
    parts = graphemes()
    grapheme_masks = [0] * 0x110000
    for bit, name in enumerate(GRAPHEME):
        for c in parts[name]:
            grapheme_masks[c] |= 1 << bit
    grapheme_classes: dict[int, int] = {}
    grapheme_of = [grapheme_classes.setdefault(m, len(grapheme_classes)) for m in grapheme_masks]

    class_index, class_blocks = two_level(class_of)
    lower_index, lower_blocks = two_level(delta_of)
    nfd_index, nfd_blocks = two_level(place)
    nfkd_index, nfkd_blocks = two_level(compatible_place)
    grapheme_index, grapheme_blocks = two_level(grapheme_of)
    flat = [x for (a, b), c in sorted(pairs.items()) for x in (a, b, c)]
    return "\n".join([
        f"/* Generated by make_unicode_tables.py from the behaviour of tokenizers {tokenizers.__version__}; not to be edited. */",
        '#include "tokenizer/unicode.h"\n',
        array("uint8_t", "ha_uc_class_index", class_index), array("uint8_t", "ha_uc_class_blocks", class_blocks),
        array("uint16_t", "ha_uc_class_flags", [m for m, _ in classes]), array("uint8_t", "ha_uc_class_ccc", [v for _, v in classes]),
        array("uint8_t", "ha_uc_lower_index", lower_index), array("uint8_t", "ha_uc_lower_blocks", lower_blocks),
        array("int32_t", "ha_uc_lower_deltas", list(deltas)),
        array("uint8_t", "ha_uc_nfd_index", nfd_index), array("uint16_t", "ha_uc_nfd_blocks", nfd_blocks), array("uint32_t", "ha_uc_nfd_pool", pool, 20),
        array("uint8_t", "ha_uc_nfkd_index", nfkd_index), array("uint16_t", "ha_uc_nfkd_blocks", nfkd_blocks),
        array("uint8_t", "ha_uc_grapheme_index", grapheme_index), array("uint8_t", "ha_uc_grapheme_blocks", grapheme_blocks),
        array("uint16_t", "ha_uc_grapheme_flags", list(grapheme_classes)),
        array("uint32_t", "ha_uc_pairs", flat, 18), f"const size_t ha_uc_n_pairs = {len(pairs)};",
    ]) + "\n"


if __name__ == "__main__":
    path = Path(__file__).with_name("unicode_tables.c")
    text = generate()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if path.read_text() == text else f"{path} differs from what {tokenizers.__version__} does")
    path.write_text(text)
