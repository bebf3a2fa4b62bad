"""One refusing and one compliant response for each instruction, each begun with its own prefix.

A small model never refuses unasked and an aligned one never complies unasked: the prefix decides, and what goes on
against it is dropped.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from harmaug import engines, safety
from harmaug.checks import one_of, within
from harmaug.data import Row
from harmaug.filters import RefusalFilter, complies
from harmaug.generator import Generation, Generator, Request, SamplerConfig, in_order
from harmaug.runs import Journal, Kind

MODES = ("none", "refusal", "pairs")
COMPLIANT_LIMIT = 96        # tokens; a guard judges an answer by its beginning, and nobody needs the rest
REJECTIONS = ("withheld", "blocked", "empty", "contradicts")
RECORDED: tuple[dict[str, Kind], ...] = ({"intent": ("refusal", "compliance"), "tokens": int},
                                         {"intent": ("refusal", "compliance"), "tokens": int, "reason": REJECTIONS})
"""What `Responder.run` relies on in the rows of its journal, kept and rejected."""
_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class RespondConfig:
    """How responses are made; a ValueError names a field outside its range.

    Parameters
    ----------
    responses : {"refusal", "pairs", "none"}, default "refusal"
        "refusal" makes refusing responses only. "pairs" is the paper's: a refusing and a compliant one.
    refusing_prefix, compliant_prefix : str
        How the assistant's turn begins; the response holds it and its row records it.
    max_new_tokens : int, default 96
        At most 96 with "pairs".
    withhold_cbrne : bool, default True
        No compliant responses to chemical, biological, radiological, nuclear and explosives rows.
    limit : int, optional
        Respond to so many instructions only, evenly spread.
    temperature, top_p
        The sampler; see SamplerConfig.
    refusals : tuple of str, optional
        Patterns of refusal openings instead of filters.REFUSALS.
    seed : int, default 0
    """

    responses: str = "refusal"
    refusing_prefix: str = "I'm sorry, but"
    compliant_prefix: str = "Sure, here is"
    max_new_tokens: int = COMPLIANT_LIMIT
    withhold_cbrne: bool = True
    limit: int | None = None
    temperature: float = 0.9
    top_p: float = 0.95
    refusals: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("responses", self.responses, MODES)
        within(self, seed="in [0, 9e18]", limit=">= 0")
        if not self.refusing_prefix.strip() or not self.compliant_prefix.strip():
            raise ValueError("refusing_prefix and compliant_prefix must not be empty")
        if self.responses == "pairs" and self.max_new_tokens > COMPLIANT_LIMIT:
            raise ValueError(f"max_new_tokens must be <= {COMPLIANT_LIMIT} for compliant responses, "
                             f"got {self.max_new_tokens}")
        self.sampler()
        RefusalFilter(self.refusals)

    def sampler(self) -> SamplerConfig:
        """Return the settings of the sampler."""
        return SamplerConfig(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens,
                             seed=self.seed)

    @property
    def intents(self) -> tuple[str, ...]:
        """What is made for each instruction, in order."""
        return {"none": (), "refusal": ("refusal",), "pairs": ("refusal", "compliance")}[self.responses]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One response to make."""

    key: int
    intent: str
    instruction: Row


