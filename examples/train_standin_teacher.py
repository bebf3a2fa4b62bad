#!/usr/bin/env python3
"""Train the stand-in teacher: MiniLM fine-tuned on labelled prompts and pairs, as a small LoRA adapter or in full.

It stands in for a large guard whose weights can't be shipped, and is no such guard. Only rows whose `license` plainly
permits it are used (MIT, Apache-2.0, CC-BY); every other row is left out and counted.

    python examples/train_standin_teacher.py --data DIR --out standin [--dev DIR] [--full]

DIR holds train_*.jsonl with prompt, response (where the label is about the pair), label, source, license.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from harmaug import evaluate, safety
from harmaug.data import Row, atomic_file, iter_rows
from harmaug.distill import DistillConfig, Distiller

PERMITTED = re.compile(r"(MIT|Apache-2\.0|CC-BY-\d\.\d)(?![-\w.])")     # not CC-BY-NC, CC-BY-SA, ODC-BY
SMALL_ENOUGH = 1_000_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train_*.jsonl")
    add("--out", type=Path, required=True, help="folder for the adapter (or, with --full, the guard)")
    add("--dev", type=Path, help="folder with dev_*.jsonl to measure the result on (default: --data)")
    add("--student", default="minilm", help="model to start from: a fetched name or a folder")
    add("--share", action="append", default=[], metavar="FILE=FRACTION",
        help="use only so much of one file, e.g. train_hate=0.3")
    add("--extra", type=Path, action="append", default=[],
        help="a file of more rows, whatever its name (a hand-written set); may be repeated")
    add("--extra-weight", type=float, default=1.0, help="how much each of them counts")
    add("--full", action="store_true", help="train all weights instead of an adapter")
    add("--rank", type=int, default=8)
    add("--alpha", type=float, default=16.0)
    add("--freeze", action="append", help="patterns of parameters that are not trained (default: bert.embeddings.*)")
    add("--lr", type=float, default=8e-4, help="peak learning rate (with --full try 1.5e-4)")
    add("--epochs", type=float, default=2.0)
    add("--batch-size", type=int, default=32)
    add("--warmup", type=int, default=40)
    add("--weight-decay", type=float, default=0.01)
    add("--dropout", type=float, default=0.1)
    add("--max-length", type=int, default=256)
    add("--validation", type=float, default=0.0, help="share of the rows that chooses the best step; 0: keep the last")
    add("--balanced", action="store_true", help="draw both classes equally often")
    add("--smoothing", type=float, default=0.0,
        help="soft target of a row: label * (1 - s) + s / 2, with weight 1 on the soft term")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=0)
    return parser.parse_args()


def sampled(row: Row, share: float, seed: int) -> bool:
    """Whether a row is in the share: told by its text, so that a larger share holds a smaller one."""
    digest = hashlib.sha256(f"{seed}\0{row.prompt}\0{row.response or ''}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def read_training_rows(
    arguments: argparse.Namespace,
) -> tuple[list[Row], list[float], Counter[tuple[str, str]], Counter[str]]:
    """Rows to train on and their weights; their number by source and licence; rows left out by reason."""
    shares = {name: float(share) for name, _, share in (item.partition("=") for item in arguments.share)}
    files = sorted(arguments.data.glob("train_*.jsonl"))
    if not files:
        raise SystemExit(f"{arguments.data}: holds no train_*.jsonl")
    unknown = shares.keys() - {file.stem for file in files}
    if unknown:
        raise SystemExit(f"--share {', '.join(sorted(unknown))}: no such file in {arguments.data}")
    rows, weights, used, left_out = [], [], Counter[tuple[str, str]](), Counter[str]()
    for file in [*files, *arguments.extra]:
        for row in iter_rows(file):
            licence = row.license or ("Apache-2.0" if file in arguments.extra else "none given")
            if not PERMITTED.match(licence):
                left_out[f"rows under {licence}"] += 1
            elif safety.blocked_row(row):
                left_out["rows that the responsible-use filter drops"] += 1
            elif sampled(row, shares.get(file.stem, 1.0), arguments.seed):
                used[row.source or file.stem, licence] += 1
                rows.append(smoothed(row, arguments.smoothing))
                weights.append(arguments.extra_weight if file in arguments.extra else 1.0)
    return rows, weights, used, left_out


def smoothed(row: Row, smoothing: float) -> Row:
    """The row with a soft target, or without any."""
    soft = row.label * (1 - smoothing) + smoothing / 2 if row.label is not None and smoothing else None
    return Row(prompt=row.prompt, response=row.response, label=row.label, soft_label=soft)


def distil_config(arguments: argparse.Namespace) -> DistillConfig:
    freeze = arguments.freeze if arguments.freeze is not None else ([] if arguments.full else ["bert.embeddings.*"])
    return DistillConfig(
        student=arguments.student,
        new_head=True,
        lora_rank=0 if arguments.full else arguments.rank,
        lora_alpha=arguments.alpha,
        freeze=tuple(p for p in freeze if p),
        lr=arguments.lr,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        warmup_steps=arguments.warmup,
        weight_decay=arguments.weight_decay,
        dropout=arguments.dropout,
        max_length=arguments.max_length,
        validation_fraction=arguments.validation,
        balanced=arguments.balanced,
        seed=arguments.seed,
        n_threads=arguments.threads,
        ce_weight=0.0 if arguments.smoothing else 1.0,
        kl_weight=1.0 if arguments.smoothing else 0.0,
    )


def measure(guard: Any, folder: Path) -> dict[str, Any]:
    """evaluate_guard's report on each dev_*.jsonl of a folder."""
    return evaluate.evaluate_guard(
        guard, {file.stem.removeprefix("dev_"): file for file in sorted(folder.glob("dev_*.jsonl"))}, over_refusal=()
    )


