"""The command ``harmaug``: each verb imports what it needs when it runs.

Exit status: 0 done; 1 a check or gate failed; 2 wrong usage or bad input (one line on standard error names file and
row); 130 interrupted, resumable.
"""
from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harmaug.checks import bounded, without_network

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
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):       # closed by whoever started us
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))       # noqa: SIM115 -- as long as the process
    args = argparse.Namespace()
    try:
        args = _parser(argv).parse_args(argv)
        logging.getLogger("httpx").setLevel(logging.WARNING)     # a line for each request
        logging.basicConfig(level=logging.WARNING if getattr(args, "quiet", False) else logging.INFO, format="%(message)s", stream=sys.stderr)
        with without_network() if getattr(args, "offline", False) else contextlib.nullcontext():
            status = int(args.run(args) or 0)
        _print("", end="")
        return status
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 2
    except KeyboardInterrupt:
        again = getattr(args, "resume", None)
        command = "" if again is None else shlex.join(["harmaug", *argv, *again])
        _say(f"interrupted, nothing is lost; to go on: {command}" if command else "interrupted")
        return 130
    except BrokenPipeError:     # the reader of rows or of a list had enough
        _to_nobody(sys.stdout)
        return 0
    except (ValueError, OSError, ImportError, MemoryError, OverflowError, RecursionError) as exc:
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
    for option, default, what in (("--samples", 800, "harmful samples to ask for"),
                                  ("--benign", 400, "benign look-alikes to ask for"),
                                  ("--responses", 100, "instructions to answer"),
                                  ("--steps", 150, "training steps of each student")):
        _number(quick, option, int, default, what)
    quick.set_defaults(run=_quickstart)

    for name, what in {"run": "the stages that a TOML file has a table for, over a run folder", **_STAGES}.items():
        stage = verbs.add_parser(name, help=what, aliases=["distill"] if name == "distil" else [])
        if name == "run":
            stage.add_argument("config", metavar="CONFIG", help="TOML file; see examples/")
            stage.add_argument("--sweep", action="store_true", help="run every point of the table [sweep]")
        else:
            stage.add_argument("config", nargs="?", metavar="CONFIG", help="TOML file (default: that of RUN)")
        stage.add_argument("--data", metavar="DIR", help="where relative file names begin (default: CONFIG's folder)")
        if name == "distil":
            _distil_options(stage)
        if name in ("run", "augment", "respond", "label", "distil"):
            _engine(stage, rows=name != "distil", trains=name in ("run", "distil"))
        if name in ("run", "augment", "respond", "label"):
            stage.add_argument("--dry-run", action="store_true", help="count the requests, and tokens and money at most; ask "
                               "nothing, write nothing")
        _common(stage)
        stage.set_defaults(run=_run, only=None if name == "run" else name)
    evaluate = verbs.choices["evaluate"]
    if argv[:1] == ["evaluate"]:
        from harmaug.evaluate_cli import add_options

        add_options(evaluate)

    _dtype(evaluate, "with --model: ")

    report = verbs.add_parser("report", help="write RUN/report.html")
    _common(report, run=False, threads=False)
    report.add_argument("folder", nargs="?", metavar="RUN")
    report.add_argument("--out", "--run", dest="out", metavar="RUN", help="the same")
    report.set_defaults(run=_report)

    score = verbs.add_parser("score", help="rows in, rows with score and flagged out, in order")
    score.add_argument("--model", required=True, metavar="DIR", help="guard folder, fetched name or \"standin\"")
    score.add_argument("file", nargs="?", default="-", metavar="FILE", help="JSONL, JSON, CSV or Parquet; - (default): stdin")
    _number(score, "--threshold", float, None, "flagged from here on", "the guard's own, else 0.5")
    _number(score, "--batch-size", int, 32, "rows scored together")
    _engine(score)
    _dtype(score)
    _common(score, run=False)
    score.set_defaults(run=_score)

    serve = verbs.add_parser("serve", help="the guard over HTTP: /v1/moderations, /score, /healthz")
    serve.add_argument("--model", required=True, metavar="DIR", help="guard folder, fetched name or \"standin\"")
    _dtype(serve)
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: this machine only)")
    for option, default, what, most in (("--port", 8000, "port; 0: a free one", 65535), ("--max-queue", 256, "requests that may wait", 2**31 - 1),
                                        ("--max-body", 1 << 20, "largest request in bytes", 2**53)):
        _number(serve, option, int, default, what, most=most)
    _number(serve, "--timeout", float, 30.0, "seconds for a request to arrive, and again to be scored")
    _number(serve, "--threshold", float, None, "flagged from here on", "the guard's own, else 0.5")
    _common(serve, run=False)
    serve.set_defaults(run=_serve)

    if argv[:1] == ["models"]:      # its parser needs the registry; --help need not
        from harmaug.models_cli import add_models_parser, run_models

        add_models_parser(verbs)
        verbs.choices["models"].set_defaults(run=run_models)
    else:
        verbs.add_parser("models", help="list, fetch and check the pinned models")
    if argv[:1] == ["data"]:
        from harmaug.data_cli import add_data_parser, run_data

        add_data_parser(verbs)
        verbs.choices["data"].set_defaults(run=run_data)
    else:
        verbs.add_parser("data", help="list and fetch public sets")
    return parser


