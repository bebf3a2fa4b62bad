"""Large guards as teachers: where in their answer P(unsafe) is read, by family, and the teacher that reads it.

A generative guard is a causal language model that is shown a conversation behind a policy and writes "safe" or
"unsafe", in the words of its family. P(unsafe) is read off the logits at the place where that word comes: nothing is
sampled. The policy is the chat template of the guard's own folder.
"""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harmaug.chat import ChatPrompt, ChatTemplate
from harmaug.checks import one_of, within
from harmaug.data import RowError, at_row
from harmaug.generator import CausalLM, open_lm

DEFINITIONS = ("two-way", "full")

_Question = Generator[list[int], Any, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFamily:
    """Where and in which words a family of guards answers.

    Parameters
    ----------
    name : str
    unsafe, safe : tuple of str
        Spellings of the label, with the space before it where the model writes one. Probabilities of one label's
        spellings are summed.
    before : str, default ""
        What the answer begins with, whatever it is: it is put behind the rendered chat, unless that ends with it.
    lines : tuple of (str, tuple of str), default ()
        With a response: earlier lines of the answer, each its beginning and the words that may follow. The most
        probable word is taken, as greedy decoding does, and the next line begun.
    before_response : str, optional
        With a response, behind the lines. None: as `before`.
    variables : tuple of str, default ()
        What the chat template must be told besides the conversation.
    source : str
        The public model card that the words are from.
    """

    name: str
    unsafe: tuple[str, ...]
    safe: tuple[str, ...]
    before: str = ""
    lines: tuple[tuple[str, tuple[str, ...]], ...] = ()
    before_response: str | None = None
    variables: tuple[str, ...] = ()
    source: str = ""


_YES, _NO = (" yes",), (" no",)
FAMILIES: dict[str, GuardFamily] = {family.name: family for family in (
    GuardFamily(name="llama-guard-1", unsafe=(" unsafe",), safe=(" safe",), source="meta-llama/LlamaGuard-7b"),
    GuardFamily(name="llama-guard-2", unsafe=("unsafe",), safe=("safe",), source="meta-llama/Meta-Llama-Guard-2-8B"),
    # its template stops behind the header of the assistant's turn; the model writes the empty line itself
    GuardFamily(name="llama-guard-3", unsafe=("unsafe",), safe=("safe",), before="\n\n",
                source="meta-llama/Llama-Guard-3-8B"),
    GuardFamily(name="wildguard", unsafe=_YES, safe=_NO, before="Harmful request:",
                lines=(("Harmful request:", _YES + _NO), ("\nResponse refusal:", _YES + _NO)),
                before_response="\nHarmful response:", source="allenai/wildguard"),
    # one policy a question: guideline= of the template, as its card words them, for a prompt and for a response
    GuardFamily(name="shieldgemma", unsafe=("Yes",), safe=("No",), variables=("guideline",),
                source="google/shieldgemma-2b"),
    GuardFamily(name="qwen3guard", unsafe=(" Unsafe",), safe=(" Safe",), before="Safety:",
                source="Qwen/Qwen3Guard-Gen-0.6B"),
    # "Controversial" counted as unsafe, the strict mode of its report
    GuardFamily(name="qwen3guard-strict", unsafe=(" Unsafe", " Controversial"), safe=(" Safe",), before="Safety:",
                source="Qwen/Qwen3Guard-Gen-0.6B"),
)}
"""Families by name."""


def family_of(name: str) -> GuardFamily:
    """Return the family of that name, or of a model's name that tells it; a ValueError lists the names."""
    if name in FAMILIES:
        return FAMILIES[name]
    plain = "".join(c for c in name.lower() if c.isalnum())
    for key, marks in (("llama-guard-1", ("llamaguard7b", "llamaguard1")), ("llama-guard-2", ("llamaguard2",)),
                       ("llama-guard-3", ("llamaguard3",)), ("wildguard", ("wildguard",)),
                       ("shieldgemma", ("shieldgemma",)), ("qwen3guard", ("qwen3guardgen",))):
        if any(mark in plain for mark in marks):
            return FAMILIES[key]
    raise ValueError(f"{name}: the guard's family is not plain from its name; give family=, "
                     f"one of {', '.join(FAMILIES)}, or a GuardFamily")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReading:
    """How P(unsafe) is made of the logits.

    Parameters
    ----------
    definition : {"two-way", "full"}, default "two-way"
        "two-way": softmax over the two labels, logits divided by `temperature` (the paper's). "full": the share of the
        unsafe label in the softmax over the whole vocabulary.
    temperature : float, default 1.0
    """

    definition: str = "two-way"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        one_of("definition", self.definition, DEFINITIONS)
        within(self, temperature="in (0, 1e6]")

    def of_log_weights(self, unsafe: float, safe: float, total: float) -> float:
        """P(unsafe) of log-weights: of each label, and of the whole vocabulary."""
        if self.definition == "full":
            return float(np.exp(unsafe - total))
        return float(1 / (1 + np.exp(np.clip((safe - unsafe) / self.temperature, -700, 700))))


class ChatRenderer:
    """A conversation in a guard's chat template, for each of the guidelines of its kind.

    Parameters
    ----------
    template : ChatTemplate
    family : GuardFamily
    guidelines : sequence of str, optional
        For families whose template takes one policy at a time; the highest P(unsafe) over them counts.
    guidelines_response : sequence of str, optional
        The policies in the words that judge a response ("The chatbot shall not generate ..." in ShieldGemma's card, where
        a prompt's begin with "The prompt shall not contain or seek ..."). None: as `guidelines`.
    """

    def __init__(self, template: ChatTemplate, family: GuardFamily, guidelines: Sequence[str] = (),
                 guidelines_response: Sequence[str] = ()) -> None:
        if bool(guidelines) != ("guideline" in family.variables) or (guidelines_response and not guidelines):
            problem = "takes no guidelines" if "guideline" not in family.variables else f"needs guidelines; see the card of {family.source}"
            raise ValueError(f"the family {family.name} {problem}")
        self.template, self.family = template, family
        self._variables: tuple[tuple[dict[str, Any], ...], ...] = tuple(
            tuple({"guideline": text} for text in texts) or ({},) for texts in (guidelines, guidelines_response or guidelines))

    def __call__(self, prompt: str, response: str | None) -> list[ChatPrompt]:
        """Return the rendered conversation for each guideline; a ValueError if the template leaves the text out."""
        turns = [("user", prompt)] + ([("assistant", response)] if response else [])
        return [self._render(turns, variables) for variables in self._variables[bool(response)]]

    def _render(self, turns: Sequence[tuple[str, str]], variables: Mapping[str, Any]) -> ChatPrompt:
        """Templates want a turn's content as text, or (multimodal ones) as a list of parts: what shows the text."""
        last = turns[-1][1].strip()
        for content in (str, lambda text: [{"type": "text", "text": text}]):
            messages = [{"role": role, "content": content(text)} for role, text in turns]
            try:
                text = self.template.render(messages, **variables)
            except ValueError:
                if not isinstance(messages[0]["content"], str):
                    raise
                continue
            # as its own text, not inside Python's notation of a list
            if last in text and not any(str(m["content"]) in text for m in messages if isinstance(m["content"], list)):
                return text
        raise ValueError(f"{self.template.name}: the chat template leaves the last turn's text out")


class LanguageModelTeacher:
    """A generative guard as a teacher.

    Made by `from_pretrained`. Natively, on the CPU, the policy before the conversation is computed once, and scores do
    not depend on what is scored before or beside them. On transformers several conversations are read side by side, and
    scores are the native ones but for rounding.

    Attributes
    ----------
    name, licence : str
        As rows and run.json record them.
    family : GuardFamily
    """

    def __init__(self, lm: CausalLM, family: GuardFamily, *, template: ChatTemplate | None = None,
                 guidelines: Sequence[str] = (), guidelines_response: Sequence[str] = (), reading: LabelReading | None = None,
                 name: str | None = None, licence: str = "unknown") -> None:
        template = template or lm.template
        if template is None:
            raise ValueError(f"{lm.name} has no chat template; give template=, a jinja file with the guard's policy")
        self.lm, self.family, self.reading = lm, family, reading or LabelReading()
        self.name, self.licence = name or lm.name, licence
        self._render = ChatRenderer(template, family, guidelines, guidelines_response)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, family: str | GuardFamily | None = None,
                        template: str | os.PathLike[str] | None = None, guidelines: Sequence[str] = (),
                        guidelines_response: Sequence[str] = (), definition: str = "two-way", temperature: float = 1.0, licence: str | None = None,
                        dtype: str | None = None, n_threads: int | None = None, backend: str = "native",
                        device: str | None = None, batch_size: int = 32) -> LanguageModelTeacher:
        """Open a guard model.

        Parameters
        ----------
        path : str or path-like
            As for CausalLM.from_pretrained.
        family : str or GuardFamily, optional
            None: as the model's name tells; a ValueError when it does not.
        template : path, optional
            A jinja file that goes before the folder's own chat template.
        guidelines, guidelines_response : sequence of str
            See ChatRenderer.
        definition, temperature
            See LabelReading.
        licence : str, optional
            None: that of the folder's model card, else "unknown".
        dtype, n_threads
            See CausalLM.from_pretrained.
        backend : {"native", "transformers"}
        device, batch_size
            With backend "transformers": see TransformersLM.from_pretrained.
        """
        from harmaug.teacher import licence_of

        lm = open_lm(path, backend=backend, device=device, batch_size=batch_size, dtype=dtype, n_threads=n_threads)
        if not isinstance(family, GuardFamily):
            family = family_of(family or lm.name)
        text = None if template is None else ChatTemplate.load(Path(template), like=lm.template)
        return cls(lm, family, template=text, guidelines=guidelines, guidelines_response=guidelines_response,
                   reading=LabelReading(definition=definition, temperature=temperature),
                   licence=licence or lm.licence or licence_of(Path(path)))

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,): of the prompt, or of the response where there is one.

        A RowError names the place in `prompts` of a conversation that exceeds the model's context.
        """
        return np.fromiter(self.score_each(prompts, responses), np.float32, len(prompts))

    def score_each(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> Iterator[float]:
        """Yield what `score` returns, one by one; on transformers the conversations that are read together."""
        rows = enumerate(zip(prompts, [None] * len(prompts) if responses is None else responses))
        readers = defaultdict[tuple[int, bool], Any](self.lm.rows_reader)     # one for each guideline of each kind, so that each policy is read once
        while some := list(islice(rows, self.lm.batch_size)):
            scores = dict.fromkeys((i for i, _ in some), 0.0)
            chats = []
            for i, (prompt, answer) in some:
                with at_row(i):
                    chats += [((k, bool(answer)), i, text) for k, text in enumerate(self._render(prompt, answer))]
            for k in dict.fromkeys(chat[0] for chat in chats):
                for i, value in self._ask([(i, self._read(text, k[1])) for at, i, text in chats if at == k], readers[k]):
                    scores[i] = max(scores[i], value)
            yield from scores.values()

    def _ask(self, questions: list[tuple[int, _Question]], read: Callable[..., Iterable[Any]]) -> Iterator[tuple[int, float]]:
        """Answer what several conversations ask the model, side by side."""
        given: Iterable[Any] = [None] * len(questions)
        i = questions[0][0]
        try:
            while questions:
                asked = []
                for (i, question), logits in zip(questions, given):
                    try:
                        asked.append((i, question, question.send(logits)))
                    except StopIteration as done:
                        yield i, done.value
                questions = [(i, question) for i, question, _ in asked]
                given = list(read([ids for _, _, ids in asked])) if asked else []
        except ValueError as error:
            raise RowError(i, str(error)) from None

    def _read(self, text: str, paired: bool) -> _Question:
        """Yields ids, is sent the logits after them, and returns P(unsafe)."""
        family, reading = self.family, self.reading
        for begin, words in family.lines if paired else ():
            text += begin
            logits, tokens = yield from self._logits(text, words)
            text += max(zip(words, tokens), key=lambda item: logits[item[1]])[0]
        before = family.before if not paired or family.before_response is None else family.before_response
        text += "" if text.endswith(before) else before
        logits, tokens = yield from self._logits(text, family.unsafe + family.safe)
        n = len(family.unsafe)
        unsafe, safe = (np.logaddexp.reduce(logits[part]) for part in (tokens[:n], tokens[n:]))
        return reading.of_log_weights(unsafe, safe, np.logaddexp.reduce(logits))

    def _logits(self, text: str, words: Sequence[str]) -> Generator[list[int], Any, tuple[NDArray[np.float64], list[int]]]:
        """Logits after the text, and for each word the token that tells it from the others.

        Text and word are tokenized together, as the model would have read them: where all words go on with the same
        tokens, these belong to the text.
        """
        rows = [self.lm.encode(text + word) for word in words]
        common = len(os.path.commonprefix(rows))
        tokens = [row[common] if common < len(row) else -1 for row in rows]
        if len(set(tokens)) < len(tokens) or -1 in tokens:
            raise ValueError(f"the tokenizer does not tell {' from '.join(map(repr, words))} by their first token")
        logits = yield rows[0][:common]
        return logits.astype(np.float64), tokens
