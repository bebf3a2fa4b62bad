"""The stages over a run folder: augment, respond, label, distil, evaluate. Each resumes where it stopped.

Each stage is a function that takes an open RunFolder and returns its account; one that is done is skipped. `run_config`
runs those that a TOML file has a table for. Options that stages share: `models` maps names to the sha256 of their
files, for run.json; `batch_size` changes no row; `engine` is where they run (see engines.map_rows) and changes none
either; `quiet` shows no progress bar.
"""
from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import msgspec.inspect

from harmaug import augment as augment_stage
from harmaug import card, datasets, diversity, safety, teacher
from harmaug import evaluate as evaluate_module
from harmaug import respond as respond_stage
from harmaug.augment import AugmentConfig, Augmenter
from harmaug.categories import CategoryTable, default_table, load_table
from harmaug.chat import ChatTemplate
from harmaug.checks import one_of, within
from harmaug.data import DataError, Row, encode_row, identity, read_rows, require_labels, write_json, write_rows
from harmaug.eda import eda_rows, load_synonyms
from harmaug.endpoint import EndpointConfig
from harmaug.engines import TRAINERS, check_engine
from harmaug.generator import BACKENDS, Generator, open_lm
from harmaug.guard_families import LabelReading
from harmaug.respond import RespondConfig, Responder
from harmaug.runs import Journal, RunError, RunFolder, Stage, machine, progress, sha256
from harmaug.thresholds import fit_threshold

if TYPE_CHECKING:
    from harmaug.distill import DistillConfig, Distiller

_log = logging.getLogger(__name__)

TFIDF, TFIDF_FILE = "tfidf", "tfidf.json"

BASELINES = ("plain", TFIDF, "eda")
"""Baselines of ``[evaluate] baselines``: the student of [distil] trained on the seed rows alone, TF-IDF and logistic
regression trained on them, the student trained on them and their variants by word changes (see harmaug.eda)."""

STAGES = ("augment", "respond", "label", "distil", "evaluate")
FURTHER = ("continual", "frontier")     # instead of distil, and after all; they train with the settings of [distil]
INSTRUCTIONS, REJECTED = "instructions.jsonl", "rejected.jsonl"
PAIRS, PAIRS_REJECTED = "pairs.jsonl", "pairs_rejected.jsonl"
LABELLED, SCORES, DIVERSITY = "labelled.jsonl", "scores.jsonl", "diversity.json"


def augment(run: RunFolder, generator: Generator | Callable[[], Generator], seed_rows: Sequence[Row], *,
            config: AugmentConfig | None = None, evaluation_rows: Sequence[Row] = (),
            table: CategoryTable | None = None, models: Mapping[str, str] | None = None, batch_size: int = 32,
            engine: str = "local", encoder: str | None = None, quiet: bool = False) -> dict[str, Any]:
    """Sample instructions into instructions.jsonl, and what the filters reject into rejected.jsonl.

    Parameters
    ----------
    run : RunFolder
    generator : Generator or callable
        A callable is called for the generator only when there is something left to do.
    seed_rows : sequence of Row
        Labelled rows; those without a response serve as exemplars.
    config : AugmentConfig, optional
    evaluation_rows : sequence of Row
        No kept row is near one of them.
    table : CategoryTable, optional
        The harm categories; the package's own when None.
    models : mapping, optional
        Name to sha256, for run.json.
    batch_size : int, default 32
        Sequences decoded together. Changes no row.
    engine : str, default "local"
        See engines.map_rows.
    encoder : str, optional
        Count clusters of the kept rows by its embeddings (see diversity.clusters), and put their map into diversity.json.
    quiet : bool, default False
        No progress bar.
    """
    config = config or AugmentConfig()
    table = table or default_table()
    inputs = {"seed": digest(seed_rows), "evaluation": digest(evaluation_rows),
              "categories": hashlib.sha256(repr(table.categories).encode()).hexdigest()}
    stage = run.stage("augment", config=dataclasses.asdict(config), inputs=inputs, models=models,
                      makes=(INSTRUCTIONS, REJECTED), defaults=dataclasses.asdict(AugmentConfig()))
    if not stage.done:
        augmenter = Augmenter(_made(generator, stage), config, table=table, batch_size=batch_size)
        with Journal(run / INSTRUCTIONS, run / REJECTED, needs=augment_stage.RECORDED) as journal:
            rows = augmenter.run(seed_rows, evaluation_rows, journal=journal, stamp=stage.stamp, engine=engine)
            total = config.samples + config.benign
            _follow(rows, stage, lambda: augmenter.account_, total, "augment", journal, quiet)
        stage.entry["diversity"] = diversity.summary([row.prompt for row in rows_of(run / INSTRUCTIONS)],
                                                     [row.prompt for row in seed_rows],
                                                     [row.prompt for row in evaluation_rows], seed=config.seed)
        if encoder is not None:
            about, shown = diversity.clusters([row.prompt for row in rows_of(run / INSTRUCTIONS)], encoder, seed=config.seed)
            stage.entry["diversity"] |= about
            write_json(run / DIVERSITY, shown)
        stage.account(augmenter.account_, done=True)
    return _account(stage)


