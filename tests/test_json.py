"""The C JSON reader against Python's, and against hostile text."""
import json
import math
import random
import struct
import time

import pytest

from harmaug import _C, FormatError

VALID = [
    b"null", b" true ", b"false", b"0", b"-0", b"-0.0", b"12", b"1.5e3", b"1E-2", b"2e+5", b'""', b'"a"', b"[]", b"{}", b"[[]]", b'[{}, {"a": []}]',
    b'{"a": 1, "b": {"a": 2}, "": null}', b'[1,2 ,\n3\t,\r"x"]', rb'"\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC\ud83d\ude00\u0000"',
    '"é€😀\u007f\uffff"'.encode(), '{"é": "ключ"}'.encode(), b'{"a\\u0000b": 1, "a": 2}', b"18446744073709551615", b"123456789012345678901234567890",
]


def same(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("text", VALID)
def test_agrees_with_python(text):
    assert same(_C.json_loads(text), json.loads(text))


@pytest.mark.parametrize(("text", "message"), [
    (b"", "the text ends where a value"), (b"  ", "the text ends"), (b"nul", "value was expected"), (b"True", "value was expected"), (b"nan", "value was"),
    (b"Infinity", "value was"), (b"-", "malformed number"), (b"01", "malformed number"), (b"1.", "malformed number"), (b".5", "value was"), (b"1e", "malformed"),
    (b"+1", "value was"), (b"-a", "malformed"), (b"0x10", "behind the end"), (b"1 2", "behind the end"), (b"[1,]", "value was"), (b"[1 2]", r"',' or '\]'"),
    (b"[", "text ends"), (b"]", "value was"), (b"[}", "value was"), (b"{", "key in quotes"), (b'{"a"', "':' was expected"), (b'{"a":}', "value was"),
    (b'{"a":1,}', "key in quotes"), (b"{1:2}", "key in quotes"), (b'{"a":1', "',' or '}'"), (b'{"a":1]', "',' or '}'"), (b'"a', "not closed"), (b'"\n"', "control"),
    (b'"\\x"', "unknown escape"), (b'"\\', "unknown escape"), (b'"\\u12"', "four hex"), (b'"\\u12G4"', "four hex"), (b'"\\ud800"', "lone surrogate"),
    (b'"\\udc00"', "lone surrogate"), (b'"\\ud800\\u0041"', "lone surrogate"), (b'"\\ud800\\n"', "lone surrogate"), (b'"\xff"', "invalid UTF-8"),
    (b'"\xc0\xaf"', "invalid UTF-8"), (b'"\xed\xa0\x80"', "invalid UTF-8"), (b'"\xf4\x90\x80\x80"', "invalid UTF-8"), (b'"\xe2\x82', "invalid UTF-8"),
    (b'{"a":1,"a":2}', "twice"), (b'{"a":1,"\\u0061":2}', "twice"), (b"\xef\xbb\xbf{}", "byte order mark"), (b"\x00", "value was"), (b"{}\x00", "behind the end"),
    (b"[" * 257 + b"]" * 257, "deeper than 256"), (b'{"a":' * 300, "deeper than 256"), (b"[" * 1_000_000, "deeper than 256"),
])
def test_malformed(text, message):
    with pytest.raises(FormatError, match=message):
        _C.json_loads(text)


def test_depth_256_is_read():
    assert _C.json_loads(b"[" * 256 + b"]" * 256) == json.loads(b"[" * 256 + b"]" * 256)


def test_error_names_file_line_and_column():
    with pytest.raises(FormatError, match=r"^x/config\.json: line 2, column 9: a value was expected$"):
        _C.json_loads('{"é": 1,\n "ключ":?}'.encode(), name="x/config.json")
    assert _C.json_loads(b"{}", name="é" * 1000) == {}
    with pytest.raises(FormatError, match="^é+"):       # a long name is cut, perhaps inside a character
        _C.json_loads(b"?", name="é" * 1000)


def hard_numbers():
    rng = random.Random(5)
    for _ in range(20_000):
        bits = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]
        if math.isfinite(bits):
            yield repr(bits)
            yield f"{bits:.25e}"
        digits = rng.choice([1, 5, 15, 16, 17, 18, 19, 20, 25, 40])
        w = rng.randrange(10 ** digits)
        yield f"{w}e{rng.randrange(-345, 312)}"
        yield f"-{w}e{rng.randrange(-25, 25)}"
        yield f"{rng.randrange(1000)}.{w}"
    for _ in range(2_000):      # exact midpoints of neighbours, and one digit to either side
        m, e = rng.getrandbits(53) | 1 << 52, rng.randrange(-1074, 972)
        twice = 2 * m + 1
        exact = twice << (e - 1) if e > 0 else None
        if exact is None:       # twice * 2^(e-1) = twice * 5^(1-e) / 10^(1-e)
            yield f"{twice * 5 ** (1 - e)}e{e - 1}"
            yield f"{twice * 5 ** (1 - e) * 10 + 1}e{e - 2}"
            yield f"{twice * 5 ** (1 - e) * 10 - 1}e{e - 2}"
        else:
            yield f"{exact}.0"
            yield f"{exact}.{'0' * 800}1"
            yield f"{exact - 1}.9"
    yield from ("1e999999999999999999999", "-1e400", "1e-999999999999999999999", "0e999999999999", "0.0000e-5", "4.9e-324", "2.47e-324", "2.4703282292062328e-324",
                "2.4703282292062327e-324", "1.7976931348623157e308", "1.7976931348623158e308", "1.7976931348623159e308", "2.2250738585072011e-308",
                "2.2250738585072014e-308", "9007199254740993.0", "9007199254740992.99999999999", "0." + "0" * 400 + "1", "1" + "0" * 400 + "e-400",
                "1" * 800 + "e-500", "0." + "9" * 2000)