def model_card(arguments: argparse.Namespace, used: Counter[tuple[str, str]], left_out: Counter[str],
               results: dict[str, Any], trained: dict[str, int]) -> str:
    """README.md of the folder."""
    kind = "all weights" if arguments.full else f"LoRA rank {arguments.rank}, alpha {arguments.alpha:g}, float16"
    sources = "\n".join(f"| {source} | {licence} | {n:,} |" for (source, licence), n in sorted(used.items()))
    without = "; ".join(f"{n:,} {reason}" for reason, n in left_out.most_common()) or "none"
    measured = "\n".join(
        f"| {name} | {m['n']:,} | {m['base_rate']:.3f} | {figure(m['auprc'])} | {figure(m['f1'])} |"
        for name, m in results.items()
    )
    return f"""\
---
license: apache-2.0
language: en
base_model: {arguments.student}
pipeline_tag: text-classification
---
# Stand-in teacher

A small safety classifier that stands in, in examples and tests, where a large guard would label rows. It is not
Llama Guard nor any other published guard, and much weaker than one: it often flags harmless text.

Base model: `{arguments.student}`; {kind}. Input: a prompt, or a prompt and a response. Output: P(unsafe), the
probability of label 1.

## Training

{trained['train']:,} rows ({trained['merged']:,} duplicates merged), {arguments.epochs:g} epochs, batch
{arguments.batch_size}, AdamW with peak rate {arguments.lr:g}, seed {arguments.seed}; made by
`examples/train_standin_teacher.py`.

| source | licence | rows |
|---|---|---|
{sources}

Left out: {without}.

## Measured

| set | rows | base rate | AUPRC | F1 at 0.5 |
|---|---|---|---|---|
{measured}

## Use

Intended: as the teacher of the quick start, and in tests. Not intended: as a safeguard of anything. English only; it
over-refuses, it can be evaded, and its scores are not calibrated outside the sets above.
"""


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows, weights, used, left_out = read_training_rows(arguments)
    print(f"{len(rows):,} rows, {sum(row.label == 1 for row in rows):,} unsafe; "
          f"left out: {sum(left_out.values()):,}", flush=True)
    distiller = Distiller(distil_config(arguments)).fit(rows, out=arguments.out, sample_weight=weights)
    from harmaug.guard import Guard
    guard = Guard.from_pretrained(arguments.out)        # what is measured is the file, not the weights in memory
    report = measure(guard, arguments.dev or arguments.data)
    print(evaluate.format_table(report), flush=True)
    with atomic_file(arguments.out / "README.md") as file:
        file.write(model_card(arguments, used, left_out, report["datasets"], distiller.counts_).encode())
    with atomic_file(arguments.out / "metrics.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    if not arguments.full:
        size = (arguments.out / "adapter_model.safetensors").stat().st_size
        print(f"adapter: {size / 1e6:.2f} MB" + ("" if size <= SMALL_ENOUGH else ", over the megabyte that is shipped"))


if __name__ == "__main__":
    main()