def respond(run: RunFolder, generator: Generator | Callable[[], Generator], *, config: RespondConfig | None = None,
            models: Mapping[str, str] | None = None, batch_size: int = 32, engine: str = "local",
            quiet: bool = False) -> dict[str, Any]:
    """Answer the instructions into pairs.jsonl, and what contradicts its intent into pairs_rejected.jsonl."""
    config = config or RespondConfig()
    inputs = {INSTRUCTIONS: _finished(run, "augment", INSTRUCTIONS)}
    stage = run.stage("respond", config=dataclasses.asdict(config), inputs=inputs, models=models,
                      makes=(PAIRS, PAIRS_REJECTED), defaults=dataclasses.asdict(RespondConfig()))
    if not stage.done:
        with Journal(run / PAIRS, run / PAIRS_REJECTED, needs=respond_stage.RECORDED) as journal:
            instructions = rows_of(run / INSTRUCTIONS)
            made: Any = _made(generator, stage) if config.intents else None
            responder = Responder(made, config, batch_size=batch_size)
            rows = responder.run(instructions, journal=journal, stamp=stage.stamp, engine=engine)
            total = len(respond_stage.spread(instructions, config.limit)) * len(config.intents)
            _follow(rows, stage, lambda: responder.account_, total, "respond", journal, quiet)
        stage.account(responder.account_, done=True)
    return _account(stage)


def label(run: RunFolder, by: Any, seed_rows: Sequence[Row], *, name: str | None = None,
          models: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None,
          table: CategoryTable | None = None, batch_size: int = 256, engine: str = "local",
          quiet: bool = False) -> dict[str, Any]:
    """Score the seed rows, each instruction alone and each instruction with each response into labelled.jsonl.

    Seed rows keep their own labels beside the teacher's score; those that the responsible-use filter blocks are left
    out. Rows that bring no category get one of the table's.

    Parameters
    ----------
    run : RunFolder
    by : Teacher, folder, Guard or callable
        With `name`, a callable that makes the Teacher, called only when there is something left to do.
    seed_rows : sequence of Row
    name : str, optional
        The teacher's, where `by` makes it.
    models : mapping, optional
        Name to sha256, for run.json.
    settings : mapping, optional
        How the teacher is read, for run.json: a stage does not go on under others.
    table : CategoryTable, optional
        The harm categories; the package's own when None.
    batch_size : int, default 256
        Changes no row when the teacher's scores do not depend on it (a Guard's do not).
    engine : str, default "local"
        See engines.map_rows.
    quiet : bool, default False
        No progress bar.
    """
    table = table or default_table()
    inputs = {"seed": digest(seed_rows)}
    for before, file in (("augment", INSTRUCTIONS), ("respond", PAIRS)):
        if before in run.info["stages"]:
            inputs[file] = _finished(run, before, file)
    make = by if name is not None else lambda: teacher.as_teacher(by)
    name = name or (by if isinstance(by, str) else getattr(by, "name", getattr(by, "__name__", type(by).__name__)))
    earlier = run.info["stages"].get("label", {}).get("account", {})
    stage = run.stage("label", config={"teacher": name, **(settings or {})}, inputs=inputs, models=models, makes=(LABELLED,))
    if stage.done:
        return _account(stage)
    rows = [(f"seed row {i + 1}", row) for i, row in enumerate(seed_rows) if not safety.blocked_row(row)]
    stage.entry["data"] = card.data_of(row for _, row in rows)
    counts: dict[str, Any] = {"rows": 0, "seed": len(rows), "seeds_blocked": len(seed_rows) - len(rows), "done": 0,
                              "flagged": 0, "categories": {}}
    for file in (file for file in (INSTRUCTIONS, PAIRS) if file in inputs):
        rows += [(f"{run / file}, row {i + 1}", row) for i, row in enumerate(rows_of(run / file))]
    counts["rows"] = len(rows)
    with Journal(run / LABELLED, needs=({"category": str, "unsafe-score": float},)) as journal:
        for old in journal.kept_rows:
            _count_label(counts, old)
        begun = journal.next_key
        scorer = make() if begun < len(rows) else None

        def account() -> dict[str, Any]:
            """What the teacher counts, requests and money, is added to that of earlier calls."""
            spent = Counter({key: n for key, n in earlier.items() if key not in counts})
            spent.update(getattr(scorer, "account", {}))
            return {**counts, **spent}

        try:
            if scorer is not None:
                stage.entry["teacher"] = dict(teacher.describe(scorer))
                scored = teacher.label_rows(scorer, rows[begun:], batch_size=batch_size, engine=engine)
                for _, row, score in progress(scored, len(rows), "label", begun=begun, quiet=quiet):
                    extra = {**row.extra, "key": journal.next_key, "teacher": scorer.name, **stage.stamp}
                    category = row.category or table.assign(row.prompt)
                    labelled = msgspec.structs.replace(row, unsafe_score=score, soft_label=None, category=category,
                                                       extra=extra)
                    journal.append(labelled)
                    _count_label(counts, labelled.to_dict())
                    stage.account(account())
        finally:
            stage.account(account())
    stage.entry["audit"] = teacher.audit(rows_of(run / LABELLED))
    stage.account(account(), done=True)
    return _account(stage)


