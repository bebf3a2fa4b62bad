"""Tokenizers: harmaug beside the libraries that are installed, on the same texts, interleaved in one run.

    python benchmarks/bench_tokenizers.py --data FOLDER [--tokenizers FOLDER] [--threads 1 2] [--rounds 3] [--json out.json]

--data holds .jsonl files (strings, or objects of which every string counts) and .txt files; from them come three sets of texts that have nothing in common:
prompts of about 80 bytes, prompts of about 660, and texts of 64 KB. --tokenizers holds folders with a tokenizer.json, perhaps with spm.model beside it.
Unless one of them is a byte-level BPE of 100,000 tokens or more, one of 128,000 with Llama-3's expression is trained, on the data and on the source text of
Python's standard library, and kept in the temporary folder.

In each round every contender gets a fresh process, pinned to as many cores as threads are asked for. There it loads (imports done before), encodes other text,
and then: `first` is the first pass over a set of texts, `warm` the best of further passes over the same, which flatters whoever keeps results, and `padded`
the best pass in batches of --batch to rectangular arrays of ids and mask. MB are 10^6 bytes of UTF-8. Before anything is timed every contender's ids are
compared with those of `tokenizers`; the rows that differ stand in the table. Libraries without a template get the special tokens added outside of the timing.
--clock cpu counts the processor time of all threads instead of time that passes: what a machine that has other work can still compare, at one thread.
"""
from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PADS = ("[PAD]", "<pad>", "<|finetune_right_pad_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")


clock = time.perf_counter


class Contender:
    """encode(texts) is what is timed; rows(result) gives lists of ids with special tokens; padded(texts) gives (ids, mask)."""

    def __init__(self, encode: Callable[..., Any], rows: Callable[..., Any], padded: Callable[..., Any] | None = None) -> None:
        self.encode, self.rows, self.padded = encode, rows, padded


# name -> (distribution, what is imported before the clock runs, maker); a maker takes (folder, special ids before a text, those behind it, pad id, threads)
CONTENDERS: dict[str, tuple[str, str, Callable[..., Contender]]] = {}


def contender(name: str, distribution: str, imports: str = "") -> Callable[..., Any]:
    def register(maker: Callable[..., Contender]) -> Callable[..., Contender]:
        CONTENDERS[name] = distribution, imports or distribution, maker
        return maker
    return register


def cut(ids: Any, ends: Any) -> list[list[int]]:
    """Rows of flat ids; ends[i] is where row i ends."""
    starts = [0, *(int(e) for e in ends[:-1])] if len(ends) else []
    return [ids[a:int(b)].tolist() for a, b in zip(starts, ends, strict=True)]


def flat_buffers(result: Any) -> list[list[int]]:
    """Rows of a pair of buffers, uint32 ids and uint64 offsets from 0."""
    import numpy as np

    ids, offsets = (np.frombuffer(part, dtype) if isinstance(part, (bytes, bytearray, memoryview)) else np.asarray(part)
                    for part, dtype in zip(result, (np.uint32, np.uint64), strict=True))
    return cut(ids, offsets[1:])


def with_specials(rows: Any, prefix: list[int], suffix: list[int]) -> list[list[int]]:
    return [prefix + [int(i) for i in row] + suffix for row in rows]


