#!/usr/bin/env python3
"""The paper's main table, scaled down: does a student gain from generated rows, and as much as from real ones?

    python benchmarks/harmaug_small.py prepare --data DIR --work WORK       a teacher that has seen none of the students' rows
    python benchmarks/harmaug_small.py explore --data DIR --work WORK       every arm of the plan, on the data seeds for choosing
    python benchmarks/harmaug_small.py analyse                              tables into harmaug_small.md, which shows the plan
    python benchmarks/harmaug_small.py confirm --data DIR --work WORK       once, on fresh data seeds, when plan and page are committed

The plan is harmaug_small.toml (--plan): arms, rows, seeds, metric, test. Each training run is one line of harmaug_small.jsonl beside it; the command
goes on from there, so that it may be killed at any moment. Lines of other settings stay and are not shown. WORK holds the teacher and the generated
rows, both run folders of harmaug. Two processes share the work by data seeds: --shard 0/2 and --shard 1/2.
"""
from __future__ import annotations

import argparse
import collections
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harmaug import datasets, evaluate, models, pipeline, runs, safety, teacher
from harmaug.augment import AugmentConfig
from harmaug.data import (
    DataError,
    Row,
    atomic_file,
    identity,
    normalise,
    read_object,
    read_rows,
    write_json,
    write_rows,
)
from harmaug.distill import DistillConfig, Distiller, split_validation
from harmaug.eda import eda_rows
from harmaug.guard import Guard
from harmaug.respond import RespondConfig, spread
from harmaug.thresholds import fit_threshold

HERE = Path(__file__).resolve().parent
PHASES = ("explore", "confirm")
BASE = "B"
HELD_OUT_PER_PROMPT = 10        # so that held-out pairs are of several prompts


# -- the plan -----------------------------------------------------------------------------------------------------


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the plan."""


class Models(Table):
    student: str
    generator: str


class Pool(Table):
    prompts: tuple[str, ...]
    teacher_share: float
    held_out: int
    pairs: tuple[str, ...] = ()
    teacher_only: tuple[str, ...] = ()
    pairs_share: float = 0.0


class Sets(Table):
    mean: dict[str, str]
    max_length: int
    over_refusal: tuple[str, ...] = ()


class Seeds(Table):
    explore: tuple[int, ...]
    confirm: tuple[int, ...]
    init: tuple[int, ...]
    sizes: tuple[int, ...]
    validation: float


class Generation(Table):
    augment: dict[str, Any]
    respond: dict[str, Any] | None = None


class Arm(Table, omit_defaults=True):       # so that a new setting changes no digest of arms without it
    says: str
    generation: str | None = None
    file: str | None = None
    harmful: int = 0
    benign: int = 0
    pairs: int = 0
    eda: int = 0
    real: int = 0
    by_construction: bool = False
    balanced: bool = False
    distil: dict[str, Any] = {}
    sizes: tuple[int, ...] | None = None
    base: str = BASE        # the arm that its gain is told over
    confirm: bool = True


class Test(Table):
    metric: str
    differences: tuple[tuple[str, str], ...]
    recovered: tuple[str, ...] = ()
    bound: str = "F"
    goal: float = 0.0


CURVES = {"rows": "rows added", "temperature": "temperature of the generator", "exemplars": "exemplars in a prompt"}


class Plan:
    """The plan file, checked; a DataError names the table."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text(encoding="utf-8") if path.exists() else ""
        self.tables = tables = pipeline.read_config(path)
        kinds: dict[str, Any] = {"models": Models, "pool": Pool, "sets": Sets, "seeds": Seeds, "teacher": dict[str, Any], "training": dict[str, Any],
                                 "generation": dict[str, Generation], "arms": dict[str, Arm], "curves": dict[str, dict[str, tuple[str, ...]]], "test": Test}
        for name in (*tables, *kinds):
            if (name in tables) != (name in kinds):
                raise DataError(f"{path}: the table [{name}] is {'missing' if name in kinds else 'unknown'}")
        parts = {name: convert(tables[name], kind, f"{path}: [{name}]") for name, kind in kinds.items()}
        self.models, self.pool, self.sets, self.seeds, self.test = (parts[name] for name in ("models", "pool", "sets", "seeds", "test"))
        self.arms: dict[str, Arm] = parts["arms"]
        self.curves: dict[str, dict[str, tuple[str, ...]]] = parts["curves"]
        self.generation: dict[str, tuple[AugmentConfig, RespondConfig | None]] = {
            name: (convert(entry.augment, AugmentConfig, f"{path}: [generation.{name}] augment"),
                   None if entry.respond is None else convert(entry.respond, RespondConfig, f"{path}: [generation.{name}] respond"))
            for name, entry in parts["generation"].items()}
        self.teacher = convert({"student": self.models.student, **parts["teacher"]}, DistillConfig, f"{path}: [teacher]")
        self.training = {name: convert({"student": self.models.student, **parts["training"], **arm.distil}, DistillConfig, f"{path}: [arms.{name}] distil")
                         for name, arm in self.arms.items()}
        self._check()

    def _check(self) -> None:
        names = [name for pair in self.test.differences for name in pair] + [*self.test.recovered, self.test.bound, BASE]
        problems = [(arm.generation is not None and arm.generation not in self.generation, f"[arms.{name}] generation {arm.generation} is not in the plan")
                    for name, arm in self.arms.items()]
        problems += [(name not in self.arms, f"[test] there is no arm {name}") for name in names]
        problems += [(arm.base not in self.arms, f"[arms.{name}] base: there is no arm {arm.base}") for name, arm in self.arms.items()]
        problems += [(curve not in CURVES, f"[curves] {curve} is none of {', '.join(CURVES)}") for curve in self.curves]
        problems += [(name not in self.arms, f"[curves.{curve}] there is no arm {name}")
                     for curve, kinds in self.curves.items() for arms in kinds.values() for name in arms]
        problems += [(bool(set(self.seeds.explore) & set(self.seeds.confirm)), "[seeds] explore and confirm share a data seed"),
                     (not (self.seeds.sizes and self.seeds.init), "[seeds] sizes and init need a value"),
                     (not 0 < self.seeds.validation < 1, "[seeds] validation must be between 0 and 1"),
                     (self.test.metric not in ("auprc", "f1"), "[test] metric must be auprc or f1"),
                     (not set(self.sets.over_refusal) <= set(self.sets.mean), "[sets] over_refusal names a set that is not in mean")]
        for wrong, says in problems:
            if wrong:
                raise DataError(f"{self.path}: {says}")

    @property
    def results(self) -> Path:
        return self.path.with_suffix(".jsonl")

    @property
    def page(self) -> Path:
        return self.path.with_suffix(".md")

    def settings(self, arm: str) -> str:
        """Digest of all that a run of the arm depends on but its size and seeds."""
        own = {name: value for name, value in msgspec.to_builtins(self.arms[arm]).items() if name not in ("says", "sizes", "base", "confirm")}
        generation = self.tables["generation"].get(self.arms[arm].generation)
        seeds = {"sizes": self.seeds.sizes, "validation": self.seeds.validation}
        shared = {name: self.tables[name] for name in ("models", "pool", "sets", "teacher", "training")}
        return hashlib.sha256(json.dumps([own, generation, seeds, shared], sort_keys=True).encode()).hexdigest()[:16]

    def place(self, curve: str, name: str) -> float:
        """Where an arm stands on a curve: rows added, or a setting of its generation."""
        arm = self.arms[name]
        if curve == "rows":
            return arm.harmful + arm.benign + arm.pairs + arm.eda + arm.real
        return float(getattr(self.generation[arm.generation][0] if arm.generation else AugmentConfig(), curve))

    def cells(self, phase: str) -> list[tuple[int, str]]:
        """(size, arm) of every run of a phase."""
        return [(size, name) for size in self.seeds.sizes for name, arm in self.arms.items()
                if (arm.sizes is None or size in arm.sizes) and (arm.confirm or phase == "explore")]