def _distil_options(parser: argparse.ArgumentParser) -> None:
    for option, name, what in (("--student", "MODEL[:LAYERS]", "train this one, and each further one, instead of [distil]'s, and compare their costs"),
                               ("--shape", "NAME", "with --student: a further row, of a published shape such as llama-3-8b"),
                               ("--replay", "FILE|RUN", "with --from: old rows to replay")):
        parser.add_argument(option, action="append", default=[], metavar=name, help=f"{what}; may be repeated")
    parser.add_argument("--teacher", metavar="MODEL", help="with --student: the first row (default: [label]'s teacher)")
    parser.add_argument("--int8", action="store_true", help="with --student: also in int8, unless the change is too large (status 1)")
    parser.add_argument("--from", dest="from_guard", metavar="GUARD", help="go on from this guard: continual fine-tuning")


def _with_options(args: argparse.Namespace, tables: dict[str, Any]) -> dict[str, Any]:
    """The tables, with what ``harmaug distil`` was told by options."""
    if args.only != "distil":
        return tables
    if args.from_guard and args.student:
        raise ValueError("--from and --student: one trains a guard on, the other several anew")
    for option, needs in (("shape", "student"), ("teacher", "student"), ("int8", "student"), ("replay", "from_guard")):
        if getattr(args, option) and not getattr(args, needs):
            raise ValueError(f"--{option} needs --{needs.removesuffix('_guard')}")
    if args.student:
        args.only = "frontier"
        given = {"students": args.student, "shapes": args.shape, "teacher": args.teacher, "int8": args.int8}
        tables = {**tables, "frontier": {**tables.get("frontier", {}), **{name: value for name, value in given.items() if value}}}
    if args.from_guard:
        replay = [os.path.abspath(place) for place in args.replay]
        tables = {**tables, "continual": {**tables.get("continual", {}), "guard": args.from_guard, **({"replay": replay} if replay else {})}}
    return tables


def _number(parser: argparse.ArgumentParser, option: str, kind: type, default: float | None, what: str,
            otherwise: str = "%(default)s", most: float = 2**31 - 1) -> None:
    parser.add_argument(option, type=bounded(kind, most), default=default, metavar="N", help=f"{what} (default: {otherwise})")


def _dtype(parser: argparse.ArgumentParser, when: str = "") -> None:
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"),
                        help=when + "storage of the weights (default: int8 where the folder holds such, else float32)")


def _engine(parser: argparse.ArgumentParser, *, rows: bool = True, trains: bool = False) -> None:
    what = ["where rows are worked on: local, ray, or ray:N for workers of N CPUs; changes no row"] if rows else []
    if trains:
        what.append("what trains the student: native, or torch, for GPUs, under torchrun for several")
    parser.add_argument("--engine", metavar="E", choices=None if rows else ("native", "torch"),
                        help="; or ".join(what) + " (default: local and native, or what CONFIG says)")


def _common(parser: argparse.ArgumentParser, out: str | None = None, *, run: bool = True, threads: bool = True) -> None:
    """Options of every verb; with `run` those of one that writes a run folder, with `threads` of one that computes."""
    if run:
        named = f" (default: {out})" if out else ""
        parser.add_argument("--out", "--run", dest="out", metavar="RUN", default=out, help="run folder" + named)
        parser.add_argument("--seed", type=int, metavar="N", help="before the seeds of the configuration")
        parser.add_argument("--allow-mixed", action="store_true", help="resume what another instruction set, version or model began; marks rows")
    if threads:
        _number(parser, "--n-threads", int, None, "threads; changes no result", "what the machine offers")
    for option, what in (("--json", "print the result as JSON"), ("--quiet", "no progress"),
                         ("--offline", "never use the network"), ("--debug", "show the traceback of an error")):
        parser.add_argument(option, action="store_true", help=what)


