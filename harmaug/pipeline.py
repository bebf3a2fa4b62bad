"""The stages over a run folder: augment, respond, label, distil, evaluate. Each resumes where it stopped and is skipped when it is done.

Each stage is a function that takes an open RunFolder; `run_config` runs those that a TOML file has a table for.
"""
from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from harmaug import augment as augment_stage
from harmaug import evaluate as evaluate_module
from harmaug import respond as respond_stage
from harmaug import safety, teacher
from harmaug.augment import AugmentConfig, Augmenter
from harmaug.categories import CategoryTable, default_table
from harmaug.data import Row, atomic_file, encode_row, read_rows
from harmaug.generator import Generator
from harmaug.respond import RespondConfig, Responder
from harmaug.runs import Journal, RunError, RunFolder, Stage, progress, sha256

if TYPE_CHECKING:
    from harmaug.distill import DistillConfig, Distiller

_log = logging.getLogger(__name__)

STAGES = ("augment", "respond", "label", "distil", "evaluate")
INSTRUCTIONS, REJECTED, PAIRS, PAIRS_REJECTED, LABELLED = ("instructions.jsonl", "rejected.jsonl", "pairs.jsonl", "pairs_rejected.jsonl", "labelled.jsonl")


def augment(run: RunFolder, generator: Generator | Callable[[], Generator], seed_rows: Sequence[Row], *, config: AugmentConfig | None = None,
            evaluation_rows: Sequence[Row] = (), table: CategoryTable | None = None, models: Mapping[str, str] | None = None, batch_size: int = 32,
            quiet: bool = False) -> dict[str, Any]:
    """Sample instructions into instructions.jsonl, and what the filters reject into rejected.jsonl.

    Parameters
    ----------
    run : RunFolder
    generator : Generator or callable
        A callable is called for the generator only when there is something left to do.
    seed_rows : sequence of Row
    config : AugmentConfig, optional
    evaluation_rows : sequence of Row
        No kept row is near one of them.
    table : CategoryTable, optional
    models : mapping, optional
        Name to sha256 of the model files, for run.json.
    batch_size : int, default 32
    quiet : bool, default False
        No progress bar.

    Returns
    -------
    dict
        The yield account.
    """
    config = config or AugmentConfig()
    table = table or default_table()
    inputs = {"seed": digest(seed_rows), "evaluation": digest(evaluation_rows), "categories": hashlib.sha256(repr(table.categories).encode()).hexdigest()}
    stage = run.stage("augment", config=augment_stage.settings(config), inputs=inputs, models=models)
    if stage.done:
        return _account(stage)
    augmenter = Augmenter(_made(generator), config, table=table, batch_size=batch_size)
    with Journal(run / INSTRUCTIONS, run / REJECTED) as journal:
        rows = augmenter.run(seed_rows, evaluation_rows, journal=journal, stamp=stage.stamp)
        _follow(rows, stage, lambda: augmenter.account_, config.samples + config.benign, "augment", journal, quiet)
    return _account(stage)


def respond(run: RunFolder, generator: Generator | Callable[[], Generator], *, config: RespondConfig | None = None,
            models: Mapping[str, str] | None = None, batch_size: int = 32, quiet: bool = False) -> dict[str, Any]:
    """Answer the instructions into pairs.jsonl, and what contradicts its intent into pairs_rejected.jsonl; see `augment` for the parameters."""
    config = config or RespondConfig()
    stage = run.stage("respond", config=respond_stage.settings(config), inputs={INSTRUCTIONS: _finished(run, "augment", INSTRUCTIONS)}, models=models)
    if stage.done:
        return _account(stage)
    with Journal(run / PAIRS, run / PAIRS_REJECTED) as journal:
        instructions = _rows_of(run / INSTRUCTIONS)
        responder = Responder(_made(generator) if config.intents else None, config, batch_size=batch_size)  # type: ignore[arg-type]
        rows = responder.run(instructions, journal=journal, stamp=stage.stamp)
        total = len(respond_stage.spread(instructions, config.limit)) * len(config.intents)
        _follow(rows, stage, lambda: responder.account_, total, "respond", journal, quiet)
    return _account(stage)


