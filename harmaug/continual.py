"""Continual fine-tuning: a guard learns new attacks, with old rows replayed so that it keeps what it knew, and both are measured."""
from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harmaug import data, evaluate, models, pipeline, runs, safety
from harmaug.checks import within
from harmaug.data import DataError, Row, identity, read_rows
from harmaug.distill import DistillConfig, split_validation
from harmaug.guard import Guard
from harmaug.report import Table

__all__ = ["ContinualConfig", "continual", "continual_table", "format_continual", "read_replay"]

NEW, OLD = "new rows", "replayed rows"
_METRICS = ("auprc", "f1", "recall", "fpr")


class ContinualConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The table [continual].

    Parameters
    ----------
    guard : str
        Folder or fetched name of the guard to go on from.
    replay : tuple of str
        Files of old rows, or run folders, whose labelled.jsonl it is. None: nothing is replayed, and the guard forgets
        what the new rows do not hold.
    share : float
        Replayed rows for each new row, as far as there are.
    held_out : float
        Share of the new rows, and of the old ones, that is not trained on but measured.
    seed : int
        Of that split, and of which old rows are replayed.
    """

    guard: str
    replay: tuple[str, ...] = ()
    share: float = 1.0
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, share=">= 0", held_out="in [0, 0.9]", seed="in [0, 9e18]")


def read_replay(places: Iterable[str], folder: Path = Path()) -> list[Row]:
    """Return the rows of files and run folders; relative names begin in `folder`. A DataError names what has none."""
    rows: list[Row] = []
    for place in places:
        path = folder / place
        if path.is_dir():
            path = path / pipeline.LABELLED
            if not path.is_file():
                raise DataError(f"{path.parent}: no {pipeline.LABELLED}: neither a file of rows nor a run folder with labels")
        found = read_rows(path)
        bare = next((i for i, row in enumerate(found) if row.hard_label is None), None)
        if bare is not None:
            raise DataError(f"{path}, row {bare + 1}: neither a label nor an unsafe-score")
        rows += found
    return rows


def continual(run: runs.RunFolder, new: Sequence[Row] | None, old: Sequence[Row] = (), *, config: ContinualConfig, base: DistillConfig,
              datasets: Mapping[str, Sequence[Row]] | None = None, draws: int = 1000, n_threads: int | None = None,
              quiet: bool = False) -> dict[str, Any]:
    """Fine-tune the guard into guard/, and write continual.json: every set before and after.

    Parameters
    ----------
    run : RunFolder
    new : sequence of Row or None
        Rows to learn. None: the run's labelled.jsonl.
    old : sequence of Row
        Rows to replay; those among the new ones are left out.
    config : ContinualConfig
        The guard, and what is replayed and held out.
    base : DistillConfig
        Settings of the training but for `student`, `layers` and `new_head`.
    datasets : mapping, optional
        Sets to measure besides the rows that are held out.
    draws : int, default 1000
        Bootstrap draws of the intervals.
    n_threads : int, optional
        Of measuring. None: as many as there are.
    quiet : bool, default False
        No progress bars.

    Returns
    -------
    dict
        "new", "replayed" (rows trained on), "threshold": the one fitted for the guard before, which is not taken over, or
        None; and "sets": for each what `evaluate.metrics` says "before" and "after",
        and "difference", what `evaluate.compare` says of after minus before.
    """
    rows = pipeline.rows_of(run / pipeline.LABELLED) if new is None else list(new)
    rows = [row for row in rows if not safety.blocked_row(row)]
    known = {identity(row) for row in rows}
    others = [row for row in old if identity(row) not in known and not safety.blocked_row(row)]
    parts = {}
    for name, these in ((NEW, rows), (OLD, others)):
        kept, held = split_validation(these, config.held_out, config.seed) if these else ([], [])
        parts[name] = [these[i] for i in kept], [these[i] for i in held]
    n = min(len(parts[OLD][0]), round(config.share * len(parts[NEW][0])))
    replayed = [parts[OLD][0][i] for i in sorted(random.Random(config.seed).sample(range(len(parts[OLD][0])), n))]
    sets = {name: held for name, (_, held) in parts.items() if held}
    clash = set(sets) & set(datasets or {})
    if clash:
        raise DataError(f"[data.evaluation] {min(clash)}: the name of the rows that [continual] holds out")
    sets |= {name: list(these) for name, these in (datasets or {}).items()}
    if not sets:
        raise DataError("[continual] held_out is 0 and there is no evaluation set: nothing to measure")
    own = dataclasses.replace(base, student=config.guard, layers=None, new_head=False)
    account = pipeline.distil(run, [*parts[NEW][0], *replayed], config=own, models={config.guard: runs.sha256(models.resolve(config.guard))}, quiet=quiet)
    guards = [Guard.from_pretrained(folder, n_threads=n_threads) for folder in (config.guard, run / "guard")]
    before, after = (evaluate.score_sets(guard, sets) for guard in guards)
    measured = {}
    for was, now in zip(before, after):
        entry = {side: evaluate.metrics(part.labels, part.scores) for side, part in (("before", was), ("after", now))}
        measured[was.name] = {**entry, "difference": evaluate.compare(now.labels, now.scores, was.scores, _METRICS[:2], draws=draws)}
    result = {"guard": config.guard, "new": len(parts[NEW][0]), "replayed": len(replayed), "steps": account["steps"],
              "threshold": guards[0].thresholds.get("threshold"), "sets": measured}
    data.write_json(run / "continual.json", result, indent=1)
    return result


def continual_table(result: Mapping[str, Any]) -> Table:
    """Return what continual.json holds as a table of numbers in full, with what must be read beside it."""
    sides = ("before", "after")
    lines: list[list[Any]] = [["set", "rows", *(f"{name.upper()} {side}" for name in _METRICS for side in sides), "AUPRC after minus before", "95 % interval"]]
    for name, entry in result["sets"].items():
        found = entry["difference"]["auprc"]
        lines.append([name, entry["before"]["n"], *(entry[side][metric] for metric in _METRICS for side in sides), found["difference"],
                      None if found["low"] is None else (found["low"], found["high"])])
    return Table(lines, _notes(result))


def format_continual(result: Mapping[str, Any]) -> str:
    """Return the table as aligned text."""
    lines = [["", "rows", *(f"{name.upper()} before, after" for name in _METRICS), "AUPRC after minus before"]]
    for name, entry in result["sets"].items():
        found = entry["difference"]["auprc"]
        interval = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
        lines.append([name, str(entry["before"]["n"]),
                      *(", ".join("-" if entry[side][metric] is None else f"{entry[side][metric]:.3f}" for side in ("before", "after")) for metric in _METRICS),
                      "-" if found["difference"] is None else f"{found['difference']:+.3f}{interval}"])
    return repr(Table(lines, _notes(result)))


def _notes(result: Mapping[str, Any]) -> list[str]:
    refit = [] if result["threshold"] is None else [f"the threshold {result['threshold']:g} of {result['guard']} was not taken over: fit one anew, "
                                                    "harmaug evaluate --fit-threshold --save"]
    return [f"{result['new']} new rows and {result['replayed']} replayed ones, {result['steps']} steps from {result['guard']}; F1, recall and "
            "FPR at 0.5; 95 % paired bootstrap interval", *refit]