def distil(run: RunFolder, rows: Sequence[Row] | None = None, *, config: DistillConfig | None = None,
           validation_rows: Sequence[Row] | None = None, models: Mapping[str, str] | None = None,
           name: str = "distil", folder: str = "guard", quiet: bool = False) -> dict[str, Any]:
    """Train a guard into guard/.

    Parameters
    ----------
    run : RunFolder
    rows : sequence of Row, optional
        None: labelled.jsonl.
    config : DistillConfig, optional
        With the student "tfidf" it is TF-IDF and logistic regression (scikit-learn), of which only the seed matters.
    validation_rows : sequence of Row, optional
        Instead of a share of the rows.
    models : mapping, optional
        Name to sha256, for run.json.
    name, folder : str
        Of the stage and of what it makes, where a run trains several.
    quiet : bool, default False
        No progress bar.
    """
    from harmaug.distill import ENGINE, DistillConfig, Distiller

    config = config or DistillConfig()
    makes = f"{folder}/{TFIDF_FILE}" if config.student == TFIDF else f"{folder}/checkpoint/state.json"
    inputs = {LABELLED: _finished(run, "label", LABELLED)} if rows is None else {"rows": digest(rows)}
    if validation_rows is not None:
        inputs["validation"] = digest(validation_rows)
    settings, defaults = ({key: value for key, value in dataclasses.asdict(c).items() if key not in ENGINE} for c in (config, DistillConfig()))
    stage = run.stage(name, config=settings, inputs=inputs, models=models, makes=(makes,), defaults=defaults)
    if not stage.done:
        rows = rows_of(run / LABELLED) if rows is None else rows
        usable = [row for row in rows if not safety.blocked_row(row)]
        stage.entry["parts"] = _parts(run, config.student, usable)
        if config.student == TFIDF:
            from harmaug.integrations.sklearn import TfidfGuard

            TfidfGuard.fit(usable, seed=config.seed, where=f"{run.path}, rows of stage {name}").save_pretrained(run / folder)
            stage.account({"train": len(usable)}, done=True)
            return _account(stage)
        distiller = Distiller(config)
        distiller.fit(usable, validation_rows, out=run / folder, progress=False if quiet else None, allow_mixed=run.allow_mixed)
        (run / folder / card.NAME).unlink(missing_ok=True)
        stage.account(summary(distiller), done=True)
    if config.student != TFIDF and "parts" in stage.entry and not (run / folder / card.NAME).exists():     # a card that fails costs no training
        card.write_card(run / folder, stage.entry["parts"], title=folder, version=machine()["harmaug"],
                        counts=stage.entry["account"], audit=run.info["stages"].get("label", {}).get("audit") or {})
    return _account(stage)


