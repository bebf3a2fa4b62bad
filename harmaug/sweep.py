"""Sweeps: the stages of one configuration at many points, and their measures as mean and standard deviation over seeds.

Each point is a run folder. What an earlier point has made under the same settings is copied instead of made again, and a
point that is done is not touched, so that the same command goes on after a kill.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmaug import pipeline
from harmaug.checks import one_of
from harmaug.data import DataError, write_rows
from harmaug.engines import TRAINERS, check_engine
from harmaug.runs import RowFile, RunError, RunFolder, changes, read_info, sha256

__all__ = ["Axis", "axes_of", "format_summary", "plan_of", "points_of", "run_sweep", "summary"]

MODES = ("grid", "each")
SEED = "seed"
_SEEDED = ("augment", "respond", "distil")
_METRICS = ("auprc", "f1")
_COLUMNS = ("point", "n", "rows")       # of summary.jsonl, beside "mean" and the sets
_FILES = {"augment": (pipeline.INSTRUCTIONS, pipeline.REJECTED), "respond": (pipeline.PAIRS, pipeline.PAIRS_REJECTED),
          "label": (pipeline.LABELLED,)}
# the tables that decide what a stage makes: its own and those of the stages before it
_TABLES = {"augment": ("data", "generator", "augment"), "respond": ("data", "generator", "augment", "respond"),
           "label": ("data", "generator", "augment", "respond", "label"),
           "distil": ("data", "generator", "augment", "respond", "label", "distil")}

Point = dict[str, Any]
"""Axis name to value."""


class Axis:
    """One thing that varies: settings of one table, and the values that they take together.

    Attributes
    ----------
    name : str
        Such as "augment.samples", or "augment.samples,benign" where two settings move together.
    values : list
        One entry a value; a list of values where several settings move together.
    """

    def __init__(self, tables: Sequence[str], settings: Sequence[str], values: Sequence[Any], where: str) -> None:
        self.tables, self.settings = tuple(tables), tuple(settings)
        self.name = SEED if tables == _SEEDED else f"{tables[0]}.{','.join(settings)}"
        if not isinstance(values, list) or not values:
            raise DataError(f"{where}: must be a list of values")
        bad = next((v for v in values if not isinstance(v, list) or len(v) != len(settings)), None) if len(settings) > 1 else None
        if bad is not None:
            raise DataError(f"{where}: each value must be a list of {len(settings)}, one for each of {', '.join(settings)}")
        keys = [json.dumps(value, sort_keys=True, default=str) for value in values]
        if len(set(keys)) < len(keys):
            raise DataError(f"{where}: a value stands there twice")
        self.values = list(values)

    @property
    def replicates(self) -> bool:
        """Whether it is averaged over: a seed."""
        return self.settings == (SEED,)

    def apply(self, tables: dict[str, Any], value: Any) -> None:
        """Set the value in the tables of a configuration."""
        for table in self.tables:
            if table in tables or self.name != SEED:
                for setting, part in zip(self.settings, value if len(self.settings) > 1 else [value]):
                    tables[table] = {**tables.get(table, {}), setting: part}


def axes_of(tables: Mapping[str, Any], where: str) -> tuple[list[Axis], str]:
    """Return what [sweep] varies, and its mode.

    Parameters
    ----------
    tables : mapping
        Of the TOML file. Under ``[sweep.TABLE]`` a setting has a list of values; a key of several settings
        ("samples,benign") a list of lists. ``[sweep] seeds`` are seeds of all stages, ``mode`` is "grid" (every
        combination, the default) or "each" (the configuration itself, and each value of each axis by itself; the values
        of seeds are always combined with everything).
    where : str
        The file's name, for messages.

    Raises
    ------
    DataError
        Naming table and setting.
    """
    if "sweep" not in tables:
        raise DataError(f"{where}: the table [sweep] is missing")
    sweep = dict(tables["sweep"])
    try:
        mode = one_of("mode", sweep.pop("mode", "grid"), MODES)
    except ValueError as exc:
        raise DataError(f"{where}: [sweep] {exc}") from None
    axes = []
    if "seeds" in sweep:
        axes.append(Axis(_SEEDED, (SEED,), sweep.pop("seeds"), f"{where}: [sweep] seeds"))
    for table, settings in sweep.items():
        if not isinstance(settings, dict):
            raise DataError(f"{where}: [sweep] has no setting {table}; it has mode, seeds and tables of lists, [sweep.distil] for one")
        if table not in tables and table not in ("generator", "data"):
            raise DataError(f"{where}: [sweep.{table}] varies a table that is missing, [{table}]")
        axes += [Axis((table,), [name.strip() for name in key.split(",")], values, f"{where}: [sweep.{table}] {key}")
                 for key, values in settings.items()]
    if not axes:
        raise DataError(f"{where}: [sweep] varies nothing")
    moved = [(table, setting) for axis in axes for table in axis.tables for setting in axis.settings]
    twice = next((pair for pair in moved if moved.count(pair) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: [sweep] varies {twice[1]} of [{twice[0]}] twice")
    return axes, mode


def points_of(axes: Sequence[Axis], mode: str) -> Iterator[Point]:
    """Yield every point; in mode "each", axes that a point leaves alone are not in it."""
    seeds = [axis for axis in axes if axis.replicates]
    others = [axis for axis in axes if not axis.replicates]
    if mode == "grid":
        varied: list[Point] = [dict(zip((axis.name for axis in others), values)) for values in itertools.product(*(axis.values for axis in others))]
    else:
        varied = [{}, *({axis.name: value} for axis in others for value in axis.values)]
    for point in varied:
        for values in itertools.product(*(axis.values for axis in seeds)):
            yield {**point, **dict(zip((axis.name for axis in seeds), values))}


def plan_of(tables: Mapping[str, Any], where: str) -> tuple[list[Axis], dict[str, tuple[Point, dict[str, Any]]]]:
    """Return the axes, and by the name of its folder each point with the tables of its configuration, all of them checked."""
    axes, mode = axes_of(tables, where)
    base = {name: table for name, table in tables.items() if name != "sweep"}
    if "evaluate" not in base:
        raise DataError(f"{where}: a sweep needs the table [evaluate]: there is nothing to compare else")
    plan: dict[str, tuple[Point, dict[str, Any]]] = {}
    for point in points_of(axes, mode):
        settings = dict(base)
        for axis in axes:
            if axis.name in point:
                axis.apply(settings, point[axis.name])
        config = pipeline.Config.from_dict(settings, f"{where}, point {_title(point) or 'as it stands'}")
        taken = {*_COLUMNS, "mean"} & set(config.data.evaluation)
        if taken:
            raise DataError(f"{where}: [data.evaluation] {min(taken)}: a column of a sweep's table has this name; choose another one for the set")
        plan[_name(point, settings)] = point, settings
    return axes, plan


def run_sweep(out: str | Path, tables: Mapping[str, Any], *, where: str = "configuration", data_folder: str | Path = ".",
              n_threads: int | None = None, engine: str | None = None, quiet: bool = False, allow_mixed: bool = False,
              tell: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Run every point that is not done, and return the table: what `summary` makes of all points.

    Parameters
    ----------
    out : path
        A run folder of its own: points/NAME are the points' run folders, sweep.jsonl has a line for each that is done,
        summary.jsonl the table.
    tables, where, data_folder, n_threads, engine, quiet, tell
        As for `pipeline.run_config`.
    allow_mixed : bool, default False
        See RunFolder.

    Raises
    ------
    DataError
        For a wrong [sweep], or settings of a point that are wrong: all are checked before the first one runs.
    RunError
        If a point that is done was made of other data or models than those that are there, unless allow_mixed.
    """
    if engine not in (None, *TRAINERS):
        check_engine(engine)
    axes, plan = plan_of(tables, where)
    known: dict[Path, str] = {}
    inputs = {name: _inputs(settings, where, Path(data_folder), known) for name, (_, settings) in plan.items()}
    with RunFolder(out, allow_mixed=allow_mixed) as run:
        run.info["sweep"] = {"tables": dict(tables), "where": where, "data": str(Path(data_folder).resolve())}
        run.save()
        results = RowFile(run / "sweep.jsonl")
        try:
            done = {row["name"]: row for _, row in results.rows({"name": str, "point": dict, "rows": int, "measures": dict})}
            for name in plan if not allow_mixed else ():
                changed = changes(done.get(name, {}).get("inputs", inputs[name]), inputs[name])     # older lines do not tell
                if changed:
                    raise RunError(f"{run.path}: point {name} was made of another {changed}; take them back or use another run folder; "
                                   "--allow-mixed keeps it as it is")
            for i, (name, (point, settings)) in enumerate(plan.items()):
                if name in done:
                    continue
                tell(f"point {i + 1} of {len(plan)}: {_title(point) or 'as it stands'}")
                folder = run / "points" / name
                folder.parent.mkdir(mode=0o700, exist_ok=True)
                with RunFolder(folder, allow_mixed=allow_mixed) as place:
                    shared = _adopt(place, settings, [(run / "points" / other, plan[other][1]) for other in plan if other != name])
                    report = pipeline.run_config(place, settings, where=where, data_folder=data_folder, n_threads=n_threads, engine=engine,
                                                 quiet=quiet, tell=tell)
                done[name] = {**_line(name, point, report, shared), "inputs": inputs[name]}
                results.append(done[name])
        finally:
            results.close()
        table = summary([done[name] for name in plan], [axis.name for axis in axes if not axis.replicates])
        write_rows(run / "summary.jsonl", table)
    return table