def test_numbers_are_the_nearest_double():
    texts = [t if "." in t or "e" in t else t + ".0" for t in hard_numbers()]
    got = _C.json_loads(("[" + ",".join(texts) + "]").encode())
    wrong = [(t, g) for t, g in zip(texts, got, strict=True) if struct.pack("<d", g) != struct.pack("<d", float(t))]
    assert not wrong, wrong[:5]


def test_random_documents():
    rng = random.Random(6)

    def value(depth):
        kind = rng.randrange(7 if depth < 6 else 5)
        if kind < 3:
            return rng.choice([None, True, False, rng.randrange(-10 ** 6, 10 ** 6), rng.random(), 10.0 ** rng.randrange(-30, 30)])
        if kind < 5:
            return "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000), rng.randrange(128)])) for _ in range(rng.randrange(8)))
        if kind == 5:
            return [value(depth + 1) for _ in range(rng.randrange(6))]
        return {str(rng.random())[:rng.randrange(2, 9)]: value(depth + 1) for _ in range(rng.randrange(6))}

    for _ in range(500):
        v = value(0)
        for ascii_only in (True, False):
            assert same(_C.json_loads(json.dumps(v, ensure_ascii=ascii_only).encode()), v)


def test_every_prefix_and_byte_flips():
    rng = random.Random(7)
    whole = json.dumps({"model": {"vocab": {f"t{i}é\n": i for i in range(60)}, "merges": [["a", "b"], ["c", 1.5e-7]]}, "x": [None, True, -1e30, "\ud83d\ude00"]}).encode()
    for n in range(len(whole)):
        with pytest.raises(FormatError):
            _C.json_loads(whole[:n])
    for _ in range(2_000):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            broken[rng.randrange(len(whole))] = rng.randrange(256)
        try:
            got = _C.json_loads(bytes(broken))
        except FormatError:
            continue
        assert same(got, json.loads(bytes(broken)))     # what we take, Python takes too


def test_large_object_is_not_quadratic():
    vocab = {f"token{i}": i for i in range(200_000)}
    text = json.dumps({"vocab": vocab, "scores": [-0.1234567890123456 * i for i in range(100_000)]}).encode()
    start = time.perf_counter()
    got = _C.json_loads(text)
    assert time.perf_counter() - start < 3      # 0.2 s on an idle core; a quadratic search takes minutes
    assert got["vocab"] == vocab
