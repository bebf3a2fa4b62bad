"""What `Guard` takes for rows: texts, pairs, conversations, columns of tables; one (prompt, response) a row."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from harmaug.data import is_null

Prompt = str | Sequence[Mapping[str, Any]]
Prompts = Prompt | Iterable[Prompt]
Responses = str | Iterable[str | None] | None
Pair = tuple[str, str | None]

_END = object()


def rows_of(prompts: Any, responses: Any = None) -> Iterator[Pair]:
    """Yield (prompt, response) of each row, as far as they are asked for; an empty response is None.

    What can be told at once raises at once: the wrong kind, columns that a table lacks, unequal lengths of what has a
    length. Errors of a row name it, from 0, when it is reached.
    """
    if isinstance(prompts, str) or is_conversation(prompts):
        prompts = [prompts]
    elif isinstance(prompts, Mapping):
        raise TypeError("prompts must be a str, a list of messages, or an iterable of these, got one mapping: "
                        "write [message]")
    elif hasattr(prompts, "columns"):
        prompts, responses = _table(prompts, responses)
    if isinstance(responses, str):
        responses = [responses]
    if responses is None:
        return (row_of(i, prompt, None) for i, prompt in enumerate(prompts))
    if hasattr(prompts, "__len__") and hasattr(responses, "__len__") and len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts but {len(responses)} responses")
    return _pairs(prompts, responses)


def _table(table: Any, responses: Any) -> tuple[Any, Any]:
    """The columns prompt and response of a data frame, whose iterator would give the names of its columns."""
    names = [name for name in table.columns if isinstance(name, str)]
    if "prompt" not in names:
        raise ValueError(f"a table of rows needs a column prompt, got {names}; or pass one column: table[name]")
    if "response" not in names:
        return table["prompt"], responses
    if responses is not None:
        raise ValueError("responses were given beside a table with a column response")
    return table["prompt"], table["response"]


def _pairs(prompts: Iterable[Any], responses: Iterable[Any]) -> Iterator[Pair]:
    for i, (prompt, response) in enumerate(zip_longest(prompts, responses, fillvalue=_END)):
        if prompt is _END or response is _END:
            raise ValueError(f"row {i}: the {'prompts' if prompt is _END else 'responses'} end here, the others do not")
        yield row_of(i, prompt, response)


def row_of(i: int, prompt: Any, response: Any) -> Pair:
    """Check one row; `i` is its number in messages."""
    if not isinstance(response, str):
        if not is_null(response):
            raise TypeError(f"row {i}: the response must be a str or None, got {type(response).__name__}")
        response = None
    if is_conversation(prompt):
        if response:
            raise ValueError(f"row {i}: a conversation carries its own response")
        return _conversation(i, prompt)
    if not isinstance(prompt, str):
        raise TypeError(f"row {i}: the prompt must be a str or a list of messages, got {type(prompt).__name__}")
    return prompt, response or None


def is_conversation(value: Any) -> bool:
    """Tell whether a value is a non-empty list of messages."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(m, Mapping) for m in value)


def _conversation(i: int, messages: Sequence[Mapping[str, Any]]) -> Pair:
    contents = [content_of(m.get("content"), f"row {i}: ") for m in messages]
    if not all(isinstance(m.get("role"), str) for m in messages):
        raise TypeError(f"row {i}: a message needs a role and a content, both str")
    response = contents.pop() if messages[-1]["role"] == "assistant" else None
    return "\n".join(contents), response or None


def content_of(content: Any, where: str = "") -> str:
    """The text of a message: a str, or a list of ``{"type": "text", "text": ...}``, one a line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise TypeError(f"{where}a message needs a role and a content, both str")
    kinds = {str(part.get("type")) for part in content} - {"text"}
    if kinds:
        raise TypeError(f"{where}only text can be judged, got content of type {sorted(kinds)[0][:20]}")
    if not all(isinstance(part.get("text"), str) for part in content):
        raise TypeError(f"{where}content of type text needs a text")
    return "\n".join(part["text"] for part in content)