def summary(lines: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the table of points: for each value of the axes mean and sample standard deviation over the seeds.

    Parameters
    ----------
    lines : sequence of mapping
        Of sweep.jsonl.
    axes : sequence of str
        Names of those that are not seeds.

    Returns
    -------
    list of dict
        "point", "n" (seeds), "rows" (mean of those trained on), and under "mean" and each set's name metric to
        {"mean", "sd", "n"}: n points give it; mean is None without any, sd below two.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(json.dumps({name: line["point"][name] for name in axes if name in line["point"]}), []).append(line)
    table = []
    for key, group in groups.items():
        entry: dict[str, Any] = {"point": json.loads(key), "n": len(group), "rows": float(np.mean([line["rows"] for line in group]))}
        for name in group[0]["measures"]:
            entry[name] = {metric: _spread([line["measures"][name][metric] for line in group]) for metric in group[0]["measures"][name]}
        table.append(entry)
    return table


def format_summary(table: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as aligned text."""
    from harmaug.report import Table

    axes = list(dict.fromkeys(name for entry in table for name in entry["point"]))
    sets = [name for name in table[0] if name not in _COLUMNS]
    lines = [[*axes, "seeds", "rows", *(f"{name} {metric.upper()}" for name in sets for metric in _METRICS)]]
    for entry in table:
        shown = [_short(entry["point"][name]) if name in entry["point"] else "" for name in axes]
        lines.append([*shown, str(entry["n"]), f"{entry['rows']:.0f}",
                      *(_text(entry[name][metric]) for name in sets for metric in _METRICS)])
    return repr(Table(lines, ["mean ± sample standard deviation over seeds; F1 at the threshold of [evaluate]; rows: those trained on"]))


def _inputs(settings: Mapping[str, Any], where: str, folder: Path, known: dict[Path, str]) -> dict[str, str]:
    """Return the sha256 of each file and model that a configuration names; `known` holds those that were read before."""
    config = pipeline.Config.from_dict(settings, where)
    rows = [entry if isinstance(entry, str) else entry.file for entry in (*config.data.seed, *config.data.evaluation.values())]
    paths = {name: pipeline.data_file(folder, name) for name in rows}
    paths |= {name: folder / name for name in (config.data.categories, config.generator.template, config.label and config.label.template) if name}
    if (config.augment or config.respond) and config.generator.endpoint is None:
        paths[config.generator.model] = pipeline.model_path(config.generator.model)
    if config.label is not None and config.label.endpoint is None:
        paths[config.label.teacher] = pipeline.teacher_path(config.label.teacher, folder)
    if config.distil is not None and config.distil.student != pipeline.TFIDF:
        paths[config.distil.student] = pipeline.model_path(config.distil.student)
    if config.continual is not None:
        paths[config.continual.guard] = pipeline.model_path(config.continual.guard)
        paths |= {name: folder / name / pipeline.LABELLED if (folder / name).is_dir() else folder / name for name in config.continual.replay}
    if config.evaluate is not None:
        paths |= {name: folder / name for name in config.evaluate.named_baselines.values() if name}
    return {name: known.get(path) or known.setdefault(path, sha256(path)) for name, path in paths.items()}


def _line(name: str, point: Point, report: Mapping[str, Any], shared: list[str]) -> dict[str, Any]:
    measured = report["evaluate"]
    sets = {"mean": measured["mean"], **measured["datasets"]}
    return {"name": name, "point": point, "shared": shared, "rows": report.get("distil", {}).get("train", 0),
            "measures": {part: {metric: sets[part].get(metric) for metric in _METRICS} for part in sets},
            "seconds": {stage: entry["seconds"] for stage, entry in measured["stages"].items()}}


def _adopt(run: RunFolder, settings: Mapping[str, Any], others: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Copy into a point what another one has made under the same settings, stage by stage, and return the stages."""
    taken = []
    for stage, tables in _TABLES.items():
        if stage not in settings:
            continue
        if stage in run.info["stages"]:
            if "shared_from" in run.info["stages"][stage]:
                continue
            break       # made here: what comes next is made of it
        for folder, other in others:
            if any(settings.get(table) != other.get(table) for table in tables) or not (folder / "run.json").is_file():
                continue
            stages = read_info(folder)["stages"]
            if not stages.get(stage, {}).get("done"):
                continue
            found = {name: entry for name, entry in stages.items() if entry.get("done") and (name == stage or name.startswith(f"{stage}_"))}
            for name in found:
                _copy(folder, run.path, _FILES.get(stage) or (name.replace("distil", "guard", 1),))
            run.info["stages"].update({name: {**entry, "shared_from": folder.name} for name, entry in found.items()})
            run.save()
            taken.append(stage)
            break
        else:
            break       # what comes next is made of what is made here
    return taken


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, target / name)


def _name(point: Point, settings: Mapping[str, Any]) -> str:
    """A folder's name: the point for people, and a digest of all settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    title = re.sub(r"[^A-Za-z0-9.,=_-]+", "_", _title(point))[:80].strip("_.")
    return f"{title}-{digest}" if title else f"base-{digest}"


def _title(point: Point) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in point.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    found = [value for value in values if value is not None]
    return {"mean": float(np.mean(found)) if found else None, "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None, "n": len(found)}


def _text(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "-"
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")