def convert(value: Any, kind: Any, where: str) -> Any:
    """msgspec.convert that refuses unknown settings of a dataclass too."""
    known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(value)
    unknown = [name for name in value if name not in known]
    if unknown:
        raise DataError(f"{where}: no setting {unknown[0]}")
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as exc:
        raise DataError(f"{where} {exc}") from None


# -- rows ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parts:
    """The public rows, parted by prompt: the teacher's, the students', those that nobody trains on."""

    teacher: list[Row]
    students: list[Row]
    held_out: list[Row]


def part_pool(pool: Pool, folder: Path, sets: dict[str, list[Row]]) -> Parts:
    """Part the rows of the pool in an order that only their prompts decide; those of an evaluation set's prompts are left out."""
    unseen = {normalise(row.prompt) for rows in sets.values() for row in rows}
    groups: dict[str, list[Row]] = {}
    for file in (*pool.prompts, *pool.pairs):
        for row in read_rows(folder / file):
            if normalise(row.prompt) not in unseen and not safety.blocked_row(row):
                groups.setdefault(normalise(row.prompt), []).append(row)
    for kind in (False, True):
        if kind and not pool.pairs:
            break
        if not any(bool(row.response) == kind for group in groups.values() for row in group):
            raise DataError(f"[pool] {'pairs' if kind else 'prompts'}: no such row")
    order = sorted(groups, key=lambda prompt: hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest())
    pairs = round(pool.held_out * pool.pairs_share)
    wanted = {False: pool.held_out - pairs, True: pairs}
    parts = Parts([], [], [])
    for prompt in order:
        kinds = collections.Counter(bool(row.response) for row in groups[prompt])
        if all(wanted[kind] > 0 for kind in kinds):
            for row in groups[prompt][:HELD_OUT_PER_PROMPT]:
                if wanted[bool(row.response)] > 0:
                    wanted[bool(row.response)] -= 1
                    parts.held_out.append(row)
        else:
            digest = hashlib.sha256(f"side/{prompt}".encode("utf-8", "surrogatepass")).digest()
            (parts.teacher if digest[0] < 256 * pool.teacher_share else parts.students).extend(groups[prompt])
    known = unseen | groups.keys()
    for file in pool.teacher_only:
        parts.teacher.extend(row for row in read_rows(folder / file) if normalise(row.prompt) not in known and not safety.blocked_row(row))
    return parts


def draw(rows: Sequence[Row], data_seed: int, sizes: Sequence[int], real: int, pairs_share: float) -> tuple[dict[int, list[Row]], list[Row]]:
    """Return the seed rows of each size (a smaller set begins the larger one's prompts and its pairs) and as many real rows, apart from all of them."""
    kinds = {kind: sorted((row for row in rows if bool(row.response) == kind), key=identity) for kind in (False, True)}
    for kind, found in kinds.items():
        random.Random(f"{data_seed}/{kind}").shuffle(found)

    def take(n: int, skip: int = 0) -> list[Row]:
        chosen = []
        for kind, found in kinds.items():
            count, first = (round(m * pairs_share) if kind else m - round(m * pairs_share) for m in (n, skip))
            if first + count > len(found):
                raise DataError(f"data seed {data_seed}: {first + count} {'pairs' if kind else 'prompts'} are wanted, the students' part of [pool] has {len(found)}")
            chosen += found[first:first + count]
        return chosen

    return {size: take(size) for size in sizes}, take(real, max(sizes))


