"""OpenAI-compatible servers (vLLM, llama.cpp, Ollama, hosted ones) as generators and teachers: the ``http`` extra.

Requests go out a few at a time and are retried; their answers come back in order. Answers of a server are recorded,
not reproducible. No message holds a row's text or a key.
"""
from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import itertools
import math
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harmaug.chat import ChatPrompt, ChatTemplate
from harmaug.checks import require_network, within
from harmaug.data import at_row
from harmaug.generator import Generation, Request, SamplerConfig
from harmaug.guard_families import ChatRenderer, GuardFamily, LabelReading, family_of

if TYPE_CHECKING:
    import httpx

_LONGEST_PAUSE = 60.0       # seconds between two tries
_MOST_STOPS = 4             # stop strings that the interface takes
_SURROGATE = re.compile("[\ud800-\udfff]")


class EndpointError(ValueError):
    """A server could not be used as asked, or its budget is spent; the message says which and why."""


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server and how it is used; a ValueError names a field outside its range.

    Parameters
    ----------
    url : str
        Its base, up to and with ``/v1``.
    model : str
        As the server calls it; "" sends none.
    api_key_env : str, default "OPENAI_API_KEY"
        Environment variable that holds the key, if the server wants one.
    concurrency : int, default 8
        Requests under way at once.
    timeout : float, default 120
        Seconds until an unanswered request is tried again.
    retries : int, default 6
        Further tries after a timeout, a cut or unreadable answer, 408, 409, 429 or 5xx; pauses double from 0.5 s on, up
        to a minute, and keep to the server's ``Retry-After``.
    requests_per_minute : float, optional
    max_total_tokens, max_cost : optional
        Budget: no request is begun when the prompt and completion tokens so far, or the money, have reached it.
    prompt_price, completion_price : float, default 0
        Money for a million tokens.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    requests_per_minute: float | None = None
    max_total_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        within(self, concurrency="in [1, 1024]", timeout="in (0, 86400]", retries=">= 0",
               requests_per_minute="in (0, 1e9]", max_total_tokens=">= 0", max_cost=">= 0", prompt_price=">= 0",
               completion_price=">= 0")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        with contextlib.suppress(ImportError):      # Endpoint says that it is missing
            import httpx

            try:
                url = httpx.URL(self.url)
            except httpx.InvalidURL as error:
                raise ValueError(f"url: {error}") from None
            if not url.host or not 0 <= (url.port or 0) < 1 << 16:
                raise ValueError(f"url must name a host, and a port below 65536, got {self.url!r}")


