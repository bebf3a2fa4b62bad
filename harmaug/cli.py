"""The command ``harmaug``: each verb imports what it needs when it runs.

Exit status: 0 done; 1 a check or gate failed; 2 wrong usage or bad input (one line on standard error names file and
row); 130 interrupted, resumable.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

_STAGES = {
    "augment": "sample instructions from the generator, filter them",
    "respond": "answer the instructions",
    "label": "have the teacher score all rows",
    "distil": "train the student",
    "evaluate": "measure the run's guard, or with --model another one, on labelled files",
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from harmaug.runs import machine

        here = machine()
        print(f"harmaug {here['harmaug']} ({here['cpu_isa']})")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; those of the process when None.

    Returns
    -------
    int
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    logging.basicConfig(level=logging.WARNING if getattr(args, "quiet", False) else logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return int(status or 0)
    except KeyboardInterrupt:
        again = getattr(args, "resume", None)
        _say("interrupted" + (f", nothing is lost; to go on: {shlex.join(['harmaug', *argv, *again])}" if again is not None else ""))
        return 130
    except BrokenPipeError:     # the reader had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (ValueError, OSError, ImportError, MemoryError) as exc:
        if getattr(args, "debug", False):
            raise
        _say(_message(exc))
        return 2
    except Exception as exc:
        if getattr(args, "debug", False):
            raise
        _say(f"internal error {type(exc).__name__}; --debug shows where. Please report it")
        return 2


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="harmaug", description="From a small labelled set to a measured safety guard.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show version and instruction set")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)

    quick = verbs.add_parser("quickstart", help="the whole job on embedded data and small real models")
    _common(quick, out="harmaug-quickstart")
    quick.add_argument("--samples", type=int, default=800, metavar="N", help="harmful samples to ask for (default: %(default)s)")
    quick.add_argument("--benign", type=int, default=400, metavar="N", help="benign look-alikes to ask for (default: %(default)s)")
    quick.add_argument("--responses", type=int, default=100, metavar="N", help="instructions to answer (default: %(default)s)")
    quick.add_argument("--steps", type=int, default=150, metavar="N", help="training steps of each student (default: %(default)s)")
    quick.set_defaults(run=_quickstart)

    run = verbs.add_parser("run", help="the stages that a TOML file has a table for, over a run folder")
    run.add_argument("config", metavar="CONFIG", help="TOML file; see examples/")
    run.add_argument("--data", metavar="DIR", help="where relative file names begin (default: the folder of CONFIG)")
    _common(run)
    run.set_defaults(run=_run, only=None)

    for name, what in _STAGES.items():
        stage = verbs.add_parser(name, help=what, aliases=["distill"] if name == "distil" else [])
        stage.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file (default: what RUN was begun with)")
        stage.add_argument("--data", metavar="DIR", help="where relative file names begin (default: the folder of CONFIG)")
        _common(stage)
        stage.set_defaults(run=_run, only=name)
        if name == "evaluate":
            stage.add_argument("--model", metavar="DIR", help="measure this guard, on FILE instead of CONFIG; no run folder")
            stage.add_argument("files", nargs="*", metavar="FILE", help="with --model: further labelled files")
            stage.add_argument("--threshold", type=float, default=0.5, help="with --model: flagged from here on (default: %(default)s)")

    report = verbs.add_parser("report", help="write RUN/report.html")
    _common(report)
    report.add_argument("folder", nargs="?", metavar="RUN")
    report.set_defaults(run=_report)

    score = verbs.add_parser("score", help="rows in, rows with score and flagged out, in order")
    score.add_argument("--model", required=True, metavar="DIR", help="guard folder, fetched name or \"standin\"")
    score.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSONL, JSON or CSV; - is standard input (default)")
    score.add_argument("--threshold", type=float, metavar="T", help="flagged from here on (default: the guard's own, else 0.5)")
    score.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows scored together (default: %(default)s)")
    _common(score)
    score.set_defaults(run=_score)

    if argv[:1] == ["models"]:      # its parser needs the registry; --help need not
        from harmaug.models_cli import add_models_parser, run_models

        add_models_parser(verbs)
        verbs.choices["models"].set_defaults(run=run_models)
    else:
        verbs.add_parser("models", help="list, fetch and check the pinned models")
    return parser


def _common(parser: argparse.ArgumentParser, out: str | None = None) -> None:
    parser.add_argument("--out", "--run", dest="out", metavar="RUN", default=out, help="run folder" + (f" (default: {out})" if out else ""))
    parser.add_argument("--seed", type=int, metavar="N", help="before the seeds of the configuration")
    parser.add_argument("--n-threads", type=int, metavar="N", help="threads; changes no result (default: what the machine offers)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument("--allow-mixed", action="store_true", help="resume what another instruction set, version or model began; rows are marked")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _quickstart(args: argparse.Namespace) -> int:
    args.resume = []
    from harmaug.quickstart import QuickstartConfig, quickstart

    config = QuickstartConfig(samples=args.samples, benign=args.benign, responses=args.responses, steps=args.steps, seed=args.seed or 0)
    tell = (lambda line: None) if args.quiet else (lambda line: print(line, file=sys.stderr if args.json else sys.stdout, flush=True))
    metrics = quickstart(args.out, config, n_threads=args.n_threads, offline=args.offline, allow_mixed=args.allow_mixed, quiet=args.quiet, tell=tell)
    if args.json:
        _print_json(metrics)
    return 0


def _run(args: argparse.Namespace) -> int:
    from harmaug import pipeline
    from harmaug.runs import RunFolder

    if args.only == "evaluate" and args.model:
        return _evaluate_files(args)
    if args.config is None and args.out is None:
        raise ValueError(f"harmaug {args.only} needs CONFIG, or --out RUN of a run that was begun")
    tables = pipeline.read_config(args.config) if args.config is not None else None
    out = args.out or Path("runs") / Path(args.config).stem
    if args.config is None and not (Path(out) / "run.json").is_file():
        raise ValueError(f"{out}: not a run folder: no run.json; name a CONFIG")
    with RunFolder(out, allow_mixed=args.allow_mixed) as run:
        args.resume = [] if args.out else ["--out", str(out)]
        where, data = args.config, args.data or Path(args.config or ".").parent
        if tables is None:
            begun = run.info.get("config")
            if begun is None:
                raise ValueError(f"{out}: begun without a configuration; name a CONFIG")
            tables, where, data = begun["tables"], begun["where"], args.data or begun["data"]
            args.seed = begun["seed"] if args.seed is None else args.seed
        tell = (lambda line: None) if args.quiet or args.json else (lambda line: print(line, flush=True))
        report = pipeline.run_config(run, tables, where=where, data_folder=data, seed=args.seed, n_threads=args.n_threads, only=args.only,
                                     quiet=args.quiet, tell=tell)
    from harmaug.report import report_run

    page = report_run(out)
    if args.json:
        _print_json(report)
    else:
        if "evaluate" in report:
            from harmaug.evaluate import format_table

            print(format_table(report["evaluate"]))
        print(f"run folder {out}, report {page}")
    return 0


def _evaluate_files(args: argparse.Namespace) -> int:
    from harmaug import evaluate

    files = [file for file in (args.config, *args.files) if file]
    if not files:
        raise ValueError("harmaug evaluate --model needs a labelled FILE")
    names = {(Path(file).stem if sum(Path(file).stem == Path(other).stem for other in files) == 1 else file): file for file in files}
    report = evaluate.evaluate_guard(_guard(args), names, threshold=args.threshold)
    if args.json:
        _print_json(report)
    else:
        print(evaluate.format_table(report))
    return 0


def _report(args: argparse.Namespace) -> int:
    from harmaug.report import report_run

    folder = args.folder or args.out
    if folder is None:
        raise ValueError("harmaug report needs a run folder")
    page = report_run(folder)
    print(json.dumps({"report": str(page)}) if args.json else page)
    return 0


def _score(args: argparse.Namespace) -> int:
    from harmaug import score

    threshold = args.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {threshold}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be >= 1, got {args.batch_size}")
    guard = _guard(args)
    if args.file == "-":
        score.score_stream(guard, sys.stdin.buffer, sys.stdout.buffer, name="standard input", threshold=threshold, batch_size=args.batch_size)
    else:
        if not os.path.isfile(args.file):
            raise ValueError(f"{args.file}: no such file")
        with open(args.file, "rb") as file:
            score.score_stream(guard, file, sys.stdout.buffer, name=args.file, threshold=threshold, batch_size=args.batch_size)
    return 0


def _guard(args: argparse.Namespace) -> Any:
    from harmaug.teacher import GuardTeacher

    return GuardTeacher.from_pretrained(args.model, **({} if args.n_threads is None else {"n_threads": args.n_threads})).guard


def _print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def _message(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        hint = "; free some space and run the same command again, nothing is lost" if exc.errno in (27, 28, 122) else ""     # EFBIG, ENOSPC, EDQUOT
        return (f"{exc.filename}: " if exc.filename else "") + exc.strerror + hint
    if isinstance(exc, MemoryError):
        return "out of memory"
    return str(exc) or type(exc).__name__


def _say(message: str) -> None:
    print(f"harmaug: {' '.join(message.split())}", file=sys.stderr, flush=True)
