"""What ``harmaug evaluate`` does without a run folder: guards or files of scores, thresholds, gates."""
from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmaug import data, datasets, evaluate, models, runs
from harmaug.checks import one_of
from harmaug.guard import write_thresholds

__all__ = ["add_options", "check_gates", "evaluate_files", "refuse_unused"]

_DEFAULTS: dict[str, Any] = {"baseline": [], "threshold": None, "protocol": "default", "long": "windows",
                             "max_length": None, "by": [], "over_refusal": [], "training": None, "training_layout": None,
                             "layout": None, "draws": 1000,
                             "fit_threshold": None, "calibrate": False, "fit_on": None, "save": False}

def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``harmaug evaluate``."""
    parser.add_argument("--model", metavar="DIR|URL", help="measure this guard, or moderations endpoint, on FILE; no run folder")
    parser.add_argument("files", nargs="*", metavar="FILE", help="with --model: further labelled files")
    parser.add_argument("--scores", nargs="+", action="extend", metavar="FILE", help="measure files with columns label and score; no model")
    parser.add_argument("--baseline", action="append", metavar="DIR|URL|FILE",
                        help="compare with this one, or with scores of the same rows; may be repeated")
    parser.add_argument("--threshold", type=float, metavar="N", help="flagged from here on (default: 0.5)")
    parser.add_argument("--protocol", metavar="NAME", help="default, or harmaug-2024: as the paper's code counts")
    parser.add_argument("--long", metavar="MODE", help="windows (default), truncate or error")
    parser.add_argument("--max-length", type=int, metavar="N", help="tokens read at once (default: the model's)")
    parser.add_argument("--by", action="append", metavar="COLUMN", help="slices by a column, or by length")
    parser.add_argument("--over-refusal", action="append", metavar="SET",
                        help="a set of needless refusals besides those that are known: reported apart")
    parser.add_argument("--layout", metavar="NAME|MAPPING",
                        help="of the files: a name of `harmaug data list`, or columns as in prompt=text,label=toxic,unsafe=yes")
    parser.add_argument("--training", metavar="FILE", help="count evaluation rows that are in FILE, or near its rows")
    parser.add_argument("--training-layout", metavar="NAME|MAPPING", help="of that FILE, as --layout (default: harmaug's own)")
    parser.add_argument("--draws", type=int, metavar="N", help="bootstrap draws (default: 1000; 0: none)")
    parser.add_argument("--fit-threshold", metavar="TARGET", help="fit one first: f1, fpr=0.05 or recall=0.95")
    parser.add_argument("--calibrate", action="store_true",
                        help="fit a temperature first; without --fit-threshold a threshold for the guard's target, else f1, too")
    parser.add_argument("--fit-on", action="append", metavar="FILE",
                        help="rows to fit on; may be repeated (default: those that are measured)")
    parser.add_argument("--save", action="store_true", help="write what was fitted into the guard's thresholds.json")
    parser.add_argument("--gate", action="append", metavar="CONDITIONS",
                        help="such as 'auprc>=0.8,xstest:fpr<=0.1': status 1 on failure; may be repeated")
    parser.add_argument("--junit", metavar="FILE", help="write the gates' results as JUnit XML")


def evaluate_files(args: argparse.Namespace, open_guard: Callable[..., Any]) -> dict[str, Any]:
    """Return the report that ``harmaug evaluate --model`` or ``--scores`` asks for; `open_guard` opens a name."""
    gates = _gates(args)
    fits = args.fit_threshold is not None or args.calibrate
    if args.fit_on and not fits:
        raise ValueError("--fit-on needs --fit-threshold or --calibrate")
    servers = filter(_is_url, [args.model or "", *(args.baseline or ())])
    for reason in [*["beside --scores: no text is read"] * bool(args.scores), *(f"for {url}: the server reads as it does" for url in servers)]:
        for name in ("long", "max_length", "dtype"):
            if getattr(args, name, None) is not None:
                raise ValueError(f"--{name.replace('_', '-')} makes no sense {reason}")
    for name, value in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    one_of("--protocol", args.protocol, evaluate.PROTOCOLS)
    threshold = 0.5 if args.threshold is None else args.threshold
    if args.draws < 0:
        raise ValueError(f"--draws must be >= 0, got {args.draws}")
    if not math.isfinite(threshold):
        raise ValueError(f"--threshold must be a finite number, got {threshold}")
    if args.model and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], as a guard's scores are, got {threshold}")
    if args.training_layout and not args.training:
        raise ValueError("--training-layout needs --training")
    if args.save and not (args.model and Path(args.model).is_dir() and fits):
        raise ValueError("--save needs --model with the folder of a guard, and --fit-threshold or --calibrate")
    rules = evaluate.PROTOCOLS[args.protocol]
    if args.model and fits and rules.max_length is not None and args.long != "truncate":
        raise ValueError(f"protocol {rules.name} cuts long rows: fit as it reads them, with --long truncate")
    files = [file for file in (args.config, *args.files) if file]
    layout = datasets.parse_layout(args.layout) if args.layout and "=" in args.layout else args.layout
    reading: dict[str, Any] = {"protocol": args.protocol, "layout": layout}
    about: dict[str, Any] = {}
    training = None
    if args.scores:
        if args.model or args.training:
            raise ValueError("--scores stands for a model: --model and --training make no sense beside it")
        guard, files = None, [*args.scores, *files]
        measured = _read_scores(files, by=args.by, **reading)
    else:
        if not files:
            raise ValueError("harmaug evaluate --model needs a labelled FILE")
        names = [*_named(files), "mean"]
        for gate in gates:      # before the work
            gate.check_name(names)
        guard = _open(args.model, args, open_guard)
        if args.training:
            rows = datasets.read(datasets.resolve(args.training), args.training_layout)
            training = evaluate.contamination(rows)
            about["training"] = {"file": args.training, "sha256": runs.sha256(datasets.resolve(args.training)), "rows": len(rows)}
    fitted = _fit(args, guard, files, reading) if fits else None
    if guard is not None:
        about["model"] = {"name": args.model, "sha256": _sha256_of(args.model)}     # with the threshold that is saved
        measured = evaluate.score_sets(guard, _named(files), by=args.by, training=training, **reading)
    if fitted is not None and fitted["temperature"] != 1 and not hasattr(guard, "set_threshold"):
        from harmaug.thresholds import calibrate

        measured = [dataclasses.replace(part, scores=calibrate(part.scores, fitted["temperature"])) for part in measured]
    baselines = {}
    for name in args.baseline:
        if Path(name).is_file():
            found = evaluate.read_scores(name, protocol=args.protocol, layout=layout if args.scores else None)
            if len(found) == len(measured) == 1:        # whatever its name
                found = [dataclasses.replace(found[0], name=measured[0].name)]
        elif guard is None:
            raise ValueError(f"--baseline {name}: {'must be a file' if Path(name).exists() else 'no such file'} of scores of the same rows, as --scores")
        else:
            found = evaluate.score_sets(_open(name, args, open_guard), _named(files), **reading)
        baselines[name] = found
    known = fitted["threshold"] if fitted else guard.threshold if guard and getattr(guard, "thresholds", None) else None
    apart = [*args.over_refusal, *(part.name for part in measured if evaluate.is_over_refusal(part))]
    report = evaluate.summarise(measured, threshold=threshold, fitted=known, draws=args.draws, seed=args.seed or 0,
                                protocol=args.protocol, over_refusal=apart, baselines=baselines)
    return report | about | ({"fitted": fitted} if fitted else {})


def refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that the evaluation of a run folder does not look at."""
    for name in (*_DEFAULTS, "files"):
        value = getattr(args, name)
        if value is not None and value is not False and value != []:
            option = "a second FILE" if name == "files" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} needs --model or --scores; the settings of a run stand in its CONFIG")
    _gates(args)


