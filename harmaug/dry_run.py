"""What the row stages of a run would ask for, counted: nothing is asked and nothing written.

Requests are rendered by the code that sends them. Of their text only the end is shown, which holds none of a row.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harmaug import pipeline, safety
from harmaug.augment import Augmenter, requests
from harmaug.categories import load_table
from harmaug.chat import ChatPrompt, ChatTemplate
from harmaug.data import DataError, Row
from harmaug.endpoint import EndpointConfig, EndpointTeacher
from harmaug.generator import Request
from harmaug.respond import Responder
from harmaug.runs import read_info
from harmaug.tokenizer import Tokenizer

Counter = Callable[[str], int]


class _Voice:
    """A generator that only renders."""

    name = "dry run"

    def __init__(self, template: ChatTemplate | None) -> None:
        self._template = template

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], prefix: str = "") -> ChatPrompt:
        if self._template is None:
            raise DataError("the generator has no chat template")
        return self._template.render(messages, prefix)

    def stream(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def plan(tables: Mapping[str, Any], run: str | os.PathLike[str], *, where: str = "configuration",
         data_folder: str | os.PathLike[str] = ".", seed: int | None = None, only: str | None = None) -> dict[str, Any]:
    """Return what is left to ask for, by row stage; the parameters are those of pipeline.run_config.

    Returns
    -------
    dict
        Stage to "requests" (to a server one a sample; else samples or rows), "prompt_tokens" and "completion_tokens" at
        most, without retries, "tokens_by" ("tokenizer", or "bytes": a token is a byte at least), "cost" at most (None
        without a server), and "ends", how the prompts end. "waits_for" instead names the stage whose rows must be
        there first.
    """
    config = pipeline.Config.from_dict(tables, where, seed=seed)
    folder, run = Path(data_folder), Path(run)
    wanted = [name for name in ("augment", "respond", "label") if getattr(config, name) is not None and only in (None, name)]
    if not wanted:
        raise DataError(f"{where}: a dry run is of augment, respond or label; the configuration has no such table")
    seeds, _, _ = pipeline.read_data(config, folder, wanted, where)
    stages = read_info(run)["stages"] if (run / "run.json").is_file() else {}
    before = {"respond": ["augment"], "label": [name for name in ("augment", "respond") if getattr(config, name) is not None]}
    report: dict[str, Any] = {}
    for name in wanted:
        missing = [stage for stage in before.get(name, ()) if not stages.get(stage, {}).get("done")]
        if missing:
            report[name] = {"waits_for": missing[0]}
        elif name == "label":
            report[name] = _label(config, folder, run, seeds)
        else:
            report[name] = _sample(name, config, folder, run, seeds)
    return report


def describe(stage: str, found: Mapping[str, Any]) -> str:
    """Return a stage's plan as lines of text."""
    if "waits_for" in found:
        return f"{stage}: known when {found['waits_for']} is done"
    cost = "" if found["cost"] is None else f", money {found['cost']:.4f}"
    ends = "".join(f"\n  prompts end with {end!r}" for end in found["ends"])
    return (f"{stage}: {found['requests']:,} requests, at most {found['prompt_tokens']:,} prompt tokens (by {found['tokens_by']}) "
            f"and {found['completion_tokens']:,} completion tokens{cost}{ends}")


def _sample(stage: str, config: pipeline.Config, folder: Path, run: Path, seeds: Sequence[Row]) -> dict[str, Any]:
    generator = config.generator
    source = folder / generator.template if generator.template is not None else None
    model = None if generator.endpoint is not None else pipeline.model_path(generator.model)
    own = ChatTemplate.read(model) if model is not None else None
    voice = _Voice(own if source is None else ChatTemplate.load(source, like=own))
    if stage == "augment":
        assert config.augment is not None
        done, sampler = _lines(run, pipeline.INSTRUCTIONS, pipeline.REJECTED), config.augment.sampler()
        table = load_table(folder / config.data.categories) if config.data.categories else None
        draws = Augmenter(voice, config.augment, table=table).draws([row for row in seeds if not safety.blocked_row(row)])
        asked = requests(draw for draw in draws if draw.first_key + draw.n > done)
    else:
        assert config.respond is not None
        done, sampler = _lines(run, pipeline.PAIRS, pipeline.PAIRS_REJECTED), config.respond.sampler()
        responder = Responder(voice, config.respond)
        asked = responder.requests(responder.tasks(pipeline.rows_of(run / pipeline.INSTRUCTIONS))[done:])
    count, by = _counter(model or source)
    n = sum(request.n for request in asked)
    prompts = sum(count(request.prompt) * (request.n if generator.endpoint is not None else 1) for request in asked)
    return _told(n, prompts, n * sampler.max_new_tokens, by, generator.endpoint, map(_end, asked))


def _label(config: pipeline.Config, folder: Path, run: Path, seeds: Sequence[Row]) -> dict[str, Any]:
    label = config.label
    assert label is not None
    rows = [row for row in seeds if not safety.blocked_row(row)]
    for stage, name in ((config.augment, pipeline.INSTRUCTIONS), (config.respond, pipeline.PAIRS)):
        rows += pipeline.rows_of(run / name) if stage is not None else []
    rows = rows[_lines(run, pipeline.LABELLED):]
    if label.endpoint is None:
        return _told(len(rows), 0, 0, "tokenizer", None, ())
    teacher = pipeline.open_teacher(label, folder, {})
    assert isinstance(teacher, EndpointTeacher)
    payloads = [payload for _, payload in teacher.payloads((row.prompt, row.response) for row in rows)]
    template = None if label.template is None else folder / label.template
    count, by = _counter(template)
    texts = [payload.get("prompt") or "\n".join(m["content"] for m in payload["messages"]) for payload in payloads]
    told = _told(len(payloads), sum(map(count, texts)), sum(payload["max_tokens"] for payload in payloads), by, label.endpoint, ())
    if template is None:
        told["tokens_by"] = "bytes, without the server's own template"
    return told


def _told(n: int, prompt: int, completion: int, by: str, endpoint: EndpointConfig | None, ends: Iterable[str]) -> dict[str, Any]:
    cost = None if endpoint is None else (prompt * endpoint.prompt_price + completion * endpoint.completion_price) / 1e6
    return {"requests": n, "prompt_tokens": prompt, "completion_tokens": completion, "tokens_by": by, "cost": cost,
            "ends": sorted(set(ends))}


def _end(request: Request) -> str:
    """The opened turn and its prefix, or the number at which a list goes on."""
    prompt = request.prompt
    return prompt.tail if isinstance(prompt, ChatPrompt) else "\n" + prompt.rsplit("\n", 1)[-1]


def _counter(source: Path | None) -> tuple[Counter, str]:
    """Return what bounds a text's tokens from above, and what it goes by: the tokenizer beside a template, or bytes."""
    if source is not None and (source.is_dir() or source.suffix == ".gguf"):
        tokenizer = Tokenizer.from_pretrained(source)
        return lambda text: len(tokenizer.encode_batch([text]).ids), "tokenizer"
    return lambda text: len(text.encode("utf-8", "surrogatepass")) + 1, "bytes"     # and one that begins it


def _lines(run: Path, *names: str) -> int:
    """Rows that are recorded; a torn last line does not count."""
    return sum((run / name).read_bytes().count(b"\n") for name in names if (run / name).exists())