class Bench:
    """The experiment over a folder of data and a work folder."""

    def __init__(self, plan: Plan, data: Path, work: Path, n_threads: int | None) -> None:
        self.plan, self.data, self.work, self.n_threads = plan, data, work, n_threads
        self.sets = {name: datasets.read(data / file) for name, file in plan.sets.mean.items()}
        for name, rows in self.sets.items():
            evaluate.labels_of(rows, plan.sets.mean[name], evaluate.PROTOCOLS["default"])
        self.parts = self._part_pool()
        self.options: dict[str, Any] = {} if n_threads is None else {"n_threads": n_threads}
        self._generated: dict[tuple[str, int], list[Row]] = {}

    def _part_pool(self) -> Parts:
        """The pool's parts, kept in the work folder: the responsible-use filter takes a minute."""
        pool = self.plan.pool
        key = {"pool": self.plan.tables["pool"], "sets": self.plan.tables["sets"]["mean"],
               "files": {file: runs.sha256(self.data / file) for file in (*pool.prompts, *pool.pairs, *pool.teacher_only, *self.plan.sets.mean.values())}}
        files = {field.name: self.work / f"pool-{field.name}.jsonl" for field in dataclasses.fields(Parts)}
        about = self.work / "pool.json"
        if about.exists() and read_object(about) == key:
            return Parts(**{name: read_rows(path) for name, path in files.items()})
        parts = part_pool(pool, self.data, self.sets)
        for name, path in files.items():
            write_rows(path, getattr(parts, name))
        write_json(about, key)
        return parts

    # -- the teacher

    def prepare(self) -> None:
        """Train the teacher, and have it score every row that a student may be given."""
        student = self.plan.models.student
        with runs.RunFolder(self.work / "teacher") as run:
            config = dataclasses.replace(self.plan.teacher, n_threads=self.n_threads or 0)
            pipeline.distil(run, self.parts.teacher, config=config, models={student: runs.sha256(models.resolve(student))})
            pipeline.label(run, self._load_teacher, self.parts.students, name="teacher", models={"teacher": self.teacher_sha})
            seconds = {name: run.info["stages"][name]["seconds"] for name in ("distil", "label")}
        if not any(line["kind"] == "teacher" and line["teacher"] == self.teacher_sha for line in read_results(self.plan)):
            guard = cut(Guard.from_pretrained(self.work / "teacher" / "guard", **self.options), self.plan.sets.max_length)
            line = {"kind": "teacher", "teacher": self.teacher_sha, "rows": len(self.parts.teacher), "labelled": len(self.parts.students), "seconds": seconds,
                    **self.measure(guard, None), **versions()}
            self.record(line)
            print(f"teacher: mean AUPRC {mean_of(line, 'auprc'):.3f}, F1 at 0.5 {mean_of(line, 'f1'):.3f}", flush=True)

    @functools.cached_property
    def teacher_sha(self) -> str:
        return runs.sha256(self.work / "teacher" / "guard" / "model.safetensors")[:16]

    def _load_teacher(self) -> Any:
        guard = cut(Guard.from_pretrained(self.work / "teacher" / "guard", **self.options), self.plan.teacher.max_length)
        return teacher.CachedTeacher(teacher.GuardTeacher(guard, "teacher"), f"harmaug_small {self.teacher_sha} {self.plan.teacher.max_length}")

    @functools.cached_property
    def scored(self) -> list[Row]:
        """The students' rows with the teacher's scores."""
        path = self.work / "teacher" / pipeline.LABELLED
        if not path.is_file() or not runs.read_info(self.work / "teacher")["stages"].get("label", {}).get("done"):
            raise DataError(f"{self.work}: no teacher; run `harmaug_small.py prepare` first")
        rows = read_rows(path)
        if [identity(row) for row in rows] != [identity(row) for row in self.parts.students]:
            raise DataError(f"{path}: labelled another pool; run `harmaug_small.py prepare` in another work folder")
        return rows

    # -- generation

    def generate(self, name: str, data_seed: int, seeds: Sequence[Row], unseen: Sequence[Row]) -> list[Row]:
        """Return the teacher's labels of what the generator makes of seed rows."""
        from harmaug.generator import CausalLM

        if (name, data_seed) in self._generated:
            return self._generated[name, data_seed]
        augment, respond = self.plan.generation[name]
        model = models.resolve(self.plan.models.generator)
        options: dict[str, Any] = {"models": {self.plan.models.generator: runs.sha256(model)}, "batch_size": 48}

        def load() -> CausalLM:
            return CausalLM.from_pretrained(model, **self.options)

        with runs.RunFolder(self.work / f"{name}-{data_seed}") as run:
            pipeline.augment(run, load, seeds, config=dataclasses.replace(augment, seed=data_seed), evaluation_rows=unseen, **options)
            if respond is not None:
                pipeline.respond(run, load, config=dataclasses.replace(respond, seed=data_seed), **options)
            account = pipeline.label(run, self._load_teacher, [], name="teacher", models={"teacher": self.teacher_sha})
            accounts = run.accounts()
        key = {"kind": "generation", "generation": name, "data_seed": data_seed, "teacher": self.teacher_sha,
               "settings": hashlib.sha256(json.dumps([self.plan.tables["generation"][name], self.plan.tables["models"]]).encode()).hexdigest()[:16]}
        if not any(key.items() <= line.items() for line in read_results(self.plan)):
            counts = {stage: entry["account"].get("kept", account["rows"]) for stage, entry in accounts.items()}
            self.record({**key, "rows": counts, "asked": accounts["augment"]["account"]["asked"], "flagged": account["flagged"],
                         "seconds": {stage: entry["seconds"] for stage, entry in accounts.items()}, **versions()})
        self._generated[name, data_seed] = read_rows(self.work / f"{name}-{data_seed}" / pipeline.LABELLED)
        return self._generated[name, data_seed]

    # -- one run

    @functools.lru_cache(maxsize=1)
    def rows(self, name: str, size: int, data_seed: int) -> tuple[list[Row], list[Row]]:
        """Return an arm's training rows, and the seed rows that choose its threshold."""
        arm, plan = self.plan.arms[name], self.plan
        real = max(other.real for other in plan.arms.values())
        drawn, further = draw(self.scored, data_seed, plan.seeds.sizes, real, plan.pool.pairs_share)

        def halves(n: int) -> tuple[list[Row], list[Row]]:
            kept, held = split_validation(drawn[n], plan.seeds.validation, data_seed)
            return [drawn[n][i] for i in kept], [drawn[n][i] for i in held]

        training, validation = halves(size)
        added: list[Row] = []
        if arm.generation is not None:
            smallest = min(plan.seeds.sizes)
            unseen = [*(row for rows in self.sets.values() for row in rows), *self.parts.held_out,
                      *(row for n in plan.seeds.sizes for row in halves(n)[1])]
            added += chosen(self.generate(arm.generation, data_seed, halves(smallest)[0], unseen), arm, f"arm {name}, data seed {data_seed}")
        if arm.file:
            found = read_rows(self.work / arm.file)[:arm.harmful]
            if len(found) < arm.harmful:
                raise DataError(f"{self.work / arm.file}: {len(found)} rows, arm {name} wants {arm.harmful}")
            added += self._score(found)
        if arm.eda:
            varied = eda_rows(training, data_seed, per_row=math.ceil(1.5 * arm.eda / len(training)))
            if len(varied) < arm.eda:
                raise DataError(f"arm {name}, data seed {data_seed}: {len(varied)} EDA rows, {arm.eda} are wanted")
            added += self._score(spread(varied, arm.eda))
        added += take_real(further, arm.real, real, plan.pool.pairs_share)
        return training + added, validation

    def _score(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with the teacher's scores."""
        scores = self._load_teacher().score([row.prompt for row in rows], [row.response for row in rows])
        return [msgspec.structs.replace(row, unsafe_score=float(score), soft_label=None) for row, score in zip(rows, scores)]

    def run(self, name: str, size: int, data_seed: int, init_seed: int) -> dict[str, Any]:
        """Train one student and return what is recorded of it."""
        training, validation = self.rows(name, size, data_seed)
        config = dataclasses.replace(self.plan.training[name], seed=1000 * data_seed + init_seed, n_threads=self.n_threads or 0)
        begun, worked = time.monotonic(), time.process_time()
        fitted = Distiller(config).fit(training, [], progress=False)
        seconds, cpu_seconds = time.monotonic() - begun, time.process_time() - worked
        guard = cut(fitted.guard_, self.plan.sets.max_length)
        labels = [row.hard_label for row in validation]
        scores = guard.score([row.prompt for row in validation], [row.response for row in validation])
        threshold = fit_threshold(labels, scores, draws=0).threshold if 0 < sum(labels) < len(labels) else None
        return {"rows": len(training), "unsafe": sum(row.hard_label == 1 for row in training), "steps": fitted.n_steps_, "threshold": threshold,
                "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1), **self.measure(guard, threshold)}

    def measure(self, guard: Guard, threshold: float | None) -> dict[str, Any]:
        """AUPRC, F1 and false-positive rate at 0.5 and at the threshold, of each set and of the held-out rows."""
        found = {}
        for part in evaluate.score_sets(guard, {**self.sets, "held out": self.parts.held_out}):
            at_half = evaluate.metrics(part.labels, part.scores)
            entry = {name: at_half[name] for name in ("auprc", "f1", "fpr", "recall")}
            if threshold is not None:
                fitted = evaluate.metrics(part.labels, part.scores, threshold)
                entry |= {f"{name}_fitted": fitted[name] for name in ("f1", "fpr", "recall")}
            found[part.name] = {name: None if value is None else round(value, 6) for name, value in entry.items()}
        return {"held_out": found.pop("held out"), "sets": found}

    def record(self, line: dict[str, Any]) -> None:
        """Append a line; one process at a time."""
        with open(self.work / "results.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = runs.RowFile(self.plan.results)
            try:
                file.append(line)
            finally:
                file.close()


def chosen(rows: Sequence[Row], arm: Arm, where: str) -> list[Row]:
    """Return the generated rows of an arm: the first instructions of each kind, and responses to those, spread over them."""
    found: list[Row] = []
    for kind, n in (("harmful", arm.harmful), ("benign", arm.benign)):
        these = [row for row in rows if row.extra.get("kind") == kind][:n]
        if len(these) < n:
            raise DataError(f"{where}: {len(these)} {kind} rows were kept, {n} are wanted; ask for more in [generation.{arm.generation}]")
        found += [msgspec.structs.replace(row, label=0, unsafe_score=None) for row in these] if kind == "benign" and arm.by_construction else these
    known = {row.id for row in found}
    pairs = [row for row in rows if row.extra.get("instruction") in known]
    if len(pairs) < arm.pairs:
        raise DataError(f"{where}: {len(pairs)} responses to its instructions were kept, {arm.pairs} are wanted; ask for more in [generation.{arm.generation}]")
    if not arm.balanced:
        return found + spread(pairs, arm.pairs)
    flagged, others = ([row for row in pairs if (row.hard_label == 1) == kind] for kind in (True, False))
    n = max(min(len(flagged), arm.pairs // 2), arm.pairs - len(others))
    return found + spread(flagged, n) + spread(others, arm.pairs - n)


def take_real(rows: Sequence[Row], n: int, of: int, pairs_share: float) -> list[Row]:
    """Return n real rows, such that a smaller number begins a larger one's prompts and its pairs."""
    prompts, pairs = rows[:of - round(of * pairs_share)], rows[of - round(of * pairs_share):]
    k = round(n * pairs_share)
    return [*prompts[:n - k], *pairs[:k]]


def cut(guard: Guard, max_length: int) -> Guard:
    """The guard, that now cuts rows to max_length tokens, or as many as it reads."""
    guard.max_length, guard.long = min(max_length, guard.config["max_tokens"]), "truncate"
    return guard


def versions() -> dict[str, str]:
    here = runs.machine()
    return {name: here[name] for name in ("harmaug", "cpu_isa")}


def read_results(plan: Plan) -> list[dict[str, Any]]:
    """Return the lines of the results file; a torn last one is left out."""
    lines = plan.results.read_bytes().splitlines(keepends=True) if plan.results.exists() else []
    return [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]


def run_phase(bench: Bench, phase: str, arguments: argparse.Namespace) -> None:
    """Make the runs of a phase that are not recorded yet."""
    plan = bench.plan
    bench.scored        # fails now rather than late
    commit = committed(plan) if phase == "confirm" else None
    part, parts = (int(n) for n in arguments.shard.split("/"))
    seeds = [seed for i, seed in enumerate(getattr(plan.seeds, phase)) if i % parts == part]
    cells = [(size, name) for size, name in plan.cells(phase) if name in (arguments.arms or plan.arms) and size in (arguments.sizes or plan.seeds.sizes)]
    jobs = [{"kind": "run", "phase": phase, "arm": name, "size": size, "data_seed": data_seed, "init_seed": init_seed, "settings": plan.settings(name),
             "teacher": bench.teacher_sha} for data_seed in seeds for size, name in cells
            for init_seed in plan.seeds.init if init_seed in (arguments.inits or plan.seeds.init)]
    done = read_results(plan)
    left = [job for job in jobs if not any(job.items() <= line.items() for line in done)]
    print(f"{phase}: {len(jobs)} runs, {len(jobs) - len(left)} done", flush=True)
    for i, job in enumerate(left):
        found = bench.run(job["arm"], job["size"], job["data_seed"], job["init_seed"])
        line = {**job, **found, **({"commit": commit} if commit else {}), **versions()}
        bench.record(line)
        print(f"{i + 1}/{len(left)} data seed {job['data_seed']}, init {job['init_seed']}, {job['size']} rows, {job['arm']}: {found['rows']} rows, "
              f"mean AUPRC {mean_of(line, 'auprc'):.3f}, F1 {mean_of(line, 'f1'):.3f}, {found['cpu_seconds']:.0f} CPU s", flush=True)


def committed(plan: Plan) -> str:
    """Return the commit that holds the plan, the page that shows it, and this program, as they stand; a DataError says what it lacks."""
    if f"```toml\n{plan.text}```" not in (plan.page.read_text(encoding="utf-8") if plan.page.exists() else ""):
        raise DataError(f"{plan.page}: does not show the plan; run `harmaug_small.py analyse` and commit it")
    for path in (plan.path, plan.page, Path(__file__)):
        for command in (["ls-files", "--error-unmatch"], ["diff", "--quiet", "HEAD", "--"]):
            if subprocess.run(["git", "-C", str(path.parent), *command, path.name], capture_output=True).returncode:
                raise DataError(f"{path}: not committed as it stands; the plan comes before the confirming run")
    others = {line["settings"] for line in read_results(plan) if line.get("phase") == "confirm"} - {plan.settings(name) for name in plan.arms}
    if others:
        raise DataError(f"{plan.results}: the confirming run was begun under another plan; it is made once")
    head = subprocess.run(["git", "-C", str(plan.path.parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip()[:16]


# -- analysis -----------------------------------------------------------------------------------------------------


def mean_of(line: dict[str, Any], metric: str, sets: Iterable[str] | None = None) -> float:
    """Mean of a metric over evaluation sets; what a set cannot give counts as missing."""
    values = [line["sets"][name].get(metric) for name in sets or line["sets"]]
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else math.nan


class Results:
    """The runs of one phase and size: for each arm and data seed the mean over init seeds."""

    def __init__(self, plan: Plan, lines: Sequence[dict[str, Any]], phase: str, size: int) -> None:
        self.plan = plan
        self.arms: dict[str, dict[int, list[dict[str, Any]]]] = {}
        for name in plan.arms:
            for line in lines:
                if (line["phase"], line["size"], line["arm"]) == (phase, size, name):
                    self.arms.setdefault(name, {}).setdefault(line["data_seed"], []).append(line)

    def by_seed(self, arm: str, measure: Any) -> dict[int, float]:
        return {seed: float(np.mean([measure(line) for line in lines])) for seed, lines in self.arms.get(arm, {}).items()}

    def gains(self, arm: str, base: str, metric: str) -> dict[int, float]:
        """Difference of the mean metric by data seed, over the init seeds that both have."""
        found = {}
        for seed, lines in self.arms.get(arm, {}).items():
            others = {line["init_seed"]: line for line in self.arms.get(base, {}).get(seed, [])}
            both = [mean_of(line, metric) - mean_of(others[line["init_seed"]], metric) for line in lines if line["init_seed"] in others]
            if both:
                found[seed] = float(np.mean(both))
        return found


def t_test(gains: Iterable[float]) -> tuple[float, float, float, float]:
    """Mean, 95 % interval and two-sided p of a mean over seeds (Student's t)."""
    from scipy.stats import t

    values = np.array(list(gains))
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else math.nan), math.nan, math.nan, math.nan
    error = values.std(ddof=1) / math.sqrt(n)
    half = t.ppf(0.975, n - 1) * error
    p = 2 * t.sf(abs(values.mean()) / error, n - 1) if error > 0 else float(values.mean() == 0)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half), float(p)


def holm(ps: Sequence[float], planned: int) -> list[float]:
    """Adjusted p values (Holm 1979) of a family of `planned` tests, of which those that are not made yet count as 1."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, highest = [math.nan] * len(ps), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, (planned - place) * ps[i]))
        adjusted[i] = highest
    return adjusted


def ratio_interval(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Mean(x) / mean(y) of pairs and Fieller's 95 % interval (1954); unbounded where mean(y) cannot be told from 0."""
    from scipy.stats import t

    n = len(x)
    a, b = float(np.mean(x)), float(np.mean(y))
    if n < 2 or b == 0:
        return (a / b if b else math.nan), -math.inf, math.inf
    (vx, c), (_, vy) = np.cov(x, y, ddof=1) / n
    q = t.ppf(0.975, n - 1) ** 2
    # (a - r b)^2 <= q (vx - 2 r c + r^2 vy)
    top, middle, last = b * b - q * vy, a * b - q * c, a * a - q * vx
    root = middle * middle - top * last
    if top <= 0 or root < 0:
        return a / b, -math.inf, math.inf
    return a / b, (middle - math.sqrt(root)) / top, (middle + math.sqrt(root)) / top


def equal_rows(results: Results, arm: str, metric: str, draws: int = 2000) -> tuple[float, float, float, int]:
    """How many real rows give an arm's gain on the plan's curve of real rows, with a 95 % bootstrap interval over data seeds (inf: more than were tried).

    And how many data seeds have the arm and the whole curve: 0 where fewer than two points of it were run.
    """
    arms = results.plan.arms
    curve = sorted({(arms[name].real, name) for of_kind in results.plan.curves.get("rows", {}).values() for name in of_kind if arms[name].real and name in results.arms})
    gains = {name: results.gains(name, BASE, metric) for name in (arm, *(name for _, name in curve))}
    seeds = sorted(set.intersection(*(set(found) for found in gains.values())))
    if not seeds or len(curve) < 2:
        return math.nan, math.nan, math.nan, 0

    def place(chosen_seeds: Sequence[int]) -> float:
        target = np.mean([gains[arm][seed] for seed in chosen_seeds])
        xs = np.array([0.0, *(n for n, _ in curve)])
        ys = np.maximum.accumulate([0.0, *(np.mean([gains[name][seed] for seed in chosen_seeds]) for _, name in curve)])
        if target > ys[-1]:
            return math.inf
        i = int(np.searchsorted(ys, target))
        return 0.0 if i == 0 else float(xs[i - 1] + (xs[i] - xs[i - 1]) * (target - ys[i - 1]) / (ys[i] - ys[i - 1]))

    rng = np.random.default_rng(0)
    drawn = sorted(place(rng.choice(seeds, len(seeds)).tolist()) for _ in range(draws))
    return place(seeds), drawn[int(0.025 * draws)], drawn[int(0.975 * draws) - 1], len(seeds)


def spread_text(values: Iterable[float], digits: int = 3) -> str:
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return "-"
    sd = f"±{np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{np.mean(found):.{digits}f}{sd}"


def interval_text(mean: float, low: float, high: float, form: str = "+.3f") -> str:
    if math.isnan(low):
        return "-" if math.isnan(mean) else f"{mean:{form}}"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def arm_table(plan: Plan, results: Results, size: int) -> list[str]:
    names = list(plan.sets.mean)
    head = ["arm", "", "data seeds × init", "rows", "unsafe", *(f"{name} AUPRC / F1" for name in names), "mean AUPRC", "F1 at 0.5", "F1 at fitted",
            "AUPRC minus B [95 %]", "flagged safe rows at 0.5 / fitted", "held-out AUPRC / F1", "CPU s of training"]
    rows = []
    for name, found in results.arms.items():
        lines = [line for of_seed in found.values() for line in of_seed]

        def over(measure: Any, arm: str = name) -> str:
            return spread_text(results.by_seed(arm, measure).values())

        base = plan.arms[name].base
        gain = "" if name == BASE else interval_text(*t_test(results.gains(name, base, "auprc").values())[:3]) + f" (over {base})" * (base != BASE)
        rows.append([name, plan.arms[name].says, f"{len(found)} × {len(lines) / len(found):.3g}", f"{np.mean([line['rows'] for line in lines]):.0f}",
                     f"{np.mean([line['unsafe'] / line['rows'] for line in lines]):.2f}",
                     *(f"{over(lambda line, s=s: value(line['sets'][s]['auprc']))} / {over(lambda line, s=s: value(line['sets'][s]['f1']))}" for s in names),
                     *(over(lambda line, metric=metric: mean_of(line, metric)) for metric in ("auprc", "f1", "f1_fitted")), gain,
                     " / ".join(over(lambda line, metric=metric: mean_of(line, metric, plan.sets.over_refusal)) if plan.sets.over_refusal else "-"
                                for metric in ("fpr", "fpr_fitted")),
                     f"{over(lambda line: value(line['held_out']['auprc']))} / {over(lambda line: value(line['held_out']['f1']))}",
                     f"{np.median([line['cpu_seconds'] for line in lines]):.0f}"])
    return [f"### Seed set of {size:,}", "", *table(head, rows)]


def value(number: float | None) -> float:
    return math.nan if number is None else number


def test_table(plan: Plan, by_size: dict[int, Results]) -> list[str]:
    metric = plan.test.metric
    family = [(size, a, b, t_test(results.gains(a, b, metric).values()), len(results.gains(a, b, metric)))
              for size, results in by_size.items() for a, b in plan.test.differences]
    tested = [entry for entry in family if not math.isnan(entry[3][3])]
    adjusted = dict(zip((entry[:3] for entry in tested), holm([entry[3][3] for entry in tested], len(family))))
    rows = [[f"{size:,}", f"{a} - {b}", str(n), interval_text(*found[:3]), "-" if math.isnan(found[3]) else f"{found[3]:.4f}",
             f"{adjusted[size, a, b]:.4f}" if (size, a, b) in adjusted else "-"] for size, a, b, found, n in family]
    lines = [f"Mean {metric} over the sets, paired by data seed; the interval is Student's t over data seeds, not over evaluation rows.", "",
             *table(["seed rows", "difference", "data seeds", "mean [95 %]", "p", f"p, Holm over {len(family)}"], rows)]
    for size, results in by_size.items():
        for arm in plan.test.recovered:
            own, bound = results.gains(arm, BASE, metric), results.gains(plan.test.bound, BASE, metric)
            seeds = sorted(own.keys() & bound.keys())
            if seeds:
                share = ratio_interval([own[s] for s in seeds], [bound[s] for s in seeds])
                *rows_equal, n = equal_rows(results, arm, metric)
                worth = (f", as much as {interval_text(*rows_equal, form='.0f')} real rows on the learning curve (bootstrap over {n} data seeds; inf: more than were tried)"
                         if n else "")
                lines.append(f"- {size:,} seed rows: {arm} ({plan.place('rows', arm):.0f} rows added) recovers {interval_text(*share, form='.2f')} of the gain of "
                             f"{plan.test.bound} ({plan.place('rows', plan.test.bound):.0f}) (Fieller){worth}.")
    a, b = plan.test.differences[0] if plan.test.differences else ("", "")
    first = [entry[3] for entry in family if entry[1:3] == (a, b)]
    if plan.test.goal and first and not any(math.isnan(found[1]) for found in first):
        reached = [found[0] >= plan.test.goal and found[1] > 0 for found in first]
        lines.append(f"- Goal: {a} - {b} of at least {plan.test.goal:+.3f} at each size, the interval above 0: {'reached' if all(reached) else 'not reached'}.")
    return [*lines, ""]


def curves(plan: Plan, results: Results) -> dict[str, dict[str, list[tuple[float, str]]]]:
    """Arms that have runs as (place on the axis, arm), by curve of the plan and kind of rows; a curve without a kind of two of them is left out."""
    found = {curve: {kind: [(plan.place(curve, name), name) for name in arms if name in results.arms] for kind, arms in kinds.items()}
             for curve, kinds in plan.curves.items()}
    return {curve: {kind: points for kind, points in kinds.items() if points} for curve, kinds in found.items() if max(map(len, kinds.values()), default=0) > 1}


def figure(plan: Plan, results: Results, found: dict[str, dict[str, list[tuple[float, str]]]]) -> Any:
    """Curves as a matplotlib figure: the gain over B, with its interval over data seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    page = Figure(figsize=(4.5 * len(found), 3.6), layout="constrained")
    for axes, (curve, kinds) in zip(page.subplots(1, len(found), squeeze=False)[0], found.items()):
        for (kind, points), marker in zip(kinds.items(), "os"):
            gains = [t_test(results.gains(arm, BASE, plan.test.metric).values()) for _, arm in points]
            reach = np.nan_to_num(np.array([(mean - low, high - mean) for mean, low, high, _ in gains]).T)
            axes.errorbar([place for place, _ in points], [gain[0] for gain in gains], yerr=reach, marker=marker, capsize=3, label=kind,
                          linestyle="-" if marker == "o" else "--")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set(xlabel=CURVES[curve], ylabel=f"mean {plan.test.metric} minus {BASE}")
        if curve == "rows":
            axes.set_xscale("log")
            axes.xaxis.set(major_locator=FixedLocator([m * 10**k for k in range(6) for m in (1, 2, 5)]), major_formatter="{x:,.0f}", minor_locator=NullLocator())
        axes.legend()
    return page


def curve_lines(plan: Plan, results: Results, phase: str, size: int) -> list[str]:
    """The curves as a table and, beside the page, a drawing."""
    found = curves(plan, results)
    if not found:
        return []
    import matplotlib

    rows = [[CURVES[curve], kind, f"{place:g}", arm, str(len(results.arms[arm])), interval_text(*t_test(results.gains(arm, BASE, plan.test.metric).values())[:3])]
            for curve, kinds in found.items() for kind, points in kinds.items() for place, arm in points]
    drawing = plan.path.with_name(f"{plan.path.stem}-{phase}-{size}.svg")
    with matplotlib.rc_context({"svg.hashsalt": drawing.name}), atomic_file(drawing) as file:
        figure(plan, results, found).savefig(file, format="svg", metadata={"Date": None})
    drawing.chmod(0o644)
    return [f"### Curves, seed set of {size:,}", "", f"![Gain over {BASE}]({drawing.name})", "",
            *table(["", "rows", "place", "arm", "data seeds", f"{plan.test.metric} minus {BASE} [95 %]"], rows)]


def runs_of(plan: Plan) -> list[dict[str, Any]]:
    """Return the recorded runs of the plan as it stands."""
    wanted = {name: plan.settings(name) for name in plan.arms}
    found = [line for line in read_results(plan) if line["kind"] == "run" and line["settings"] == wanted.get(line["arm"])
             and line["data_seed"] in getattr(plan.seeds, line["phase"])]
    teachers = {line["teacher"] for line in found}
    if len(teachers) > 1:
        raise DataError(f"{plan.results}: runs of {len(teachers)} teachers ({', '.join(sorted(teachers))}); keep those of one")
    return found


def analyse(plan: Plan) -> None:
    """Write the page."""
    lines, of_plan = read_results(plan), runs_of(plan)
    current = {line["teacher"]: line for line in lines if line["kind"] == "teacher"}
    page = ["# The paper's main table, scaled down", "",
            "Made by `benchmarks/harmaug_small.py analyse` out of `harmaug_small.jsonl`, one line a training run. ± is the sample standard deviation over data seeds, init",
            "seeds averaged. A mean is over the sets of the plan; safe rows flagged needlessly are counted apart. Exemplars of the generator are training rows of the smallest seed set, of which a larger",
            "one, split anew, has some among its validation rows: that touches the columns at a fitted threshold alone.", "", "## Plan", "", "```toml", f"{plan.text}```", ""]
    other = sum(line["kind"] == "run" for line in lines) - len(of_plan)
    if other:
        page += [f"{other} recorded runs have other settings or seeds than the plan and are not shown.", ""]
    if current:
        page += ["## Teacher", "", *table(["teacher", "rows", "AUPRC by set", "mean AUPRC", "F1 at 0.5", "held-out AUPRC", "seconds"], (
            [sha[:8], str(line["rows"]), ", ".join(f"{name} {value(entry['auprc']):.3f}" for name, entry in line["sets"].items()), f"{mean_of(line, 'auprc'):.3f}",
             f"{mean_of(line, 'f1'):.3f}", f"{value(line['held_out']['auprc']):.3f}", f"{line['seconds']['distil']:.0f}"] for sha, line in current.items()))]
    made = [line for line in lines if line["kind"] == "generation"]
    if made:
        page += ["## Cost of generation", "", *table(["generation", "data seed", "asked", "kept", "labelled", "flagged", "seconds", "seconds per 1,000 labelled"], (
            [line["generation"], str(line["data_seed"]), str(line["asked"]), str(line["rows"]["augment"]), str(line["rows"]["label"]), str(line["flagged"]),
             ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in line["seconds"].items()),
             f"{1000 * sum(line['seconds'].values()) / max(line['rows']['label'], 1):.0f}"] for line in made))]
    for phase, title in (("explore", "Exploring runs (the recipe was chosen on these)"), ("confirm", "Confirming runs (made once, on fresh data seeds)")):
        of_phase = [line for line in of_plan if line["phase"] == phase]
        if of_phase:
            by_size = {size: Results(plan, of_phase, phase, size) for size in plan.seeds.sizes}
            whole = len(plan.cells(phase)) * len(getattr(plan.seeds, phase)) * len(plan.seeds.init)
            page += [f"## {title}", "", f"{len(of_phase)} of {whole} runs.", ""]
            for size, results in by_size.items():
                page += arm_table(plan, results, size) if results.arms else []
                page += curve_lines(plan, results, phase, size)
            page += ["### Tests", "", *test_table(plan, by_size)]
    with atomic_file(plan.page) as file:
        file.write(("\n".join(page).rstrip("\n") + "\n").encode())
    plan.page.chmod(0o644)
    print(plan.page)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", *PHASES, "analyse"))
    parser.add_argument("--plan", type=Path, default=HERE / "harmaug_small.toml")
    parser.add_argument("--data", type=Path, help="folder of the plan's files")
    parser.add_argument("--work", type=Path, help="folder of the teacher and the generated rows")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="take each Nth data seed from the Ith on")
    parser.add_argument("--arms", nargs="+", default=[], help="make the runs of these only")
    parser.add_argument("--inits", nargs="+", type=int, default=[], help="make the runs of these init seeds only")
    parser.add_argument("--sizes", nargs="+", type=int, default=[], help="make the runs of these seed sets only")
    parser.add_argument("--threads", type=int, default=1, help="changes no result (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("harmaug.distill").setLevel(logging.ERROR)       # "no validation rows": so it is meant
    try:
        plan = Plan(arguments.plan)
        unknown = [name for name in arguments.arms if name not in plan.arms]
        if unknown:
            raise DataError(f"--arms: there is no arm {unknown[0]} in {plan.path}")
        if arguments.what == "analyse":
            analyse(plan)
            return 0
        if arguments.data is None or arguments.work is None:
            raise DataError(f"{arguments.what} needs --data and --work")
        arguments.work.mkdir(parents=True, exist_ok=True)
        bench = Bench(plan, arguments.data, arguments.work, arguments.threads)
        if arguments.what == "prepare":
            bench.prepare()
        else:
            run_phase(bench, arguments.what, arguments)
    except (ValueError, OSError) as exc:
        print(f"harmaug_small: {' '.join(str(exc).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("harmaug_small: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