class Endpoint:
    """A server's connection pool, retries, budget and account.

    Requests run on an event loop in a thread of its own, so that an interrupt gives them up at once and a notebook's
    loop is left alone.

    Attributes
    ----------
    account : dict
        requests, retries, prompt_tokens, completion_tokens, cost.
    """

    def __init__(self, config: EndpointConfig) -> None:
        try:
            import httpx
        except ImportError:
            raise ImportError("a server needs httpx: pip install 'harmaug[http]'") from None
        require_network(f"the server {config.url}")
        self._httpx = httpx
        self.config = config
        self._model = {"model": config.model} if config.model else {}
        key = os.environ.get(config.api_key_env, "")
        self._client = httpx.AsyncClient(base_url=config.url.rstrip("/") + "/", timeout=config.timeout,
                                         headers={"Authorization": f"Bearer {key}"} if key else {})
        self._places = asyncio.Semaphore(config.concurrency)
        self._next_start = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="harmaug-endpoint", daemon=True).start()
        weakref.finalize(self, _stop, self._loop, self._client)
        self.account: dict[str, Any] = {"requests": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0,
                                        "cost": 0.0}

    def __reduce__(self) -> Any:
        raise ValueError("a server is asked from one process, which keeps to its rate and budget: engine must be 'local', "
                         "whose requests go out `concurrency` at once")

    def map(self, path: str, payloads: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """Post each payload and yield the JSON objects answered, in order; twice `concurrency` are read ahead.

        An EndpointError after the last try of one of them, or when the budget is spent.
        """
        waiting: collections.deque[Future[Any]] = collections.deque()
        left = iter(payloads)

        def submit(count: int) -> None:
            waiting.extend(asyncio.run_coroutine_threadsafe(self._post(path, item), self._loop)
                           for item in itertools.islice(left, count))

        try:
            submit(2 * self.config.concurrency)
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
                submit(1)
        finally:
            for future in waiting:
                future.cancel()

    async def _post(self, path: str, payload: Mapping[str, Any]) -> Any:
        config = self.config
        problem = ""
        for attempt in range(config.retries + 1):
            pause = min(0.5 * 2 ** attempt, _LONGEST_PAUSE) * (0.5 + random.random() / 2)   # noqa: S311
            try:
                async with self._places:
                    await self._wait_for_turn()
                    answer = await self._client.post(path, json={**self._model, **payload})
                problem = f"status {answer.status_code}"
                if answer.is_success:
                    body = answer.json()
                    if not isinstance(body, dict) or not isinstance(body.get("choices", []), list):
                        raise ValueError
                    self._count(body.get("usage"))
                    return body
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    raise EndpointError(f"{config.url}: {path}: {problem}{_error_code(answer)}")
                pause = max(pause, _retry_after(answer))
            except EndpointError:
                raise
            except self._httpx.HTTPError as error:
                problem = type(error).__name__
            except ValueError:
                problem = "an answer that is no JSON object"
            if attempt < config.retries:
                self.account["retries"] += 1
                await self._pause(min(pause, _LONGEST_PAUSE))
        raise EndpointError(f"{config.url}: {path}: {problem}, after {config.retries + 1} tries; "
                            "what a run folder holds is kept, the same command goes on from there")

    async def _wait_for_turn(self) -> None:
        config, account = self.config, self.account
        used = account["prompt_tokens"] + account["completion_tokens"]
        for limit, spent, what in ((config.max_total_tokens, used, "tokens"),
                                   (config.max_cost, account["cost"], "money")):
            if limit is not None and spent >= limit:
                raise EndpointError(f"{config.url}: the budget of {what} is spent: {spent:g} of {limit:g}")
        account["requests"] += 1
        if config.requests_per_minute is not None:
            now = time.monotonic()
            begin = max(now, self._next_start)
            self._next_start = begin + 60 / config.requests_per_minute
            await self._pause(begin - now)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _count(self, usage: Any) -> None:
        """A server that tells no usage counts as using none."""
        with contextlib.suppress(TypeError, AttributeError, KeyError):
            prompt, completion = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
            self.account["prompt_tokens"] += prompt
            self.account["completion_tokens"] += completion
            self.account["cost"] += (prompt * self.config.prompt_price
                                     + completion * self.config.completion_price) / 1e6


class EndpointLM:
    """A server's model as a generator: raw completions behind a chat template rendered here.

    The prefix that an answer begins with works with raw prompts only: chat interfaces close the assistant's turn.

    Parameters
    ----------
    endpoint : Endpoint or EndpointConfig
    template : ChatTemplate
        The served model's own: of its folder or GGUF file, or a jinja file.
    licence : str, default "unknown"
        Of the model's outputs, for run.json.
    """

    def __init__(self, endpoint: Endpoint | EndpointConfig, template: ChatTemplate, *, licence: str = "unknown") -> None:
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint)
        self.template, self.licence = template, licence
        self.name = self.endpoint.config.model

    def chat_prompt(self, messages: Sequence[Mapping[str, str]], prefix: str = "") -> ChatPrompt:
        """Return the messages in the chat template, with the assistant's turn opened and begun with `prefix`."""
        return self.template.render(messages, prefix)

    def stream(self, requests: Iterable[Request], *, batch_size: int = 32, seed: int = 0,
               sampling: SamplerConfig | None = None) -> Iterator[tuple[int, int, Generation]]:
        """Yield (position of the request, i in 0..n-1, Generation) in order, one completion a request to the server.

        `batch_size` is not looked at: ``EndpointConfig.concurrency`` requests are under way at once. Each sample sends
        its own seed, made of (seed, index). Ids and log-probabilities are not asked for. A sample that began with a
        stop string is empty.
        """
        sampling = sampling or SamplerConfig()
        asked = list(requests)
        samples = [(at, i) for at, request in enumerate(asked) for i in range(request.n)]
        payloads = ({"prompt": _raw(asked[at].prompt, self.template), "seed": _sample_seed(seed, asked[at].first_index + i),
                     **_options(sampling, asked[at].stop)} for at, i in samples)
        answers = self.endpoint.map("completions", payloads)
        for (at, i), answer in zip(samples, answers):
            yield at, i, _completion(answer, self.endpoint.config.url)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Close the connections and end the loop's thread."""
    closing = asyncio.run_coroutine_threadsafe(client.aclose(), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))