def check_gates(args: argparse.Namespace, report: Mapping[str, Any], say: Callable[[str], None]) -> int:
    """Hold a report against ``--gate``, write ``--junit``, and return the exit status.

    Figures at a threshold are those at the fitted one, where there is one, unless ``--threshold`` is given.
    """
    from harmaug.thresholds import junit

    gates = _gates(args)
    results = [(gate, *found) for gate in gates for found in gate.check(report, fitted=args.threshold is None)]
    unseen = [name for name in report["over_refusal"] if name not in {gate.dataset for gate in gates}]
    if gates and unseen:
        say(f"no gate looks at the over-refusal set {unseen[0]}: one that does names it, as in '{unseen[0]}:fpr<=0.1'")
    if args.junit:
        Path(args.junit).write_bytes(junit(results))
    for gate, name, problem in results:
        if problem:
            say(f"gate {gate.text} failed for {name}: {problem}")
    return int(any(problem for *_, problem in results))


def _gates(args: argparse.Namespace) -> list[Any]:
    from harmaug.thresholds import parse_gates

    if args.junit is not None and args.gate is None:
        raise ValueError("--junit needs --gate")
    return [gate for text in args.gate or () for gate in parse_gates(text)]


def _sha256_of(model: str) -> str | None:
    """Of a guard's folder; None of what is elsewhere."""
    from harmaug.teacher import STANDIN, standin_folder

    try:
        return runs.sha256(standin_folder() if model == STANDIN else models.resolve(model))
    except FileNotFoundError:
        return None