def _teller(quiet: bool, to: Any = None) -> Callable[[str], None]:
    """What prints the lines that a person reads, or nothing."""
    return (lambda line: None) if quiet else (lambda line: _print(line, file=to))


def _print(text: Any, **options: Any) -> None:
    """Print what a person reads; work goes on, and its exit status counts, when nobody reads any more."""
    try:
        print(text, flush=True, **options)
    except BrokenPipeError:
        _to_nobody(options.get("file") or sys.stdout)


def _to_nobody(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _quickstart(args: argparse.Namespace) -> int:
    args.resume = []
    from harmaug.quickstart import QuickstartConfig, quickstart

    config = QuickstartConfig(samples=args.samples, benign=args.benign, responses=args.responses, steps=args.steps,
                              seed=args.seed or 0)
    metrics = quickstart(args.out, config, n_threads=args.n_threads, offline=args.offline,
                         allow_mixed=args.allow_mixed, quiet=args.quiet,
                         tell=_teller(args.quiet, sys.stderr if args.json else None))
    if args.json:
        _print_json(metrics)
    return 0


def _run(args: argparse.Namespace) -> int:
    from harmaug import pipeline
    from harmaug.runs import RunFolder

    if args.only == "evaluate":
        from harmaug.evaluate_cli import refuse_unused

        if args.model or args.scores:
            for option in ("out", "data", "allow_mixed"):
                if getattr(args, option):
                    raise ValueError(f"--{option.replace('_', '-')} is for the evaluation of a run: --model and --scores write none")
            return _evaluate_files(args)
        refuse_unused(args)
    if args.config is None and args.out is None:
        raise ValueError(f"harmaug {args.only} needs CONFIG, or --out RUN of a run that was begun")
    out = args.out or Path("runs") / Path(args.config).stem
    engine = getattr(args, "engine", None)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1      # torchrun started several processes
    helps = several and os.environ.get("RANK") != "0"       # the first one alone has the run folder
    tables, where, data = ({}, "", "") if helps and engine == "torch" else _configuration(args, out)
    if args.only is None and args.sweep:
        if several or args.dry_run:
            raise ValueError(f"--sweep goes without {'torchrun' if several else '--dry-run'}, which is for one configuration")
        return _sweep(args, tables, out, data)
    if "sweep" in tables:
        raise ValueError(f"{where}: has the table [sweep]; run it with `harmaug run --sweep`")
    together = several and (engine if engine in ("native", "torch") else tables.get("distil", {}).get("engine")) == "torch"
    if together and helps:
        from harmaug.torch_processes import help_first

        help_first()
        return 0
    if getattr(args, "dry_run", False):
        return _dry_run(args, tables, out, where, data)
    with RunFolder(out, allow_mixed=args.allow_mixed) as run:
        args.resume = [] if args.out else ["--out", str(out)]
        tables = _with_options(args, tables)
        report = pipeline.run_config(run, tables, where=where, data_folder=data, seed=args.seed,
                                     n_threads=args.n_threads, engine=engine, only=args.only, quiet=args.quiet,
                                     tell=_teller(args.quiet or args.json))
        if together:
            from harmaug.torch_processes import dismiss

            dismiss()
    from harmaug.report import report_run

    page = report_run(out)
    if args.json:
        _print_json(report)
    else:
        if "evaluate" in report:
            from harmaug.evaluate import format_table

            _print(format_table(report["evaluate"]))
        if "frontier" in report:
            from harmaug.frontier import format_frontier

            _print(format_frontier(report["frontier"]))
        if "continual" in report:
            from harmaug.continual import format_continual

            _print(format_continual(report["continual"]))
        _print(f"run folder {out}, report {page}")
    if args.only == "evaluate":
        from harmaug.evaluate_cli import check_gates

        return check_gates(args, report["evaluate"], _say)
    refused = report.get("frontier", {}).get("refused", {})
    for name, reason in refused.items():
        _say(f"{name} refused: {reason}")
    return int(bool(refused))


def _configuration(args: argparse.Namespace, out: str | Path) -> tuple[dict[str, Any], str, str | Path]:
    """Return tables, their name for messages, and where relative file names begin: of CONFIG, or as the run was begun."""
    from harmaug.pipeline import read_config
    from harmaug.runs import read_info

    if args.config is not None:
        return read_config(args.config), args.config, args.data or Path(args.config).parent
    if not (Path(out) / "run.json").is_file():
        raise ValueError(f"{out}: not a run folder: no run.json; name a CONFIG")
    begun = read_info(Path(out)).get("config")
    if begun is None:
        raise ValueError(f"{out}: begun without a configuration; name a CONFIG")
    args.seed = begun["seed"] if args.seed is None else args.seed
    return begun["tables"], begun["where"], args.data or begun["data"]


def _sweep(args: argparse.Namespace, tables: dict[str, Any], out: str | Path, data: str | Path) -> int:
    from harmaug.sweep import format_summary, run_sweep

    if args.seed is not None:
        raise ValueError("--seed with --sweep: the seeds stand in [sweep]")
    args.resume = [] if args.out else ["--out", str(out)]
    table = run_sweep(out, tables, where=args.config, data_folder=data, n_threads=args.n_threads,
                      engine=args.engine, quiet=args.quiet, allow_mixed=args.allow_mixed, tell=_teller(args.quiet or args.json))
    if args.json:
        _print_json(table)
    else:
        _print(format_summary(table))
        _print(f"{Path(out) / 'sweep.jsonl'}: a line for each point; summary.jsonl: this table")
    return 0


def _dry_run(args: argparse.Namespace, tables: dict[str, Any], out: str | Path, where: str, data: str | Path) -> int:
    from harmaug import dry_run

    report = dry_run.plan(tables, out, where=where, data_folder=data, seed=args.seed, only=args.only)
    if args.json:
        _print_json(report)
    else:
        _print("\n".join(dry_run.describe(stage, found) for stage, found in report.items()))
    return 0


def _evaluate_files(args: argparse.Namespace) -> int:
    from harmaug.evaluate import format_table
    from harmaug.evaluate_cli import check_gates, evaluate_files

    report = evaluate_files(args, lambda name, **options: _guard(argparse.Namespace(**{**vars(args), "model": name}), **options))
    if args.json:
        _print_json(report)
    else:
        _print(format_table(report))
    return check_gates(args, report, _say)


def _report(args: argparse.Namespace) -> int:
    from harmaug.report import report_run

    folder = args.folder or args.out
    if folder is None:
        raise ValueError("harmaug report needs a run folder")
    page = report_run(folder)
    _print(json.dumps({"report": str(page)}) if args.json else page)
    return 0


def _score(args: argparse.Namespace) -> int:
    from harmaug import score

    threshold = args.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], got {threshold}")
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be >= 1, got {args.batch_size}")
    if args.file != "-" and not os.path.exists(args.file):
        raise ValueError(f"{args.file}: no such file")
    guard = _guard(args)
    options = {"threshold": threshold, "batch_size": args.batch_size, "engine": args.engine or "local"}
    if args.file == "-":
        score.score_stream(guard, sys.stdin.buffer, sys.stdout.buffer, name="standard input", **options)
    else:
        with open(args.file, "rb") as file:
            score.score_stream(guard, file, sys.stdout.buffer, name=args.file, **options)
    return 0