def label(run: RunFolder, by: Any, seed_rows: Sequence[Row], *, models: Mapping[str, str] | None = None, batch_size: int = 256,
          quiet: bool = False) -> dict[str, Any]:
    """Score the seed rows, each instruction alone and each instruction with each response into labelled.jsonl.

    Parameters
    ----------
    run : RunFolder
    by : Teacher, folder, Guard or callable
    seed_rows : sequence of Row
        They keep their own labels beside the teacher's score. Rows that the responsible-use filter blocks are left out.
    models : mapping, optional
        Name to sha256 of the teacher's files.
    batch_size : int, default 256
        Changes no row when the teacher's scores do not depend on it (a Guard's do not).
    quiet : bool, default False

    Returns
    -------
    dict
        The counts: rows of each origin, flagged, blocked.
    """
    inputs = {"seed": digest(seed_rows)}
    files = [name for stage, name in (("augment", INSTRUCTIONS), ("respond", PAIRS)) if stage in run.info["stages"]]
    inputs.update({name: _finished(run, stage, name) for stage, name in (("augment", INSTRUCTIONS), ("respond", PAIRS)) if name in files})
    stage = run.stage("label", config={"teacher": by if isinstance(by, str) else getattr(by, "name", getattr(by, "__name__", type(by).__name__))},
                      inputs=inputs, models=models)
    if stage.done:
        return _account(stage)
    usable = [(f"seed row {i + 1}", row) for i, row in enumerate(seed_rows) if not safety.blocked(row.prompt, row.response)]
    rows = list(usable)
    for name in files:
        rows += [(f"{run / name}, row {i + 1}", row) for i, row in enumerate(_rows_of(run / name))]
    counts: dict[str, Any] = {"rows": len(rows), "seed": len(usable), "seeds_blocked": len(seed_rows) - len(usable), "done": 0, "flagged": 0, "categories": {}}
    with Journal(run / LABELLED) as journal:
        for old in journal.kept_rows:
            _count_label(counts, old)
        begun = journal.next_key
        scorer = teacher.as_teacher(by) if begun < len(rows) else None
        if scorer is not None:
            stage.entry["teacher"] = dict(teacher.describe(scorer))
            scored = teacher.label_rows(scorer, rows[begun:], batch_size=batch_size)
            for _, row, score in progress(scored, len(rows), "label", begun=begun, quiet=quiet):
                labelled = msgspec.structs.replace(row, unsafe_score=score, soft_label=None, category=row.category or default_table().assign(row.prompt),
                                                   extra={**row.extra, "key": journal.next_key, "teacher": scorer.name, **stage.stamp})
                journal.append(labelled)
                _count_label(counts, labelled.to_dict())
                stage.account(counts)
    stage.account(counts, done=True)
    return _account(stage)