def _raw(prompt: str, template: ChatTemplate) -> str:
    """The prompt without the begin-of-sequence token, which the server puts there itself; one that also opens turns stays."""
    rest = prompt.removeprefix(template.bos_token)
    return str(prompt if template.bos_token in rest else rest)


def _options(sampling: SamplerConfig, stop: Sequence[str]) -> dict[str, Any]:
    """What is at its default is not sent: not every server knows top_k and min_p."""
    options: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    options |= {name: getattr(sampling, name) for name, plain in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0))
                if getattr(sampling, name) != plain}
    if len(stop) > _MOST_STOPS:
        raise EndpointError(f"servers take {_MOST_STOPS} stop strings at most, got {len(stop)}")
    return options | ({"stop": list(stop)} if stop else {})


def _sample_seed(seed: int, index: int) -> int:
    """31 bits: what every server takes."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "little") >> 1


def _completion(answer: Mapping[str, Any], url: str) -> Generation:
    try:
        choice = answer["choices"][0]
        text, reason = choice["text"], choice.get("finish_reason")
        tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError
    except (LookupError, TypeError, ValueError, AttributeError):
        raise EndpointError(f"{url}: an answer without choices[0].text") from None
    text = _SURROGATE.sub("\ufffd", text)      # JSON allows half a pair, UTF-8 does not
    return Generation(text=text, ids=(), logprob=float("nan"), stop_reason="length" if reason == "length" else "eos",
                      n_tokens=tokens)


def _error_code(answer: httpx.Response) -> str:
    """The kind of the server's error: never its message, which may quote the prompt."""
    with contextlib.suppress(ValueError, AttributeError):
        error = answer.json().get("error", {})
        kind = error.get("code") or error.get("type")
        return f" ({str(kind)[:60]})" if kind else ""
    return ""


def _retry_after(answer: httpx.Response) -> float:
    try:
        return float(answer.headers.get("Retry-After", 0))
    except ValueError:      # a date: the doubling pauses get there
        return 0.0