def _parts(run: RunFolder, student: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    from harmaug.models import known_at

    known = known_at(student)
    licence = known.licence if known else teacher.licence_of(Path(student))
    parts = card.parts_of(run.info["stages"], rows, known.name if known else Path(student).name, licence,
                          card.read_parts(Path(student)))
    return parts[1:] if student == TFIDF else parts     # it starts from no weights


def summary(distiller: Distiller) -> dict[str, Any]:
    """Return counts and steps of a fit, and the threshold with the best F1 on its validation rows."""
    labels, scores = distiller.validation_labels_, distiller.validation_scores_
    threshold = fit_threshold(labels, scores, draws=0).threshold if 0 < labels.sum() < len(labels) else None
    return {**distiller.counts_, "steps": distiller.n_steps_, "best_step": distiller.best_step_,
            "selected_by": distiller.selected_by_, "engine": distiller.config.engine, "validation_threshold": threshold}


def evaluate(run: RunFolder, guard: Any, datasets: Mapping[str, Iterable[Row]], *,
             config: EvaluateConfig | None = None, files: Mapping[str, tuple[Path, str | None]] | None = None,
             training: Iterable[Row] | None = None, **options: Any) -> dict[str, Any]:
    """Score the sets with a guard into metrics.json and scores.jsonl (no text); it is done anew each time.

    `files` are those that the rows come from and their layouts, for the record. Evaluation rows that are among the rows of `training`, or near one, are counted. Without a guard (or Teacher) it is the one that `distil` left in guard/, opened with the options. Returns what
    evaluate.evaluate_guard returns, and the run's yield accounts under "stages".
    """
    config, about = config or EvaluateConfig(), dict[str, Any]()
    if guard is None:
        _finished(run, "distil", None)
        guard = _open_guard(run / "guard", config, options)
        about["model"] = {"name": "guard", "sha256": sha256(run / "guard")}
    sets = {name: list(rows) for name, rows in datasets.items()}
    inputs = {name: digest(rows) for name, rows in sets.items()}
    stage = run.stage("evaluate", config=msgspec.structs.asdict(config), inputs=inputs, restart=True)
    known = None if training is None else evaluate_module.contamination(training)
    scored = evaluate_module.score_sets(guard, sets, protocol=config.protocol, by=config.by, training=known)
    for part in scored:
        if files is not None:
            part.cohort.update(evaluate_module.about_file(*files[part.name], len(sets[part.name])))
    fitted = guard.threshold if getattr(guard, "thresholds", None) else None
    others = {name: evaluate_module.score_sets(_open_guard(run / f"guard_{name}", config, options), sets,
                                               protocol=config.protocol) for name in config.named_baselines}
    report = evaluate_module.summarise(scored, threshold=config.threshold, fitted=fitted, draws=config.draws,
                                       protocol=config.protocol, over_refusal=config.over_refusal, baselines=others)
    write_rows(run / SCORES, (row for part in scored for row in part.lines()))
    stage.account({part.name: len(part.labels) for part in scored}, done=True)
    report |= {"stages": run.accounts(), **about}
    write_json(run / "metrics.json", report, indent=1)
    return report


# -- a whole run from a TOML file ---------------------------------------------------------------------------------


class _Table(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A table of the TOML file."""


class SeedFile(_Table):
    """A file of labelled rows, or so many of them drawn at random; `layout` as for an evaluation set."""

    file: str
    layout: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, limit=">= 0")


class EvaluationFile(_Table):
    """A file of an evaluation set and its layout: a name of harmaug.datasets.MANIFEST, or a mapping for parse_layout."""

    file: str
    layout: str


class DataConfig(_Table):
    """What a run reads: files of labelled rows, evaluation sets by name, a table of categories.

    The name of a fetched set stands for its file.
    """

    seed: tuple[str | SeedFile, ...]
    evaluation: dict[str, str | EvaluationFile] = {}
    categories: str | None = None


class GeneratorConfig(_Table):
    """The model that augment and respond sample from: a folder, a .gguf, a fetched name, or one behind a server.

    A server ([generator.endpoint], see EndpointConfig) is given raw prompts, so it needs `template`: the folder, .gguf
    or jinja file that its model's chat template is read from. `licence` of what the model writes goes into run.json,
    and so does `dtype` ("float32", "bfloat16", "int8", "int4"): a stage does not go on under another.
    `backend` "transformers" runs a folder on PyTorch, on `device` (a GPU where there is one).
    """

    model: str = "smollm2"
    backend: str = "native"
    device: str | None = None
    dtype: str | None = None
    batch_size: int = 32
    engine: str = "local"
    template: str | None = None
    licence: str | None = None
    endpoint: EndpointConfig | None = None

    def __post_init__(self) -> None:
        within(self, batch_size="in [1, 65536]")
        check_engine(self.engine)
        one_of("backend", self.backend, BACKENDS)
        if self.endpoint is not None and self.template is None:
            raise ValueError("an endpoint needs template: the prefix goes into a prompt that is rendered here")


class LabelConfig(_Table):
    """The teacher.

    Parameters
    ----------
    teacher : str, default "standin"
        A guard folder or fetched name; a generative guard's folder or .gguf (see guard_families); a file of rows with
        an "unsafe-score"; "standin". Not looked at with `endpoint`.
    endpoint : EndpointConfig, optional
        A generative guard behind a server.
    family, template, guidelines, guidelines_response, definition, temperature
        Of a generative guard: see LanguageModelTeacher.from_pretrained.
    top_logprobs : int, default 20
        With `endpoint`: how many tokens' log-probabilities are asked for. Some servers allow fewer.
    backend : {"native", "transformers"}, default "native"
        "transformers": a model's folder on PyTorch.
    device : str, optional
        Of that. None: a GPU, where there is one.
    dtype : str, optional
        Of the teacher's weights.
    licence : str, optional
        Of the teacher's labels, for run.json and the model card. None: that of its own model card.
    cache : bool, default True
        Take scores of rows that this teacher has seen from the user's cache.
    batch_size : int, optional
        Rows that are handed over together. None: 256; on transformers, which reads them side by side, 16.
    engine : str, default "local"
        See engines.map_rows.
    """

    teacher: str = teacher.STANDIN
    batch_size: int | None = None
    engine: str = "local"
    endpoint: EndpointConfig | None = None
    family: str | None = None
    template: str | None = None
    guidelines: tuple[str, ...] = ()
    guidelines_response: tuple[str, ...] = ()
    definition: str = "two-way"
    temperature: float = 1.0
    top_logprobs: int = 20
    backend: str = "native"
    device: str | None = None
    dtype: str | None = None
    licence: str | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        within(self, batch_size=">= 1", top_logprobs=">= 1")
        check_engine(self.engine)
        one_of("backend", self.backend, BACKENDS)
        LabelReading(definition=self.definition, temperature=self.temperature)
        if self.endpoint is not None and self.family is None:
            raise ValueError("an endpoint needs family: which words its guard answers with")
        if self.endpoint is None and self.top_logprobs != 20:
            raise ValueError("top_logprobs needs an endpoint: other teachers have all logits")

    @property
    def name(self) -> str:
        """What the stage records as its teacher."""
        return self.teacher if self.endpoint is None else self.endpoint.model

    @property
    def rows_at_once(self) -> int:
        """batch_size, or what it is by default."""
        return self.batch_size or (256 if self.backend == "native" else 16)

    def reading(self) -> dict[str, Any]:
        """What decides a generative guard's score besides its weights, where it is set."""
        plain = type(self)()
        return {name: value for name in ("family", "template", "guidelines", "guidelines_response", "definition", "temperature", "top_logprobs", "backend",
                                         "dtype")
                if (value := getattr(self, name)) != getattr(plain, name)}

    def recorded(self, folder: Path) -> dict[str, Any]:
        """`reading`, and the sha256 of the template's text: what run.json holds and scores are kept under."""
        if self.template is None:
            return self.reading()
        source = ChatTemplate.load(folder / self.template).source
        return {**self.reading(), "template_sha256": hashlib.sha256(source.encode()).hexdigest()}


class Baseline(_Table):
    """One of BASELINES; `synonyms` is the table of "eda", a JSON file or WordNet's folder (see EdaConfig)."""

    name: str
    synonyms: str | None = None

    def __post_init__(self) -> None:
        one_of("baselines", self.name, BASELINES)
        if self.synonyms is not None and self.name != "eda":
            raise ValueError(f"the baseline {self.name} takes no synonyms")


class EvaluateConfig(_Table):
    """How the guard is measured; `long` and `max_length` as for Guard.from_pretrained, the rest as for summarise.

    `baselines` are names of BASELINES, or a Baseline with its table.
    """

    threshold: float = 0.5
    draws: int = 1000
    protocol: str = "default"
    by: tuple[str, ...] = ("category", "source", "length")
    over_refusal: tuple[str, ...] | None = None
    baselines: tuple[str | Baseline, ...] = ()
    long: str = "windows"
    max_length: int | None = None

    def __post_init__(self) -> None:
        within(self, threshold="in [0, 1]", draws=">= 0", max_length=">= 1")
        one_of("long", self.long, ("windows", "truncate", "error"))
        one_of("protocol", self.protocol, evaluate_module.PROTOCOLS)
        for column in self.by:
            evaluate_module.check_column(column)
        for entry in self.baselines:
            if isinstance(entry, str):
                Baseline(name=entry)

    @property
    def named_baselines(self) -> dict[str, str | None]:
        """Each baseline's table of synonyms, by name."""
        return dict((entry, None) if isinstance(entry, str) else (entry.name, entry.synonyms) for entry in self.baselines)


class Config(msgspec.Struct, kw_only=True):
    """A run: the stages whose table is there, in the order of STAGES."""

    data: DataConfig
    generator: GeneratorConfig
    augment: AugmentConfig | None
    respond: RespondConfig | None
    label: LabelConfig | None
    distil: Any     # DistillConfig: its module is imported when a run trains
    evaluate: EvaluateConfig | None
    frontier: Any = None
    continual: Any = None

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], where: str, *, seed: int | None = None,
                  n_threads: int | None = None, engine: str | None = None) -> Config:
        """Check the tables of a TOML file; `seed`, `n_threads` and `engine` go before those in it.

        Raises
        ------
        DataError
            For an unknown table or setting, or a value outside its range; `where` stands before the message.
        """
        kinds: dict[str, Any] = {"data": DataConfig, "generator": GeneratorConfig, "augment": AugmentConfig,
                                 "respond": RespondConfig, "label": LabelConfig, "distil": None,
                                 "evaluate": EvaluateConfig, **dict.fromkeys(FURTHER)}
        if "distil" in tables:
            from harmaug.distill import DistillConfig

            kinds["distil"] = DistillConfig
        if "frontier" in tables:
            from harmaug.frontier import FrontierConfig

            kinds["frontier"] = FrontierConfig
        if "continual" in tables:
            from harmaug.continual import ContinualConfig

            kinds["continual"] = ContinualConfig
        unknown = [name for name in tables if name not in kinds]
        if unknown:
            raise DataError(f"{where}: unknown table [{unknown[0]}]; there are {', '.join(kinds)}")
        if "data" not in tables:
            raise DataError(f"{where}: the table [data] is missing")
        sections: dict[str, Any] = {**dict.fromkeys(kinds), "generator": GeneratorConfig()}
        for name, table in tables.items():
            settings = dict(table)
            if seed is not None and name in ("augment", "respond", "distil"):
                settings["seed"] = seed
            if name == "distil":
                given = {"n_threads": n_threads, "engine": engine}
                settings |= {key: value for key, value in given.items() if value is not None}
            kind: Any = msgspec.inspect.type_info(kinds[name])
            known = sorted(field.name for field in kind.fields)
            for setting in settings:
                if setting not in known:
                    raise DataError(f"{where}: [{name}] has no setting {setting}; it has {', '.join(known)}")
            try:
                sections[name] = msgspec.convert(settings, kinds[name])
            except (msgspec.ValidationError, ValueError) as exc:
                raise DataError(f"{where}: [{name}] {exc}") from None
        return cls(**sections)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tables of a TOML file; a DataError names the file and, for wrong TOML, the line."""
    name = os.fspath(path)
    try:
        tables = msgspec.toml.decode(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except RecursionError:
        raise DataError(f"{name}: wrong TOML: nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as exc:        # a number of thousands of digits is a ValueError
        raise DataError(f"{name}: wrong TOML: {exc}") from None
    for table, settings in tables.items():
        if not isinstance(settings, dict):
            raise DataError(f"{name}: {table} stands outside a table")
    return tables  # type: ignore[no-any-return]


def run_config(run: RunFolder, tables: Mapping[str, Any], *, where: str = "configuration",
               data_folder: str | os.PathLike[str] = ".", seed: int | None = None, n_threads: int | None = None,
               engine: str | None = None, only: str | None = None, quiet: bool = False,
               tell: Callable[[str], None] = _log.info) -> dict[str, Any]:
    """Run the stages that a configuration has a table for.

    Parameters
    ----------
    run : RunFolder
    tables : mapping
        The tables of the TOML file.
    where : str
        Its name, for messages.
    data_folder : path
        Where relative file names begin.
    seed, n_threads : int, optional
        Before those of the configuration.
    only : str, optional
        Run just this stage; those before it must be finished.
    engine : str, optional
        Before that of [distil] if it is one that trains ("native", "torch"), else before those of [generator] and [label].
    quiet : bool, default False
        No progress bars.
    tell : callable
        Gets a line of text when a stage is done.

    Returns
    -------
    dict
        Stage name to its account; for evaluate the report.
    """
    trains = engine if engine in TRAINERS else None
    rows_on = check_engine(engine) if engine is not None and trains is None else None
    config = Config.from_dict(tables, where, seed=seed, n_threads=n_threads, engine=trains)
    if only is not None and getattr(config, only) is None:
        raise DataError(f"{where}: the table [{only}] is missing")
    folder = Path(data_folder)
    stages = ("augment", "respond", "label", "distil" if config.continual is None else "continual", "evaluate", "frontier")
    only = "continual" if only == "distil" and config.continual is not None else only
    wanted = [name for name in stages if getattr(config, name) is not None and only in (None, name)]
    seeds, held_out, files = read_data(config, folder, wanted, where)
    require_models(config, folder, wanted, where)
    run.info["config"] = {"tables": dict(tables), "where": where, "data": str(folder.resolve()), "seed": seed}
    threads: dict[str, Any] = {} if n_threads is None else {"n_threads": n_threads}
    table = load_table(folder / config.data.categories) if config.data.categories else None
    baselines = config.evaluate.named_baselines if config.evaluate is not None and "evaluate" in wanted else {}
    synonyms = None
    if "eda" in baselines:      # as the data: now, rather than when the student is trained
        synonyms = load_synonyms(folder / baselines["eda"] if baselines["eda"] else None)
    all_held_out = [row for rows in held_out.values() for row in rows]

    def of_generator() -> dict[str, Any]:
        return {"generator": partial(load_generator, config.generator, folder=folder, **threads), "quiet": quiet,
                "models": _digest_of_model(config.generator.model, config.generator.endpoint, dtype=config.generator.dtype,
                                           backend=config.generator.backend),
                "batch_size": config.generator.batch_size, "engine": rows_on or config.generator.engine}

    def of_student() -> dict[str, str]:
        student = config.distil.student
        return {} if student == TFIDF else {student: sha256(model_path(student))}

    def make(name: str) -> dict[str, Any]:
        if name == "augment":
            return augment(run, seed_rows=seeds, config=config.augment, table=table, encoder=diversity.ENCODER, **of_generator(),
                           evaluation_rows=all_held_out)
        if name == "respond":
            return respond(run, config=config.respond, **of_generator())
        if name == "label":
            assert config.label is not None
            models = _digest_of_model(config.label.teacher, config.label.endpoint, folder)
            return label(run, partial(load_teacher, config.label, models=models, folder=folder, **threads), seeds,
                         name=config.label.name, models=models, settings=config.label.recorded(folder), table=table,
                         batch_size=config.label.rows_at_once, engine=rows_on or config.label.engine, quiet=quiet)
        if name == "distil":
            return distil(run, None if config.label is not None else seeds, config=config.distil, models=of_student(),
                          quiet=quiet)
        if name == "frontier":
            from harmaug.frontier import frontier

            return frontier(run, held_out, config=config.frontier, base=config.distil, rows=None if config.label is not None else seeds,
                            teacher=config.label, folder=folder, quiet=quiet, **threads)
        if config.label is not None:
            _finished(run, "label", None)
        if name == "continual":
            from harmaug.continual import continual, read_replay

            return continual(run, None if config.label is not None else seeds, read_replay(config.continual.replay, folder), config=config.continual,
                             base=config.distil, datasets=held_out, quiet=quiet, **threads)
        training = seeds if config.label is None else rows_of(run / LABELLED)
        assert config.evaluate is not None
        for other in baselines:
            n = run.info["stages"]["label"]["account"]["seed"] if config.label is not None else len(seeds)
            baseline(run, other, training[:n], config.distil, evaluation_rows=all_held_out, synonyms=synonyms,
                     models=of_student() if other != TFIDF else None, quiet=quiet)
        return evaluate(run, None, held_out, config=config.evaluate, files=files, training=training, **threads)

    report: dict[str, Any] = {}
    for name in wanted:
        report[name] = make(name)
        tell(f"{name}: {describe(name, report[name])}")
        if name == "label" and (audit := run.info["stages"].get("label", {}).get("audit")):
            tell(teacher.describe_audit(audit))
    return report


def read_data(config: Config, folder: Path, wanted: Sequence[str],
              where: str) -> tuple[list[Row], dict[str, list[Row]], dict[str, tuple[Path, str | None]]]:
    """Return the seed rows and evaluation sets that stages need, and the sets' files with their layouts.

    They are checked now rather than after hours of training.
    """
    further = set(wanted) & set(FURTHER)
    if further and config.distil is None:
        raise DataError(f"{where}: [{min(further)}] needs the table [distil], whose settings it trains with")
    labelled = bool(further | set(wanted) & {"distil"}) and config.label is None
    needs = {"augment", "label", "distil", *FURTHER} | ({"evaluate"} if config.label is None else set())
    seeds = _seed_rows(config.data.seed, folder, labelled) if set(wanted) & needs else []
    if labelled and "continual" not in wanted:       # attacks alone are of one class; with replayed rows they can be learnt
        require_labels(seeds, f"{where}: the rows of [data] seed")
    found = {name: EvaluationFile(file=entry, layout="") if isinstance(entry, str) else entry
             for name, entry in config.data.evaluation.items()}
    sets = {name: data_file(folder, entry.file) for name, entry in found.items()}
    if "evaluate" in wanted and not sets:
        raise DataError(f"{where}: [evaluate] needs files under [data.evaluation]")
    if "evaluate" in wanted and "mean" in sets:
        raise DataError(f"{where}: [data.evaluation] names a set mean, as the average of the sets is")
    held_out = {}
    if set(wanted) & {"augment", "evaluate", *FURTHER}:
        held_out = {name: datasets.read(path, found[name].layout or None) for name, path in sets.items()}
    if further or (config.evaluate is not None and "evaluate" in wanted):
        rules = evaluate_module.PROTOCOLS["default" if config.evaluate is None else config.evaluate.protocol]
        for name, rows in held_out.items():
            evaluate_module.labels_of(rows, str(sets[name]), rules)
    if config.evaluate is not None and "evaluate" in wanted:
        try:
            evaluate_module.check_slices(config.evaluate.by, [row for rows in held_out.values() for row in rows])
        except ValueError as exc:
            raise DataError(f"{where}: [evaluate] by: {exc}") from None
    if config.evaluate is not None and config.evaluate.baselines and config.distil is None:
        raise DataError(f"{where}: [evaluate] baselines need the table [distil], whose settings they are trained with")
    if config.evaluate is not None and "plain" in config.evaluate.named_baselines and config.label is None:
        raise DataError(f"{where}: the baseline plain is the student itself: the run adds no rows ([label] is missing)")
    unknown = set(config.evaluate.over_refusal or ()) - set(sets) if config.evaluate else set()
    if unknown:
        raise DataError(f"{where}: [evaluate] over_refusal names {min(unknown)}, which [data.evaluation] has not")
    for name, n in leaks(seeds, held_out).items():
        _log.warning("%s: %d rows of the evaluation set %s stand among the seed rows; its measures will flatter",
                     where, n, name)
    return seeds, held_out, {name: (path, found[name].layout or None) for name, path in sets.items()}


def require_models(config: Config, folder: Path, wanted: Sequence[str], where: str) -> None:
    """Raise a DataError that names the setting whose model is not here or lacks the layers: now rather than after the stages before."""
    asked: list[tuple[str, Callable[[], Any]]] = []
    if config.generator.endpoint is None and {"augment", "respond"} & set(wanted):
        asked.append(("[generator] model", partial(model_path, config.generator.model)))
    if config.label is not None and config.label.endpoint is None and "label" in wanted:
        asked.append(("[label] teacher", partial(teacher_path, config.label.teacher, folder)))
    if "distil" in wanted and config.distil.student != TFIDF:
        asked.append(("[distil] student", partial(_require_layers, config.distil.student, config.distil.layers)))
    if "continual" in wanted:
        asked.append(("[continual] guard", partial(model_path, config.continual.guard)))
    if "frontier" in wanted:
        from harmaug.frontier import parse_student

        asked += [("[frontier] students", partial(parse_student, spec)) for spec in config.frontier.students]
    for setting, look in asked:
        try:
            look()
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: {setting}: {error}") from None


def _require_layers(student: str, layers: Sequence[int] | None) -> None:
    from harmaug import students

    n = students.n_layers(model_path(student))
    if layers is not None and not all(0 <= i < n for i in layers):
        raise DataError(f"layers {', '.join(map(str, layers))}: {student} has {n} layers, the first is 0")


def leaks(rows: Iterable[Row], sets: Mapping[str, Iterable[Row]]) -> dict[str, int]:
    """Return how many of a set's rows stand among the rows too, for the sets where it is not 0."""
    known = {identity(row) for row in rows}
    found = {name: sum(identity(row) in known for row in held_out) for name, held_out in sets.items()}
    return {name: n for name, n in found.items() if n}


