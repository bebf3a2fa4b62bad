"""A guard over HTTP: OpenAI's /v1/moderations, /score and /healthz. What ``harmaug serve`` runs.

Rows of requests that wait at the same time are scored together, which changes no score. Nothing of a row is logged. There is no
authentication and no TLS: beyond the loopback interface, put a proxy with both in front.
"""
from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from harmaug.data import DataError, decode_json
from harmaug.inputs import Pair, content_of, row_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from harmaug.guard import Guard

__all__ = ["create_app", "serve"]

BATCH_ROWS = 64             # scored together
SHARE = 8                   # of one request in a batch, while others wait: a large request does not hold up small ones
MAX_CONNECTIONS = 1024
_log = logging.getLogger(__name__)
_Result = dict[str, Any]


class Refusal(Exception):
    """An answer other than 200; the message is shown to the client."""

    def __init__(self, status: int, message: str, code: str | None = None, *, retry: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry = status, message, code, retry


class _Job:
    """The rows of one request: `taken` of them are scored or being scored."""

    def __init__(self, rows: list[Pair], future: asyncio.Future[list[_Result]]) -> None:
        self.rows, self.future = rows, future
        self.taken, self.results = 0, list[_Result]()


class Batcher:
    """Scores the rows of many requests, one batch at a time, in a thread of its own."""

    def __init__(self, guard: Guard, *, max_queue: int, timeout: float) -> None:
        self.guard, self.max_queue, self.timeout = guard, max_queue, timeout
        self.jobs: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="harmaug-score")

    async def score(self, rows: list[Pair]) -> list[_Result]:
        """Results of a request's rows, in order. A Refusal when too many requests wait, or this one waited too long."""
        if len(self.jobs) >= self.max_queue:
            raise Refusal(503, f"{self.max_queue} requests are waiting already; try again", "queue_full", retry=True)
        if not rows:
            return []
        job = _Job(rows, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self._wake.set()
        try:
            return await asyncio.wait_for(job.future, self.timeout)
        except asyncio.TimeoutError:
            raise Refusal(503, f"not scored within {self.timeout:g} seconds; try again", "timeout", retry=True) from None
        finally:    # who gave up leaves its place at once
            if job in self.jobs:
                self.jobs.remove(job)

    async def run(self) -> None:
        """Score what waits, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if not (batch := self._take()):
                self._wake.clear()
                continue
            rows = [row for _, part in batch for row in part]
            try:
                results = iter(await loop.run_in_executor(self._pool, self._score, rows))
            except Exception as error:      # not a row's fault
                _log.error("scoring failed: %s", type(error).__name__)
                for job, _ in batch:
                    _settle(job, Refusal(500, "internal error", "internal_error"))
                continue
            for job, part in batch:
                for _ in part:
                    job.results.append(next(results))
                if len(job.results) == len(job.rows):
                    _settle(job, None)

    def _take(self) -> list[tuple[_Job, list[Pair]]]:
        """The next batch: a share of each waiting request in turn, as long as there is room. Requests that gave up are dropped."""
        batch, room = [], BATCH_ROWS
        while self.jobs and room:
            job = self.jobs.popleft()
            if job.future.done():
                continue
            part = job.rows[job.taken:job.taken + min(SHARE, room)]
            job.taken += len(part)
            room -= len(part)
            batch.append((job, part))
            if job.taken < len(job.rows):
                self.jobs.append(job)
        return batch

    def _score(self, rows: list[Pair]) -> list[_Result]:
        """Runs in the thread. A row that the guard refuses gets {"error": why}, beside the others' scores."""
        prompts, responses = [prompt for prompt, _ in rows], [response for _, response in rows]
        about: dict[str, list[int]] = {}
        try:
            if hasattr(self.guard, "score_details"):
                details = self.guard.score_details(prompts, responses)
                scores = details.score
                about = {name: getattr(details, name).tolist() for name in ("n_windows", "window", "n_tokens", "truncated")}
            else:       # the TF-IDF baseline
                scores = self.guard.score(prompts, responses)
        except ValueError as error:
            if len(rows) > 1:
                return [self._score([row])[0] for row in rows]
            return [{"error": str(error).removeprefix("row 0").lstrip(": ")}]
        # a float32's shortest decimal, as `harmaug score` writes it
        return [{"score": float(str(score)), **{name: values[i] for name, values in about.items()}}
                for i, score in enumerate(np.asarray(scores, dtype=np.float32))]

    def close(self) -> None:
        """Wait for what is being scored, and end the threads."""
        self._pool.shutdown()


def _settle(job: _Job, error: Refusal | None) -> None:
    if not job.future.done():
        job.future.set_exception(error) if error is not None else job.future.set_result(job.results)


def create_app(guard: Guard, *, name: str = "harmaug", threshold: float | None = None, max_body: int = 1 << 20,
               max_queue: int = 256, timeout: float = 30.0) -> Starlette:
    """The application, for any ASGI server.

    Parameters
    ----------
    guard : Guard
        Or anything with ``score`` and ``threshold``, such as the TF-IDF baseline: results then say nothing of windows.
    name : str
        What responses call the model.
    threshold : float, optional
        A row is flagged when its score is at or over it. None: the guard's.
    max_body : int, default 1 MiB
        Bytes of a request; more is refused with status 413.
    max_queue : int, default 256
        Requests that may wait; more are refused with status 503 and Retry-After.
    timeout : float, default 30
        Seconds for a body to arrive whole (else status 408), and then for its rows to be scored (else 503).

    Raises
    ------
    ImportError
        Where starlette is missing, naming the extra.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError:
        raise ImportError("the server needs starlette and uvicorn: pip install 'harmaug[serve]'") from None
    limit = guard.threshold if threshold is None else threshold
    if not 0 <= limit <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {limit}")
    for option, value in (("max_body", max_body), ("max_queue", max_queue), ("timeout", timeout)):
        if not value > 0:
            raise ValueError(f"{option} must be > 0, got {value}")
    batcher: Batcher

    def reply(value: Any, status: int = 200, **headers: str) -> Response:
        return Response(msgspec.json.encode(value), status, {**headers}, media_type="application/json")

    def refuse(refusal: Refusal) -> Response:
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        error = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
        headers = {"retry-after": "1"} if refusal.retry else {"connection": "close"} if refusal.status in (408, 413) else {}
        return reply({"error": error}, refusal.status, **headers)

    def endpoint(read: Callable[[Any], tuple[list[Pair], Callable[[list[_Result]], Any]]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                body = await _body(request, max_body, timeout)
                try:
                    rows, shape = read(decode_json(body.decode("utf-8"), "body"))
                except UnicodeDecodeError:
                    raise Refusal(400, "body: not UTF-8") from None
                except (DataError, TypeError, ValueError) as error:
                    raise Refusal(400, str(error)) from None
                del body
                results = await batcher.score(rows)
                for i, result in enumerate(results):
                    if "error" in result:
                        raise Refusal(400, f"row {i}: {result['error']}")
                    result["flagged"] = result["score"] >= limit
                return reply(shape(results))
            except Refusal as refusal:
                return refuse(refusal)
            except Exception as error:      # its text may hold a row's
                _log.error("internal error: %s", type(error).__name__)
                return refuse(Refusal(500, "internal error", "internal_error"))
        return answer

    async def healthz(request: Request) -> Response:
        return reply({"status": "ok", "model": name, "threshold": limit, "waiting": len(batcher.jobs)})

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return refuse(Refusal(error.status_code, error.detail))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        nonlocal batcher
        batcher = Batcher(guard, max_queue=max_queue, timeout=timeout)
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)

    routes = [Route("/v1/moderations", endpoint(lambda value: _moderation(value, name)), methods=["POST"]),
              Route("/score", endpoint(_rows_and_results), methods=["POST"]), Route("/healthz", healthz)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: http_error})


async def _body(request: Request, most: int, timeout: float) -> bytes:
    too_large = Refusal(413, f"the body is larger than {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_large
        return bytes(body)

    from starlette.requests import ClientDisconnect

    try:
        return await asyncio.wait_for(read(), timeout)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not arrive within {timeout:g} seconds") from None
    except ClientDisconnect:
        raise Refusal(400, "the client went away") from None


# -- forms of requests and responses --

def _moderation(value: Any, name: str) -> tuple[list[Pair], Callable[[list[_Result]], Any]]:
    """OpenAI's: `input` is a text, a list of texts (a result each), or a list of parts of type text (one result for all)."""
    given = value.get("input") if isinstance(value, dict) else None
    if isinstance(given, list) and given and all(isinstance(part, dict) for part in given):
        given = content_of(given, "input: ")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("input must be a string, a list of strings, or a list of {\"type\": \"text\", \"text\": ...}")

    def shape(results: list[_Result]) -> Any:
        return {"id": f"modr-{uuid.uuid4().hex}", "model": name, "results": [
            {"flagged": r["flagged"], "categories": {"unsafe": r["flagged"]}, "category_scores": {"unsafe": r["score"]},
             "category_applied_input_types": {"unsafe": ["text"]}} for r in results]}

    return [(text, None) for text in texts], shape


def _rows_and_results(value: Any) -> tuple[list[Pair], Callable[[list[_Result]], Any]]:
    """One row, or {"rows": [...]}; a row has a prompt, a text or a list of messages, and maybe a response."""
    rows = value.get("rows", [value]) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise TypeError('the body must be {"prompt": ..., "response": ...} or {"rows": [{"prompt": ...}, ...]}')
    pairs = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or "prompt" not in row:
            raise TypeError(f"row {i}: a row must be an object with a prompt")
        pairs.append(row_of(i, row["prompt"], row.get("response")))
    return pairs, (lambda results: {"rows": results}) if "rows" in value else lambda results: results[0]


# -- the process --

def _impatient(base: Any, seconds: float) -> Any:
    """uvicorn's protocol of a connection, ended when the client keeps the server waiting: it bounds idle connections only."""

    class Impatient(base):      # type: ignore[misc]
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _watch(self) -> None:
            """The time runs while headers are incomplete or an answer is not read; that of a body is `_body`'s."""
            if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
                self._stop()
            elif self._end is None:
                self._end = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._end is not None:
                self._end.cancel()
                self._end = None

    return Impatient


def serve(guard: Guard, *, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT, then answer the requests that are under way and return.

    Parameters
    ----------
    guard : Guard
    host, port
        Where to listen; port 0 takes a free one. Another host than the loopback interface's is warned about.
    options
        Those of `create_app`. A connection is also closed when its next headers, once begun, or the reading of an answer
        take longer than ``timeout``.
    """
    app = create_app(guard, **options)
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    where = listener.getsockname()
    if not ipaddress.ip_address(where[0]).is_loopback:
        _log.warning("listening on %s, beyond this machine: whoever reaches it may use it, there is no authentication and no TLS", where[0])

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """As uvicorn's, but a signal that was obeyed is not raised again: the process ends with status 0."""
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    timeout = float(options.get("timeout", 30.0))
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="on",
                            limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=int(timeout) + 5)
    config.load()
    config.http_protocol_class = _impatient(config.http_protocol_class, timeout)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    shown = f"[{where[0]}]" if family == socket.AF_INET6 else where[0]
    _log.info("listening on http://%s:%d", shown, where[1])
    begun = time.monotonic()
    Server(config).run(sockets=[listener])
    _log.info("stopped after %.0f s", time.monotonic() - begun)