class Responder:
    """Makes responses to instructions.

    Parameters
    ----------
    generator : Generator
    config : RespondConfig, optional
    batch_size : int, default 32
        Sequences decoded together. Changes no row.

    Attributes
    ----------
    account_ : dict
        asked, each rejection, kept, tokens; kept by intent.
    """

    def __init__(self, generator: Generator, config: RespondConfig | None = None, *, batch_size: int = 32) -> None:
        self.generator = generator
        self.config = config or RespondConfig()
        self.batch_size = batch_size
        self._refused = RefusalFilter(self.config.refusals)
        self.account_: dict[str, Any] = {}

    def run(self, instructions: Sequence[Row], *, journal: Journal | None = None,
            stamp: Mapping[str, Any] | None = None, engine: str = "local") -> Iterator[Row]:
        """Yield the kept rows (prompt and response) in the order of their keys; see Augmenter.run for the options."""
        tasks = self.tasks(instructions)
        counted = ("done", *REJECTIONS, "kept", "tokens", "refusal", "compliance")
        self.account_ = {"asked": len(tasks), **dict.fromkeys(counted, 0)}
        if journal is not None:
            for done in journal.kept_rows + journal.rejected_rows:
                self._count(done["intent"], done.get("reason"), done["tokens"])
        left = tasks[journal.next_key if journal is not None else 0:]
        for task, generation in engines.map_rows(self._sample, left, engine=engine, batch_size=_AT_ONCE):
            row, kept = self._judge(task, generation, stamp or {})
            if journal is not None:
                journal.append(row, kept=kept)
            if kept:
                assert isinstance(row, Row)
                yield row

    def tasks(self, instructions: Sequence[Row]) -> list[Task]:
        """Return what is to be made, in the order of its keys."""
        chosen = spread(instructions, self.config.limit)
        return [Task(key=key, intent=intent, instruction=row)
                for key, (row, intent) in enumerate(product(chosen, self.config.intents))]

    def requests(self, tasks: Iterable[Task]) -> list[Request]:
        """Return what the generator is asked for: nothing for tasks that are withheld."""
        return [Request(prompt=self._prompt(task), first_index=task.key) for task in tasks if not self._withheld(task)]

    def _prefix(self, intent: str) -> str:
        return self.config.refusing_prefix if intent == "refusal" else self.config.compliant_prefix

    def _prompt(self, task: Task) -> str:
        message = {"role": "user", "content": task.instruction.prompt}
        return self.generator.chat_prompt([message], self._prefix(task.intent))

    def _withheld(self, task: Task) -> bool:
        row = task.instruction
        return self.config.withhold_cbrne and task.intent == "compliance" and safety.is_cbrne(row.prompt, row.category)

    def _sample(self, tasks: Sequence[Task]) -> Iterator[Generation | None]:
        answers = in_order(self.generator, self.requests(tasks), batch_size=self.batch_size,
                           sampling=self.config.sampler())
        for task in tasks:
            yield None if self._withheld(task) else next(answers)[0]

    def _judge(self, task: Task, generation: Generation | None,
               stamp: Mapping[str, Any]) -> tuple[Row | dict[str, Any], bool]:
        prefix = self._prefix(task.intent)
        about = {"key": task.key, "intent": task.intent, "instruction": task.instruction.id, "prefix": prefix,
                 "tokens": generation.tokens if generation else 0, **stamp}
        text = "" if generation is None else (prefix + generation.text).strip()
        reason = "withheld" if generation is None else self._reason(task, text, generation)
        self._count(task.intent, reason, about["tokens"])
        if reason is None:
            assert generation is not None
            source = task.instruction
            return Row(prompt=source.prompt, response=text, category=source.category, source=f"respond:{task.intent}",
                       id=f"response:{task.key}", seed=self.config.seed,
                       generator=str(getattr(self.generator, "name", "generator")),
                       extra={**about, "stop_reason": generation.stop_reason}), True
        about["reason"] = reason
        if reason == "blocked":
            about |= {"blocked": safety.blocked(task.instruction.prompt, text), "sha256": safety.digest(text)}
        elif reason != "withheld":
            about["response"] = text
        return about, False

    def _reason(self, task: Task, text: str, generation: Generation) -> str | None:
        if safety.blocked(task.instruction.prompt, text):
            return "blocked"
        if not generation.text.strip():
            return "empty"
        refused = self._refused.within(text) or self._refused.within(generation.text)
        if task.intent == "refusal":
            return None if refused and not complies(text) else "contradicts"
        return "contradicts" if refused else None

    def _count(self, intent: str, reason: str | None, tokens: int) -> None:
        self.account_["done"] += 1
        self.account_["tokens"] += tokens
        self.account_[reason or "kept"] += 1
        if reason is None:
            self.account_[intent] += 1


def spread(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """Return `limit` of the rows, evenly spread over them; all when there are no more."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]