def baseline(run: RunFolder, name: str, rows: Sequence[Row], config: DistillConfig, *,
             evaluation_rows: Sequence[Row] = (), synonyms: Mapping[str, Sequence[str]] | None = None,
             **options: Any) -> dict[str, Any]:
    """Train a baseline of BASELINES on the seed rows into guard_NAME/; options are those of `distil`.

    No variant of "eda" is near an evaluation row; without `synonyms` it takes WordNet's.
    """
    one_of("baseline", name, BASELINES)
    added = eda_rows(rows, config.seed, evaluation_rows, table=synonyms) if name == "eda" else ()
    student = dataclasses.replace(config, student=TFIDF) if name == TFIDF else config
    return distil(run, [*rows, *added], config=student, name=f"distil_{name}", folder=f"guard_{name}", **options)


def _open_guard(folder: Path, config: EvaluateConfig, options: Mapping[str, Any]) -> Any:
    from harmaug.guard import Guard

    if (folder / TFIDF_FILE).exists():
        from harmaug.integrations.sklearn import TfidfGuard

        return TfidfGuard.from_pretrained(folder)
    guard = Guard.from_pretrained(folder, long=config.long, max_length=config.max_length, **options)
    if config.max_length is None:
        evaluate_module.set_length(guard, config.protocol)
    return guard


