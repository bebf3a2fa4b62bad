"""Chat templates: messages to the text that a model was trained to continue."""
from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from harmaug import _C
from harmaug._C import FormatError


class ChatPrompt(str):
    """A rendered prompt: text, whose `tail` can be looked at by itself: what follows the last message.

    It is the opened turn of the assistant and the prefix it is begun with. A model goes on from its last character, so
    a space too many or a turn that the template closed is seen here.
    """

    tail: str

    def __new__(cls, text: str, tail: str = "") -> ChatPrompt:     # noqa: PYI034 (Self needs Python 3.11)
        self = super().__new__(cls, text)
        self.tail = tail
        return self

    def __getnewargs__(self) -> tuple[str, str]:    # type: ignore[override]
        return str(self), self.tail


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A model's chat template, rendered in jinja2's sandbox as transformers does.

    Parameters
    ----------
    source : str
        The template's text.
    name : str, default "chat template"
        The file it is from: errors begin with it.
    bos_token, eos_token : str, default ""
        What the template's variables of these names hold.
    """

    source: str
    name: str = "chat template"
    bos_token: str = ""
    eos_token: str = ""

    @classmethod
    def read(cls, path: Path) -> ChatTemplate | None:
        """The template of a .gguf, or of a folder's chat_template.jinja or tokenizer_config.json; None without one."""
        if path.is_file() or not (path / "config.json").exists():
            return cls._of_gguf(_C.TensorFile(path).metadata, path.name)
        tokens: dict[str, str] = {}
        source: str | None = None
        config_path = path / "tokenizer_config.json"
        if config_path.exists():
            config = _C.json_loads(config_path.read_bytes(), name=str(config_path))
            if not isinstance(config, dict):
                raise FormatError(f"{config_path}: an object is wanted")
            tokens = {key: _token_text(config.get(key)) for key in ("bos_token", "eos_token")}
            source = _named_template(config.get("chat_template"), config_path)
        jinja = path / "chat_template.jinja"
        if jinja.exists():
            source = jinja.read_text(encoding="utf-8")
        return None if source is None else cls(source=source, name=path.name, **tokens)

    @classmethod
    def _of_gguf(cls, metadata: Mapping[str, Any], name: str) -> ChatTemplate | None:
        source = metadata.get("tokenizer.chat_template")
        if not isinstance(source, str):
            return None
        texts = metadata.get("tokenizer.ggml.tokens", [])

        def token(key: str) -> str:
            i = metadata.get(f"tokenizer.ggml.{key}_token_id")
            return str(texts[i]) if isinstance(i, int) and 0 <= i < len(texts) else ""

        return cls(source=source, name=name, bos_token=token("bos"), eos_token=token("eos"))

    @classmethod
    def load(cls, path: Path, like: ChatTemplate | None = None) -> ChatTemplate:
        """The template of a folder or .gguf, or a jinja file with the special tokens of another template.

        A FormatError if there is none.
        """
        if path.is_dir() or path.suffix == ".gguf":
            found = cls.read(path)
            if found is None:
                raise FormatError(f"{path}: no chat template")
            return found
        bos, eos = ("", "") if like is None else (like.bos_token, like.eos_token)
        return cls(source=path.read_text(encoding="utf-8"), name=str(path), bos_token=bos, eos_token=eos)

    def render(self, messages: Sequence[Mapping[str, Any]], prefix: str = "", **variables: Any) -> ChatPrompt:
        """Return the messages with the assistant's turn opened and begun with `prefix`.

        `prefix` is put behind the rendered text as it is: nothing is stripped, and the turn stays open. Roles are those
        that the template knows: "system", "user", "assistant". `variables` are further names for the template, such as
        a guard's ``guideline``. A ValueError if it is wrong, or refuses these messages.
        """
        values = {"messages": [dict(message) for message in messages], "tools": None, "documents": None,
                  "bos_token": self.bos_token, "eos_token": self.eos_token, **variables}
        try:
            template = _compiled(self.source)
            closed = template.render(**values, add_generation_prompt=False)
            opened = template.render(**values, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise ValueError(f"{self.name}: chat template: {error}") from None
        return ChatPrompt(opened + prefix, opened.removeprefix(closed) + prefix)


def _token_text(value: Any) -> str:
    """tokenizer_config.json holds a special token as its text, or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _named_template(value: Any, path: Path) -> str | None:
    """A template, or a list of named ones, of which "default" is taken."""
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{path}: chat_template must be text, got {type(value).__name__}")
    return value


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; for rendering it is its body."""

    tags = {"generation"}   # noqa: RUF012 (an instance variable in jinja2)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    """A teacher or generator renders one template for every row."""
    return _environment().from_string(source)


def _environment() -> jinja2.Environment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
               separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[_Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env