def distil(run: RunFolder, seed_rows: Sequence[Row] = (), *, config: DistillConfig | None = None, validation_rows: Sequence[Row] | None = None,
           models: Mapping[str, str] | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train a guard on labelled.jsonl, or on the seed rows where the run has no label stage, into guard/.

    Parameters
    ----------
    run : RunFolder
    seed_rows : sequence of Row
        Used when nothing was labelled.
    config : DistillConfig, optional
    validation_rows : sequence of Row, optional
        Instead of a share of the rows.
    models : mapping, optional
    quiet : bool, default False

    Returns
    -------
    dict
        Rows used, steps, best step, threshold with the best F1 on the validation rows.
    """
    from harmaug.distill import DistillConfig, Distiller

    config = config or DistillConfig()
    labelled = "label" in run.info["stages"]
    inputs = {LABELLED: _finished(run, "label", LABELLED)} if labelled else {"seed": digest(seed_rows)}
    stage = run.stage("distil", config=asdict(config), inputs=inputs, models=models)
    if stage.done:
        return _account(stage)
    rows = _rows_of(run / LABELLED) if labelled else [row for row in seed_rows if not safety.blocked(row.prompt, row.response)]
    distiller = Distiller(config).fit(rows, validation_rows, out=run / "guard", progress=False if quiet else None)
    stage.account(summary(distiller), done=True)
    return _account(stage)


def summary(distiller: Distiller) -> dict[str, Any]:
    """Return what is worth keeping of a fit: counts, steps, and the threshold with the best F1 on its validation rows."""
    labels, scores = distiller.validation_labels_, distiller.validation_scores_
    threshold = evaluate_module.best_f1_threshold(labels, scores) if 0 < sum(labels) < len(labels) else None
    return {**distiller.counts_, "steps": distiller.n_steps_, "best_step": distiller.best_step_, "selected_by": distiller.selected_by_,
            "validation_threshold": threshold}


def evaluate(run: RunFolder, guard: Any, datasets: Mapping[str, str | os.PathLike[str] | Iterable[Row]], *, threshold: float = 0.5,
             draws: int = 1000) -> dict[str, Any]:
    """Score the sets with the run's guard (or another) into metrics.json; it is done anew each time.

    Parameters
    ----------
    run : RunFolder
    guard : Guard, Teacher or None
        None: the one that `distil` left in guard/.
    datasets : mapping
        Name to a file or to rows.
    threshold : float, default 0.5
    draws : int, default 1000
        Of the bootstrap.

    Returns
    -------
    dict
        What evaluate.evaluate_guard returns, and the run's yield accounts under "stages".
    """
    if guard is None:
        from harmaug.guard import Guard

        _finished(run, "distil", None)
        guard = Guard.from_pretrained(run / "guard")
    names = {name: str(source) if isinstance(source, (str, os.PathLike)) else "rows" for name, source in datasets.items()}
    stage = run.stage("evaluate", config={"datasets": names, "threshold": threshold, "draws": draws}, restart=True)
    report = evaluate_module.evaluate_guard(guard, datasets, threshold=threshold, draws=draws)
    stage.account({name: entry["n"] for name, entry in report["datasets"].items()}, done=True)
    report["stages"] = {name: {"seconds": entry.get("seconds"), "account": entry.get("account")} for name, entry in run.info["stages"].items()}
    with atomic_file(run / "metrics.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return report


def digest(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows as they would be written."""
    total = hashlib.sha256()
    for row in rows:
        total.update(encode_row(row))
    return total.hexdigest()


def _follow(rows: Iterator[Row], stage: Stage, account: Callable[[], dict[str, Any]], total: int, title: str, journal: Journal, quiet: bool) -> None:
    """Drain a row stage, with its account and progress."""
    begun = journal.next_key

    def ticks() -> Iterator[int]:
        last = begun
        for _ in rows:
            stage.account(account())
            yield from range(last, journal.next_key)
            last = journal.next_key
        yield from range(last, journal.next_key)

    for _ in progress(ticks(), total, title, begun=begun, quiet=quiet):
        pass
    stage.account(account(), done=True)


def _finished(run: RunFolder, stage: str, name: str | None) -> str:
    """Return the sha256 of a finished stage's file."""
    entry = run.info["stages"].get(stage)
    if entry is None or not entry.get("done"):
        raise RunError(f"{run.path}: stage {stage} is not {'run' if entry is None else 'finished'}; run `harmaug {stage} --out {run.path}` first")
    return sha256(run / name) if name else ""


def _rows_of(path: Path) -> list[Row]:
    """Return the rows of a stage's file, which may be none."""
    return read_rows(path) if path.stat().st_size else []


def _made(generator: Generator | Callable[[], Generator]) -> Generator:
    return generator() if callable(generator) and not hasattr(generator, "stream") else generator  # type: ignore[return-value]


def _account(stage: Stage) -> dict[str, Any]:
    return {**stage.entry["account"], "seconds": stage.entry["seconds"]}


def _count_label(counts: dict[str, Any], row: Mapping[str, Any]) -> None:
    counts["done"] += 1
    counts["flagged"] += row["unsafe-score"] > 0.5
    counts["categories"][row["category"]] = counts["categories"].get(row["category"], 0) + 1