def load_generator(config: GeneratorConfig, *, folder: Path = Path(), **options: Any) -> Generator:
    """Open the generator of a configuration; relative file names begin in `folder`."""
    if config.endpoint is not None:
        from harmaug.endpoint import EndpointLM

        assert config.template is not None
        return EndpointLM(config.endpoint, ChatTemplate.load(folder / config.template),
                          licence=config.licence or "unknown")
    lm = open_lm(model_path(config.model), backend=config.backend, device=config.device, dtype=config.dtype, **options)
    if config.template is not None:
        lm.template = ChatTemplate.load(folder / config.template, like=lm.template)
    lm.licence = config.licence or lm.licence
    return lm


def load_teacher(config: LabelConfig, *, models: Mapping[str, str], folder: Path = Path(),
                 **options: Any) -> teacher.Teacher:
    """Open the teacher of a configuration; `models` is what its cached scores are kept under."""
    made: teacher.Teacher = open_teacher(config, folder, options)
    if not config.cache or isinstance(made, teacher.ScoresTeacher):
        return made
    return teacher.CachedTeacher(made, repr((sorted(models.items()), sorted(config.recorded(folder).items()))))


def open_teacher(config: LabelConfig, folder: Path, options: Mapping[str, Any]) -> Any:
    """Return the teacher that a table [label] names; `folder` is where its relative paths begin."""
    reading = config.reading()
    template = None if config.template is None else folder / config.template
    if config.endpoint is not None:
        from harmaug.endpoint import EndpointTeacher

        assert config.family is not None
        return EndpointTeacher(config.endpoint, config.family, guidelines=config.guidelines, guidelines_response=config.guidelines_response,
                               template=None if template is None else ChatTemplate.load(template),
                               reading=LabelReading(definition=config.definition, temperature=config.temperature),
                               top_logprobs=config.top_logprobs, licence=config.licence or "unknown")
    path = teacher_path(config.teacher, folder)
    if holds_scores(config.teacher, folder):
        return teacher.ScoresTeacher(path, licence=config.licence or "unknown")
    options = {**options, "device": config.device}
    if teacher.is_language_model(path):
        from harmaug.guard_families import LanguageModelTeacher

        return LanguageModelTeacher.from_pretrained(path, licence=config.licence, **{**reading, "template": template},
                                                    batch_size=config.rows_at_once, **options)
    if set(reading) - {"dtype", "backend"}:
        raise DataError(f"{config.teacher}: a classifier takes no {', '.join(sorted(set(reading) - {'dtype', 'backend'}))}")
    name = config.teacher if config.teacher == teacher.STANDIN else path
    guard = teacher.GuardTeacher.from_pretrained(name, **reading, **options)
    guard.licence = config.licence or guard.licence
    return guard