def _serve(args: argparse.Namespace) -> int:
    from harmaug.server import serve

    serve(_guard(args), host=args.host, port=args.port, name=Path(args.model).name or "harmaug", threshold=args.threshold,
          max_body=args.max_body, max_queue=args.max_queue, timeout=args.timeout)
    return 0


def _guard(args: argparse.Namespace, **options: Any) -> Any:
    from harmaug.teacher import GuardTeacher

    return GuardTeacher.from_pretrained(args.model, dtype=args.dtype, n_threads=args.n_threads, **options).guard


def _print_json(value: Any) -> None:
    import msgspec

    _print(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def _message(exc: BaseException) -> str:
    if isinstance(exc, OSError):
        text = (f"{exc.filename}: " if exc.filename else "") + exc.strerror if exc.strerror else str(exc)
        full = text.endswith(tuple(map(os.strerror, (errno.EFBIG, errno.ENOSPC, errno.EDQUOT))))
        return text + ("; free some space and run the same command again, nothing is lost" if full else "")
    if isinstance(exc, MemoryError):
        return "out of memory"
    if isinstance(exc, (OverflowError, RecursionError)):
        return f"{'a number is too large' if isinstance(exc, OverflowError) else 'nested too deeply'}: {exc}"
    return str(exc) or type(exc).__name__


def _say(message: str) -> None:
    _print(f"harmaug: {' '.join(message.split())}", file=sys.stderr)