def _fit(args: argparse.Namespace, guard: Any, files: Sequence[str], reading: Mapping[str, Any]) -> dict[str, Any]:
    """Fit temperature and threshold, hand them to the guard, and save them where that is asked for."""
    import numpy as np

    from harmaug import thresholds

    target, chosen = args.fit_threshold, args.fit_on or files
    if target is None:      # --calibrate alone
        target = getattr(guard, "thresholds", {}).get("target", "f1")
    about: dict[str, Any] = {"fitted_on": [{"file": str(file), "sha256": evaluate.sha256_of(datasets.resolve(file))} for file in chosen]}
    if not args.fit_on:
        about["note"] = "fitted on the rows that are measured: the figures at it flatter"
    own = hasattr(guard, "log_odds")
    if guard is None:
        parts = _read_scores(chosen, **reading)
    else:
        parts = evaluate.score_sets(_LogOdds(guard) if own else guard, _named(chosen), **reading)
    labels, scores = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores"))
    temperature = float(getattr(guard, "temperature", 1))
    if args.calibrate:
        for part in parts if not own else ():
            if part.scores.min() < 0 or part.scores.max() > 1:
                raise ValueError(f"{part.cohort['file']}, set {part.name}: --calibrate needs scores in [0, 1]")
        temperature = thresholds.fit_temperature(labels, scores if own else thresholds.log_odds(scores))
    if own:
        scores = np.exp(-np.logaddexp(0, -scores / temperature)).astype(np.float32)     # as the guard computes them
    elif temperature != 1:
        scores = thresholds.calibrate(scores, temperature)
    found = dataclasses.asdict(thresholds.fit_threshold(labels, scores, target, draws=args.draws, seed=args.seed or 0,
                                                        protocol=args.protocol))
    threshold = found.pop("threshold")
    if not evaluate.PROTOCOLS[args.protocol].tie_unsafe:
        about["protocol"] = args.protocol
    if hasattr(guard, "set_threshold"):
        guard.set_threshold(_of_guard(threshold, scores, args.protocol), temperature=temperature, **found, **about)
    if args.save:
        if not hasattr(guard, "thresholds"):
            raise ValueError(f"{args.model}: this model keeps no threshold")
        write_thresholds(Path(args.model), guard.thresholds)
    return {"threshold": threshold, "temperature": temperature, **found, **about}


def _of_guard(threshold: float, scores: Any, protocol: str) -> float:
    """The threshold at which a guard, which flags a score that equals it, flags of these scores what the protocol does."""
    import numpy as np

    limit = np.float32(threshold)
    if evaluate.PROTOCOLS[protocol].tie_unsafe or not ((scores == limit).any() or limit < 0):
        return threshold
    if limit >= 1:
        raise ValueError(f"protocol {protocol}: no threshold of a guard gives it: {int((scores == limit).sum())} rows have the score {limit:g}, which it flags")
    return max(0.0, float(np.nextafter(limit, np.float32(np.inf))))


def _open(name: str, args: argparse.Namespace, open_guard: Callable[..., Any]) -> Any:
    if _is_url(name):
        from harmaug.teacher import as_scorer

        return as_scorer(name)
    guard = open_guard(name, long=args.long, max_length=args.max_length)
    if args.max_length is None:
        evaluate.set_length(guard, args.protocol)
    return guard


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class _LogOdds:
    """A guard whose scores are log-odds, before any temperature."""

    def __init__(self, guard: Any) -> None:
        self.score = guard.log_odds


def _named(files: Iterable[str]) -> dict[str, str]:
    files = list(files)
    twice = next((file for file in files if files.count(file) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice}: given twice")
    stems = [data.stem(file) for file in files]
    return {stem if stems.count(stem) == 1 else file: file for stem, file in zip(stems, files)}


def _read_scores(files: Iterable[str], by: Sequence[str] = (), **options: Any) -> list[evaluate.ScoredSet]:
    sets = [part for file in files for part in evaluate.read_scores(file, by=by, **options)]
    for column in by:
        evaluate.check_column(column, (value for part in sets for value in part.groups[column]))
    return sets