def holds_scores(name: str, folder: Path) -> bool:
    """Whether a teacher's name means a file of scores."""
    path = teacher_path(name, folder)
    return path.is_file() and path.suffix != ".gguf"


def teacher_path(name: str, folder: Path) -> Path:
    """A file of scores lies beside the data; models are found as everywhere."""
    if name == teacher.STANDIN:
        return teacher.standin_folder()
    beside = folder / name
    return beside if beside.is_file() else model_path(name)


def _digest_of_model(name: str, endpoint: EndpointConfig | None, folder: Path = Path(), *, dtype: str | None = None,
                     backend: str = "native") -> dict[str, str]:
    """Name, with dtype and backend where they are asked for, to sha256, for run.json; a server's model cannot be looked into."""
    if endpoint is not None:
        return {endpoint.model: f"served at {endpoint.url}"}
    named = (name, f"in {dtype}" if dtype else "", f"on {backend}" if backend != "native" else "")
    return {" ".join(filter(None, named)): sha256(teacher_path(name, folder))}


def describe(stage: str, account: Mapping[str, Any]) -> str:
    """Return a stage's account in one line."""
    if stage == "evaluate":
        return _several(len(account["datasets"]) + len(account["over_refusal"]), "set")
    if stage in FURTHER:
        return _several(len(account["rows"]), "model") if stage == "frontier" else f"{_several(len(account['sets']), 'set')}, {_several(account['steps'], 'step')}"
    counts = [f"{name} {value}" for name, value in account.items()
              if isinstance(value, int) and (value or name in ("asked", "kept")) and name != "done"]
    return f"{', '.join(counts)}; {account.get('seconds', 0):.0f} s"


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def data_file(folder: Path, name: str) -> Path:
    """Return the file of rows that a configuration names: beside it, or that of a fetched set."""
    return datasets.resolve(name if name in datasets.MANIFEST else folder / name)