@contender("harmaug", "harmaug")
def _harmaug(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import harmaug

    tok = harmaug.Tokenizer.from_pretrained(folder)

    def padded(texts: list[str]) -> Any:
        arrays = tok.encode_batch(texts).padded()
        return arrays["input_ids"], arrays["attention_mask"]
    return Contender(tok.encode_batch, lambda enc: cut(enc.ids, enc.offsets[1:]), padded)


@contender("tokenizers encode_batch", "tokenizers")
def _hf(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    from tokenizers import Tokenizer

    return Contender(Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch, lambda result: [e.ids for e in result])


@contender("tokenizers encode_batch_fast", "tokenizers")
def _hf_fast(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import numpy as np
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def padded(texts: list[str]) -> Any:
        tok.enable_padding(pad_id=pad)
        result = tok.encode_batch_fast(texts)
        tok.no_padding()
        return np.array([e.ids for e in result]), np.array([e.attention_mask for e in result])
    return Contender(tok.encode_batch_fast, lambda result: [e.ids for e in result], padded)


@contender("transformers numpy", "transformers", "transformers:PreTrainedTokenizerFast")
def _transformers(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tok = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=backend.id_to_token(pad))

    def padded(texts: list[str]) -> Any:
        arrays = tok(texts, padding=True, return_tensors="np")
        return arrays["input_ids"], arrays["attention_mask"]
    return Contender(lambda texts: tok(texts)["input_ids"], lambda result: result, padded)


@contender("sentencepiece", "sentencepiece")
def _sentencepiece(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import sentencepiece

    files = [folder / name for name in ("spm.model", "tokenizer.model") if (folder / name).exists()]
    if not files:
        raise LookupError("no sentencepiece model there")
    tok = sentencepiece.SentencePieceProcessor(model_file=str(files[0]))
    return Contender(lambda texts: tok.encode(texts, num_threads=threads), lambda result: with_specials(result, prefix, suffix))


@contender("splintr", "splintr-rs", "splintr")
def _splintr(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import splintr

    return Contender(splintr.from_json(str(folder / "tokenizer.json")).encode_batch_flat, flat_buffers)


@contender("tokie", "tokie")
def _tokie(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import numpy as np
    import tokie

    return Contender(tokie.Tokenizer.from_json(str(folder / "tokenizer.json")).encode_batch_flat,
                     lambda result: cut(np.asarray(result[0]), np.cumsum(result[1])))


@contender("nanotoken", "nanotoken")
def _nanotoken(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import nanotoken

    tok = nanotoken.Tokenizer(str(folder / "tokenizer.json"))

    def padded(texts: list[str]) -> Any:
        arrays = tok.encode_batch_padded(texts)
        return arrays["input_ids"], arrays["attention_mask"]
    return Contender(tok.encode_batch, lambda result: result.to_list(), padded)


@contender("fastokens", "fastokens")
def _fastokens(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import fastokens

    tok = fastokens.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Contender(lambda texts: tok.encode_batch_flat(texts, add_special_tokens=True), flat_buffers)


@contender("snaptokens", "snaptokens")
def _snaptokens(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import snaptokens

    tok = snaptokens.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Contender(lambda texts: tok.encode_batch_flat(texts, add_special_tokens=True), flat_buffers)


@contender("gigatoken", "gigatoken")
def _gigatoken(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import gigatoken

    tok = gigatoken.Tokenizer(str(folder))
    return Contender(tok.encode_batch, lambda result: with_specials(result.to_list(), prefix, suffix),
                     lambda texts: tok.encode_batch_padded(texts, pad, prefix=prefix, suffix=suffix))


@contender("morpheme", "morpheme")
def _morpheme(folder: Path, prefix: list[int], suffix: list[int], pad: int, threads: int) -> Contender:
    import morpheme

    return Contender(morpheme.Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch, lambda result: [list(e.ids) for e in result])


# ---- texts and tokenizers ----

def read_texts(folder: Path) -> list[str]:
    found: dict[str, None] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt":
            found.update(dict.fromkeys(path.read_text(encoding="utf-8").split("\n")))
        elif path.suffix == ".jsonl":
            for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
                value = json.loads(line)
                found.update(dict.fromkeys(v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, str)))
    return [t for t in found if t]


def every(items: list[str], n: int) -> list[str]:
    """n of the items, evenly over the list."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def make_sets(texts: list[str]) -> dict[str, list[str]]:
    def between(low: int, high: int) -> list[str]:
        return [t for t in texts if low <= len(t.encode()) < high]

    sets = {"80 bytes": every(between(50, 114), 2000), "660 bytes": every(between(450, 890), 1680)}
    rest, long = between(900, 1 << 30), []
    while rest and len(long) < 16:
        text = ""
        while rest and len(text) < 65536:
            text += rest.pop() + "\n"
        long.append(text[:65536])
    sets["64 KB"] = long
    sets["other"] = every(between(114, 450), 1500)
    return sets


def is_large_bpe(folder: Path) -> bool:
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return "merges" in model and len(model["vocab"]) >= 100_000


def trained_bpe(texts: list[str]) -> Path:
    """Folder of a byte-level BPE of 128,000 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    lines = [line for path in sources for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    key = hashlib.sha256("\n".join([importlib.metadata.version("tokenizers"), *texts, *lines]).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir(), f"harmaug-bench-{os.getuid()}", f"bpe128k-{key}")
    if not (folder / "tokenizer.json").exists():
        print("training a byte-level BPE of 128,000 tokens ...", file=sys.stderr)
        tok = Tokenizer(models.BPE(ignore_merges=True))
        tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tok.decoder = decoders.ByteLevel()
        tok.train_from_iterator(texts + lines, trainers.BpeTrainer(
            vocab_size=128_000, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=["<|begin_of_text|>", "<|end_of_text|>"]))
        tok.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part{os.getpid()}"
        tok.save(str(part))
        part.rename(folder / "tokenizer.json")
    return folder


def frame_of(folder: Path) -> tuple[list[int], list[int], int]:
    """(ids before a single text, ids behind it, id to pad with) of a tokenizer.json."""
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    framed, bare = tok.encode("x").ids, tok.encode("x", add_special_tokens=False).ids
    at = next(i for i in range(len(framed) - len(bare) + 1) if framed[i:i + len(bare)] == bare)
    stated = tok.padding["pad_id"] if tok.padding else None
    pads = [stated, *map(tok.token_to_id, PADS), 0]
    return framed[:at], framed[at + len(bare):], next(p for p in pads if p is not None)


# ---- one contender in a process of its own ----

def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def child(spec: dict[str, Any]) -> dict[str, Any]:
    global clock
    clock = time.process_time if spec["clock"] == "cpu" else time.perf_counter
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:spec["threads"]])
    sets = json.loads(Path(spec["sets"]).read_text(encoding="utf-8"))
    _, imports, make = CONTENDERS[spec["name"]]
    module, _, attribute = imports.partition(":")
    getattr(importlib.import_module(module), attribute or "__name__")
    importlib.import_module("numpy")
    before, start = resident(), clock()
    it = make(Path(spec["folder"]), spec["prefix"], spec["suffix"], spec["pad"], spec["threads"])
    result: dict[str, Any] = {"load_s": clock() - start, "rss_mb": resident() - before, "sets": {}}
    if spec["check"]:
        result["rows"] = {key: it.rows(it.encode(texts)) for key, texts in sets.items()}
        return result
    it.encode(sets.pop("other"))
    for key, texts in sets.items():
        start = clock()
        kept = it.encode(texts)
        first = clock() - start
        warm, n, end = first, 0, clock() + spec["seconds"]
        while n < 3 or clock() < end:
            del kept
            start = clock()
            kept = it.encode(texts)
            warm, n = min(warm, clock() - start), n + 1
        result["sets"][key] = {"first": first, "warm": warm}
        n, end = 0, clock() + spec["seconds"]
        while it.padded is not None and key != "64 KB" and (n < 2 or clock() < end):
            start = clock()
            for i in range(0, len(texts), spec["batch"]):
                it.padded(texts[i:i + spec["batch"]])
            taken = clock() - start
            result["sets"][key]["padded"] = min(taken, result["sets"][key].get("padded", taken))
            n += 1
    return result


def run_child(spec: dict[str, Any], timeout: float) -> dict[str, Any]:
    threads = str(spec["threads"])
    env = dict(os.environ, RAYON_NUM_THREADS=threads, OMP_NUM_THREADS=threads, TOKENIZERS_PARALLELISM=str(spec["threads"] > 1).lower(), HF_HUB_OFFLINE="1")
    try:
        done = subprocess.run([sys.executable, __file__, "--child", json.dumps(spec)], env=env, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {timeout:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1][7:]) if lines else {"error": f"ended with {done.returncode}: {done.stderr.strip()[-120:]}"}


# ---- the run ----

def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "this tree" if distribution == "harmaug" else None


def differing(rows: dict[str, Any] | None, reference: dict[str, Any]) -> str:
    if rows is None:
        return "-"
    return "/".join(str(sum(a != b for a, b in zip(rows[key], expected, strict=True))) for key, expected in reference.items())


def summary(samples: list[float]) -> dict[str, float]:
    return {"median": statistics.median(samples), "min": min(samples)}


def measure(folder: Path, sets_file: str, sizes: dict[str, int], present: dict[str, str], args: argparse.Namespace) -> list[dict[str, Any]]:
    prefix, suffix, pad = frame_of(folder)
    spec = {"folder": str(folder), "sets": sets_file, "prefix": prefix, "suffix": suffix, "pad": pad, "seconds": args.seconds, "batch": args.batch, "clock": args.clock}
    checked = {name: run_child({**spec, "name": name, "threads": 1, "check": True}, args.timeout) for name in present}
    reference = checked["tokenizers encode_batch"]["rows"]
    usable = [name for name in present if "error" not in checked[name]]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(name, threads): [] for threads in args.threads for name in usable}
    for _ in range(args.rounds):
        for name, threads in runs:
            runs[name, threads].append(run_child({**spec, "name": name, "threads": threads, "check": False}, args.timeout))
    rows = []
    for threads in args.threads:
        for name in present:
            row: dict[str, Any] = {"tokenizer": folder.name, "name": name, "version": present[name], "threads": threads}
            done = [run for run in runs.get((name, threads), []) if "error" not in run]
            if not done:
                row["error"] = (checked[name] if name not in usable else runs[name, threads][0])["error"]
            else:
                row["differing"] = differing(checked[name].get("rows"), reference)
                row["load_s"] = summary([run["load_s"] for run in done])
                row["rss_mb"] = statistics.median(run["rss_mb"] for run in done)
                row["sets"] = {key: {what: summary([run["sets"][key][what] for run in done]) for what in done[0]["sets"][key]} for key in sizes}
            rows.append(row)
    show(folder.name, rows, sizes, args.threads)
    return rows


def show(title: str, rows: list[dict[str, Any]], sizes: dict[str, int], thread_counts: list[int]) -> None:
    """MB/s of median (best), and how many times harmaug's speed at the same thread count that is, medians."""
    for threads in thread_counts:
        mine = [row for row in rows if row["threads"] == threads]
        ours = next((row for row in mine if row["name"] == "harmaug" and "error" not in row), None)
        print(f"\n## {title}, {threads} thread{'s' if threads > 1 else ''}: MB/s median (best), x: of harmaug's speed; differ: rows of {'/'.join(sizes)}/other")
        print(f"{'':29}{'load ms':>9}{'RSS MB':>8}{'differ':>16}" + "".join(f"{key + ' ' + what:>24}" for key in sizes for what in columns(key)))
        for row in mine:
            if "error" in row:
                print(f"{row['name']:29}  {' '.join(row['error'].split())[:140]}")
                continue
            line = f"{row['name']:29}{row['load_s']['median'] * 1e3:9.0f}{row['rss_mb']:8.0f}{row['differing']:>16}"
            for key, size in sizes.items():
                for what in columns(key):
                    cell = row["sets"][key].get(what)
                    base = ours["sets"][key][what]["median"] if ours is not None else float("nan")
                    text = "-" if cell is None else f"{size / cell['median'] / 1e6:.1f} ({size / cell['min'] / 1e6:.1f}) {base / cell['median']:.2f}x"
                    line += f"{text:>24}"
            print(line, flush=True)


def columns(key: str) -> list[str]:
    return ["first", "warm"] if key == "64 KB" else ["first", "warm", "padded"]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path)
    p.add_argument("--tokenizers", type=Path)
    p.add_argument("--only", nargs="*", help="contenders, by the beginning of their names (tokenizers' encode_batch always runs)")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=0.5, help="of repeats for each warm and padded figure")
    p.add_argument("--batch", type=int, default=32, help="rows of a padded batch")
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    p.add_argument("--timeout", type=float, default=180, help="seconds for one contender's process")
    p.add_argument("--json", help="also write the rows here")
    p.add_argument("--child", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        try:
            result = child(json.loads(args.child))
        except Exception as e:      # a contender that does not load this tokenizer is a row of the table
            result = {"error": f"{type(e).__name__}: {e}"[:300]}
        print("RESULT " + json.dumps(result), flush=True)
        os._exit(0)     # some libraries' threads do not end
    if args.data is None:
        p.error("--data is needed")

    from harmaug.versions import versions

    texts = read_texts(args.data)
    sets = make_sets(texts)
    folders = sorted(f for f in args.tokenizers.iterdir() if (f / "tokenizer.json").exists()) if args.tokenizers else []
    if not any(map(is_large_bpe, folders)):
        folders.append(trained_bpe(texts))
    present, missing = {}, []
    for name, (distribution, _, _) in CONTENDERS.items():
        version = version_of(distribution)
        if version is None:
            missing.append(f"{name} ({distribution})")
        elif not args.only or name == "tokenizers encode_batch" or any(name.startswith(o) for o in args.only):
            present[name] = version
    sizes = {key: sum(len(t.encode()) for t in value) for key, value in sets.items() if key != "other"}
    machine = {**versions(), "load": f"{os.getloadavg()[0]:.2f}", "date": time.strftime("%Y-%m-%d"), "command": " ".join(sys.argv),
               "contenders": ", ".join(f"{name} {version}" for name, version in present.items()), "not installed": ", ".join(missing) or "none",
               "texts": "; ".join(f"{key}: {len(sets[key])} of {size / max(len(sets[key]), 1):.0f} bytes on average" for key, size in sizes.items())}
    for key, value in machine.items():
        print(f"{key}: {value}")
    rows = []
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(sets, file)
        file.flush()
        for folder in folders:
            rows += measure(folder, file.name, sizes, present, args)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump({"machine": machine, "rows": rows}, out, indent=1)


if __name__ == "__main__":
    main()
