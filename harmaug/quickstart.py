"""The whole job on embedded data and small real models: does augmentation help a small student here? The numbers are printed as they are."""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

MODELS = ("minilm", "smollm2")
TOKENS = 64                 # length of the prompt that FLOPs are stated for
_LAYERS = (0, 2, 4)
_VALIDATION = 0.2           # of the seed rows: they choose steps and thresholds
_MINUTES = {"avx512": 5, "avx2": 12}


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Sizes of the quick start.

    Parameters
    ----------
    samples, benign : int
        Harmful and look-alike samples that are asked for.
    responses : int
        Instructions that get a refusing and a compliant response, of 40 tokens at most.
    steps : int
        Training steps of each student.
    seed : int

    Raises
    ------
    ValueError
        If a field is outside its range.
    """

    samples: int = 800
    benign: int = 400
    responses: int = 100
    steps: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("samples", 1), ("benign", 0), ("responses", 0), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")


def quickstart(out: str | os.PathLike[str] = "harmaug-quickstart", config: QuickstartConfig | None = None, *, n_threads: int | None = None,
               offline: bool = False, allow_mixed: bool = False, quiet: bool = False, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Run the quick start and return what metrics.json holds.

    Parameters
    ----------
    out : path
        Run folder; the same call goes on where an earlier one stopped.
    config : QuickstartConfig, optional
    n_threads : int, optional
        Changes no result.
    offline : bool, default False
        Never use the network: models that are not here are an error.
    allow_mixed : bool, default False
        See RunFolder.
    quiet : bool, default False
        No progress bars.
    tell : callable
        Gets the lines that a person reads.

    Returns
    -------
    dict
        schema_version, systems (teacher, student with, student without augmentation), comparison, stages.
    """
    config = config or QuickstartConfig()
    _announce(out, offline, tell)
    folders = _models(offline, tell)

    from harmaug import pipeline, safety, teacher
    from harmaug.augment import AugmentConfig
    from harmaug.data import read_rows
    from harmaug.distill import DistillConfig, split_validation
    from harmaug.guard import Guard
    from harmaug.respond import RespondConfig
    from harmaug.runs import RunFolder, sha256

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

    with RunFolder(out, allow_mixed=allow_mixed) as run:
        shown = [seeds[i] for i in training]
        unseen = [*held_out, *(seeds[i] for i in validation)]   # neither shown to the generator nor resembled by what it writes
        of_generator: dict[str, Any] = {"models": {"smollm2": hashes["smollm2"]}, "batch_size": 48, "quiet": quiet}
        recipe = AugmentConfig(samples=config.samples, benign=config.benign, seed=config.seed)
        _tell(tell, "augment", pipeline.augment(run, load_generator, shown, config=recipe, evaluation_rows=unseen, **of_generator))
        # the paper's pairs, said plainly: short compliant texts of a 135M model, none to CBRNE rows
        answers = RespondConfig(responses="pairs", max_new_tokens=40, limit=config.responses, seed=config.seed)
        _tell(tell, "respond", pipeline.respond(run, load_generator, config=answers, **of_generator))
        standin = teacher.standin_folder()
        _tell(tell, "label", pipeline.label(run, lambda: teacher.GuardTeacher.from_pretrained(teacher.STANDIN, **options), seeds, name=teacher.STANDIN,
                                            models={teacher.STANDIN: sha256(standin), "minilm": hashes["minilm"]}, quiet=quiet))
        labelled = read_rows(run / pipeline.LABELLED)
        chosen = [labelled[i] for i in validation]
        without = [labelled[i] for i in training]
        recipe_of_student = DistillConfig(student=str(folders["minilm"]), layers=_LAYERS, new_head=True, lr=2e-4, warmup_steps=10, weight_decay=0.01, batch_size=32,
                                          max_steps=config.steps, eval_every=max(config.steps // 5, 1), max_length=128, seed=config.seed, n_threads=n_threads or 0)
        guards: dict[str, Any] = {}
        for name, stage, folder, rows in (("student with", "distil", "guard", without + labelled[len(seeds):]),
                                          ("student without", "distil_without", "guard_without", without)):
            tell(f"train the {name} augmentation: {len(rows)} rows, {config.steps} steps")
            pipeline.distil(run, rows, config=recipe_of_student, validation_rows=chosen, models={"minilm": hashes["minilm"]}, name=stage, folder=folder, quiet=quiet)
            guards[name] = run / folder
        systems = {"teacher": teacher.GuardTeacher.from_pretrained(teacher.STANDIN, **options).guard,
                   **{name: Guard.from_pretrained(folder, **options) for name, folder in guards.items()}}
        sizes = {"teacher": weights_mb(standin) + (weights_mb(folders["minilm"]) if (standin / "adapter_config.json").exists() else 0.0),
                 **{name: weights_mb(folder) for name, folder in guards.items()}}
        report = _measure(systems, sizes, held_out, chosen)
        return _finish(run, report, time.monotonic() - begun, tell)


def _announce(out: str | os.PathLike[str], offline: bool, tell: Callable[[str], None]) -> None:
    from harmaug import _C, models

    tell("harmaug quickstart: from 300 labelled rows to a measured guard, with small real models")
    missing = [name for name in MODELS if models.show(name)["path"] is None]
    size = sum(models.REGISTRY[name].wheel_size for name in missing) / 1e6
    isa = _C.build_info()["cpu_isa"]
    minutes = next((minutes for name, minutes in _MINUTES.items() if isa.startswith(name)), None)
    takes = f"at most {minutes} minutes on 2 cores with {isa}" if minutes else f"well over 12 minutes ({isa} instructions only)"
    tell(f"download {size:.0f} MB ({', '.join(missing)})" if missing and not offline else f"download nothing{'' if missing else ': the models are here'}")
    tell(f"then {takes}; everything goes into {out}, and the same command goes on where it was stopped")


def _models(offline: bool, tell: Callable[[str], None]) -> dict[str, Path]:
    from harmaug import models

    return {name: models.resolve(name, download=not offline, tell=tell) for name in MODELS}


def _tell(tell: Callable[[str], None], stage: str, account: Mapping[str, Any]) -> None:
    from harmaug import pipeline

    tell(f"{stage}: {pipeline.describe(stage, account)}")


def weights_mb(folder: str | os.PathLike[str]) -> float:
    """Return the size of a folder's weights in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6


def bert_flops(config: Mapping[str, Any], tokens: int = TOKENS) -> float:
    """Return the floating-point operations of one forward pass of a BERT classifier, counted from its shapes.

    Parameters
    ----------
    config : mapping
        hidden_size, intermediate_size and num_hidden_layers, as in config.json.
    tokens : int, default 64

    Returns
    -------
    float
        2 per weight of a linear layer and token, and 4 hidden_size tokens^2 a layer for the scores and the sum of attention.
        Norms, activations and embeddings are left out.
    """
    hidden, intermediate, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    linear = 4 * hidden * hidden + 2 * hidden * intermediate
    return float(layers * (2 * linear * tokens + 4 * hidden * tokens * tokens) + 2 * (hidden * hidden + 2 * hidden))


def _measure(systems: Mapping[str, Any], sizes: Mapping[str, float], held_out: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    from harmaug import evaluate

    labels = np.array([row.hard_label for row in held_out])
    chosen = np.array([row.hard_label for row in validation])
    results: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for name, guard in systems.items():
        scores[name] = np.asarray(guard.score([row.prompt for row in held_out], [row.response for row in held_out]))
        fitted = evaluate.best_f1_threshold(chosen, guard.score([row.prompt for row in validation], [row.response for row in validation]))
        entry = evaluate.metrics(labels, scores[name])
        entry["auprc_interval"] = evaluate.bootstrap(labels, scores[name])
        entry["at_validation_threshold"] = evaluate.metrics(labels, scores[name], fitted)
        results[name] = {**entry, "gflops": bert_flops(guard.config) / 1e9, "mb": sizes[name], "ms": milliseconds(guard, [row.prompt for row in held_out])}
    difference = evaluate.paired_difference(labels, scores["student with"], scores["student without"])
    return {"schema_version": evaluate.SCHEMA_VERSION, "systems": results, "comparison": {"metric": "auprc", "of": "student with minus student without", **difference}}


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
        yield [f"{name} augmentation" if name != "teacher" else "stand-in teacher", f"{entry['auprc']:.3f}", f"{low:.3f}..{high:.3f}", f"{entry['f1'] or 0:.3f}",
               f"{entry['at_validation_threshold']['f1'] or 0:.3f}", f"{entry['gflops']:.2f}", f"{entry['mb']:.1f}", f"{entry['ms']:.2f}"]


def notes(report: Mapping[str, Any]) -> list[str]:
    """Return what must be read beside the table."""
    some = next(iter(report["systems"].values()))
    gain = report["comparison"]
    verdict = "difference within noise" if gain["within_noise"] else f"a difference beyond noise, {'for' if gain['difference'] > 0 else 'against'} augmentation"
    return [
        f"{some['n']} hand-written rows, base rate {some['base_rate']:.3f} (the AUPRC of a guard that knows nothing)",
        f"AUPRC with minus without augmentation: {gain['difference']:+.3f}, 95 % paired bootstrap interval {gain['low']:+.3f}..{gain['high']:+.3f}: {verdict}",
        f"fitted: threshold with the best F1 on validation rows. GFLOPs of a {TOKENS}-token prompt, from the shapes. MB of weights. ms: median of one prompt at a time on this machine",
        "the teacher is a small stand-in trained on public labels, not a large guard; English only; not a sole safeguard",
    ]


def _finish(run: Any, report: dict[str, Any], seconds: float, tell: Callable[[str], None]) -> dict[str, Any]:
    import msgspec

    from harmaug.data import atomic_file
    from harmaug.report import report_run

    lines = list(_lines(report))
    report["tables"] = {"evaluation set": lines}
    report["notes"] = notes(report)
    report["seconds"] = round(seconds, 1)
    report["stages"] = {name: {"seconds": entry.get("seconds"), "account": entry.get("account")} for name, entry in run.info["stages"].items()}
    with atomic_file(run / "metrics.json") as file:
        file.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    run.save()
    page = report_run(run.path)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    tell("")
    for line in lines:
        tell("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))))
    for note in report["notes"]:
        tell(note)
    tell(f"{seconds:.0f} s; {run / 'metrics.json'}, {page}")
    return report