class EndpointTeacher:
    """A generative guard behind a server as a teacher: P(unsafe) from the most probable tokens it tells.

    With a template the rendered chat goes out as a raw completion, begun as the family answers. Without one the
    server renders the conversation itself and its answer is read up to the place where the label comes.

    A label outside the told tokens is at most as probable as the least probable of them, and as what they leave of 1:
    that bound is taken for it, and the row counted in ``account["bounded"]``. With neither label told the two-way
    P(unsafe) is therefore 0.5, and the full one that bound.

    Attributes
    ----------
    account : dict
        Of the endpoint, and "bounded".
    """

    def __init__(self, endpoint: Endpoint | EndpointConfig, family: str | GuardFamily, *,
                 template: ChatTemplate | None = None, guidelines: Sequence[str] = (), guidelines_response: Sequence[str] = (),
                 reading: LabelReading | None = None, top_logprobs: int = 20, licence: str = "unknown") -> None:
        self.endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint(endpoint)
        self.family = family if isinstance(family, GuardFamily) else family_of(family)
        self.reading, self.top_logprobs, self.licence = reading or LabelReading(), top_logprobs, licence
        self.name = self.endpoint.config.model
        if template is None and self.family.variables:
            raise ValueError(f"the family {self.family.name} needs a template: a chat interface takes no guidelines")
        self._render = None if template is None else ChatRenderer(template, self.family, guidelines, guidelines_response)
        self.account = self.endpoint.account
        self.account["bounded"] = 0

    def score(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> NDArray[np.float32]:
        """Return P(unsafe), shape (n,); an EndpointError when the server fails or its answers hold no log-probabilities."""
        return np.fromiter(self.score_each(prompts, responses), np.float32, len(prompts))

    def score_each(self, prompts: Sequence[str], responses: Sequence[str | None] | None = None) -> Iterator[float]:
        """Yield what `score` returns, one by one as answers come."""
        rows = list(zip(prompts, [None] * len(prompts) if responses is None else responses))
        asked = list(self.payloads(rows))
        path = "chat/completions" if self._render is None else "completions"
        answers = self.endpoint.map(path, (payload for _, payload in asked))
        for i, of_row in itertools.groupby(asked, key=lambda item: item[0]):
            response = rows[i][1]
            before = self._before(response) if self._render is None or (response and self.family.lines) else ""
            told = (_at_label(_logprobs(next(answers), self.endpoint.config.url), before, self.family) for _ in of_row)
            yield max(map(self._value, told))

    def payloads(self, rows: Iterable[tuple[str, str | None]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield what is posted for (prompt, response) pairs, each with the place of its pair.

        With a template one token for each rendered chat; with earlier lines to write, the answer as far as the label.
        """
        top = self.top_logprobs
        for i, (prompt, response) in enumerate(rows):
            written = bool(response and self.family.lines)
            if self._render is None:
                messages = [{"role": "user", "content": prompt}]
                messages += [{"role": "assistant", "content": response}] if response else []
                yield i, {"messages": messages, "max_tokens": 48 if written else 12, "temperature": 0, "logprobs": True,
                          "top_logprobs": top}
                continue
            before = self.family.lines[0][0] if written else self._before(response)
            with at_row(i):
                chats = self._render(prompt, response)
            for text in chats:
                yield i, {"prompt": _raw(text, self._render.template) + ("" if text.endswith(before) else before),
                          "max_tokens": 48 if written else 1, "temperature": 0, "logprobs": top}

    def _before(self, response: str | None) -> str:
        family = self.family
        return family.before if not response or family.before_response is None else family.before_response

    def _value(self, told: Mapping[str, float]) -> float:
        """P(unsafe) of the told tokens' log-probabilities."""
        floor = min(told.values(), default=math.log(0.5))       # of nothing told: the middle
        left = max(1.0 - sum(map(math.exp, told.values())), 1e-12)
        weights: dict[str, float | None] = {}
        for label, words, others in (("unsafe", self.family.unsafe, self.family.safe),
                                     ("safe", self.family.safe, self.family.unsafe)):
            found = [value for token, value in told.items() if _begins(token, words) and not _begins(token, others)]
            weights[label] = float(np.logaddexp.reduce(found)) if found else None
        if None in weights.values():
            self.account["bounded"] += 1
        bound = min(floor, math.log(left))
        unsafe, safe = (bound if value is None else value for value in weights.values())
        return min(self.reading.of_log_weights(unsafe, safe, 0.0), 1.0)


_Told = list[tuple[str, dict[str, float]]]      # each token of an answer, and the log-probabilities told beside it


def _logprobs(answer: Any, url: str) -> _Told:
    """Both shapes of the interface: completions' parallel lists, chat's list of objects."""
    try:
        told = answer["choices"][0]["logprobs"]
        if "content" in told:
            return [(item["token"], {top["token"]: float(top["logprob"]) for top in item["top_logprobs"]}
                     | {item["token"]: float(item["logprob"])}) for item in told["content"]]
        return [(token, {str(key): float(value) for key, value in top.items()})
                for token, top in zip(told["tokens"], told["top_logprobs"])]
    except (LookupError, TypeError, ValueError, AttributeError):
        raise EndpointError(f"{url}: an answer without log-probabilities (logprobs); the server must tell them") from None


def _at_label(tokens: _Told, before: str, family: GuardFamily) -> dict[str, float]:
    """What was told at the token where the label comes: the first that is no white space behind `before`."""
    text = ""
    for token, told in tokens:
        if token.strip() and text.strip().endswith(before.strip()):
            return told
        text += token
    raise EndpointError(f"an answer ends before its label; is the model of the family {family.name}?")


def _begins(token: str, words: Sequence[str]) -> bool:
    bare = token.strip()
    return bare != "" and any(word.strip().startswith(bare) for word in words)