def _seed_rows(files: Sequence[str | SeedFile], folder: Path, labelled: bool) -> list[Row]:
    rows: list[Row] = []
    for entry in files:
        file = entry if isinstance(entry, SeedFile) else SeedFile(file=entry)
        path = data_file(folder, file.file)
        found = datasets.read(path, file.layout)
        unlabelled = next((i for i, row in enumerate(found) if row.hard_label is None), None) if labelled else None
        if unlabelled is not None:
            raise DataError(f"{path}, row {unlabelled + 1}: neither a label nor an unsafe-score")
        if file.limit is not None and file.limit < len(found):
            found = [found[i] for i in sorted(random.Random(file.seed).sample(range(len(found)), file.limit))]
        rows += found
    return rows


def model_path(name: str) -> Path:
    """Return the folder or file of a model: a path, or a name of models.REGISTRY."""
    from harmaug import models

    return models.resolve(name)


def digest(rows: Iterable[Row]) -> str:
    """Return the sha256 of rows as they would be written."""
    total = hashlib.sha256()
    for row in rows:
        total.update(encode_row(row))
    return total.hexdigest()


def _follow(rows: Iterator[Row], stage: Stage, account: Callable[[], dict[str, Any]], total: int, title: str,
            journal: Journal, quiet: bool) -> None:
    """Drain a row stage, with its account and progress; the caller says when the stage is done."""
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
    stage.account(account())


def _finished(run: RunFolder, stage: str, name: str | None) -> str:
    """Return the sha256 of a finished stage's file."""
    entry = run.info["stages"].get(stage)
    if entry is None or not entry.get("done"):
        raise RunError(f"{run.path}: stage {stage} is not {'run' if entry is None else 'finished'}; "
                       f"run `harmaug {stage} --out {run.path}` first")
    return sha256(run / name) if name else ""


def rows_of(path: Path) -> list[Row]:
    """Return the rows of a stage's file, which may be none."""
    return read_rows(path) if path.stat().st_size else []


def _made(generator: Any, stage: Stage) -> Generator:
    made: Generator = generator if hasattr(generator, "stream") else generator()
    stage.entry["generator"] = {"name": made.name, "licence": getattr(made, "licence", None) or "unknown",
                                **({"dtype": made.dtype} if hasattr(made, "dtype") else {})}
    return made


def _account(stage: Stage) -> dict[str, Any]:
    return {**stage.entry["account"], "seconds": stage.entry["seconds"]}


def _count_label(counts: dict[str, Any], row: Mapping[str, Any]) -> None:
    counts["done"] += 1
    counts["flagged"] += row["unsafe-score"] > 0.5
    counts["categories"][row["category"]] = counts["categories"].get(row["category"], 0) + 1
