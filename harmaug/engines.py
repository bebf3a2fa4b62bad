"""The one seam to many machines: a function of rows, mapped in order."""
from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

from harmaug import _C
from harmaug.checks import one_of

_T = TypeVar("_T")
_R = TypeVar("_R")

ENGINES = ("local", "ray")
_RESTARTS = 4       # of one worker
_AHEAD = 2          # batches that a worker has at hand, the one under way among them


def map_rows(fn: Callable[[Sequence[_T]], Iterable[_R]], rows: Iterable[_T], *, engine: str = "local",
             batch_size: int = 64) -> Iterator[tuple[_T, _R]]:
    """Yield (row, result) in the order of the rows.

    Resuming is the caller's: it records each result under its row's key and leaves the done rows out when it calls
    again. `fn` must give a row's result independently of the rows beside it.

    Parameters
    ----------
    fn : callable
        Takes a batch of rows and returns (or yields, early ones early) one result for each, in order; a RuntimeError
        else.
    rows : iterable
        Read as far as it is needed.
    engine : str, default "local"
        Where fn runs. "local" is this process. "ray" is the workers of a Ray cluster (the ``ray`` extra): the one that
        ``ray.init`` or ``RAY_ADDRESS`` names, else this machine's. A worker is given `fn` once and one CPU; with "ray:8"
        eight, and as many threads. fn is pickled: a CausalLM, Guard or Teacher in it is opened anew in the worker, from
        the same path and on the instruction set of this process. What a worker that dies had begun is done again, up to
        4 deaths each; then it is a ChildProcessError.
    batch_size : int, default 64
        Smaller with Ray where there are too few rows to keep its workers busy.

    Examples
    --------
    >>> list(map_rows(lambda batch: [x * x for x in batch], [1, 2, 3], batch_size=2))
    [(1, 1), (2, 4), (3, 9)]
    """
    name, _, cpus = check_engine(engine).partition(":")
    if name == "ray":
        yield from _map_on_ray(fn, rows, batch_size, int(cpus or 1))
        return
    iterator = iter(rows)
    while batch := list(islice(iterator, batch_size)):
        yield from _paired(batch, fn(batch))


def check_engine(engine: str) -> str:
    """Return the engine; a ValueError if it is none."""
    name, colon, cpus = engine.partition(":")
    one_of("engine", name, ENGINES)
    if colon and (name != "ray" or not cpus.isdecimal() or int(cpus) < 1):
        raise ValueError(f"engine must be local, ray, or ray:N with N CPUs for each worker, got {engine!r}")
    return engine


def _paired(batch: Sequence[_T], results: Iterable[_R]) -> Iterator[tuple[_T, _R]]:
    n = 0
    for n, result in enumerate(results, 1):
        if n > len(batch):
            break
        yield batch[n - 1], result
    if n != len(batch):
        gave = f"more than {len(batch)}" if n > len(batch) else n
        raise RuntimeError(f"the mapped function gave {gave} results for {len(batch)} rows")


class _Worker:
    """What runs in a Ray actor. Its model is opened with the first batch, so that an error there is the batch's."""

    def __init__(self, pickled: bytes, version: str, cpu_isa: str) -> None:
        self._pickled, self._made_by = pickled, (version, cpu_isa)
        self._fn: Callable[[Sequence[Any]], Iterable[Any]] | None = None

    def run(self, batch: Sequence[Any]) -> Iterator[list[Any]]:
        """Yield results in lists: one list of a function that returns one, else each result as it comes."""
        if self._fn is None:
            from ray import cloudpickle

            version, cpu_isa = self._made_by
            if _version() != version:
                raise RuntimeError(f"a Ray worker has harmaug {_version()}, this process {version}")
            _C.set_cpu_isa(cpu_isa)     # a ValueError where the worker's CPU lacks it: rows would differ
            self._fn = cloudpickle.loads(self._pickled)
        results = self._fn(batch)
        # an attempt after a death must yield the same lists: Ray goes on behind those that have arrived
        for part in [results] if isinstance(results, list) else ([result] for result in results):
            yield part      # by hand: Ray sends into this generator, which a list's iterator does not take


def _map_on_ray(fn: Callable[[Sequence[_T]], Iterable[_R]], rows: Iterable[_T], batch_size: int,
                cpus: int) -> Iterator[tuple[_T, _R]]:
    """Actors rather than Ray Data: that reads all rows before the first result, and opens its models once an execution."""
    try:
        import ray
        from ray import cloudpickle
    except ImportError:
        raise ImportError("engine 'ray' needs ray: pip install 'harmaug[ray]'") from None
    pickled = cloudpickle.dumps(fn)
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    places = int(ray.cluster_resources().get("CPU", 0)) // cpus
    if places < 1:
        raise ValueError(f"engine 'ray:{cpus}': the cluster has {ray.cluster_resources().get('CPU', 0):g} CPUs")
    if isinstance(rows, Sequence):
        batch_size = max(1, min(batch_size, -(-len(rows) // (4 * places))))
        places = min(places, -(-len(rows) // batch_size))
    kind: Any = ray.remote(_Worker).options(num_cpus=cpus, max_restarts=_RESTARTS, max_task_retries=-1)
    workers = [kind.remote(pickled, _version(), _C.build_info()["cpu_isa"]) for _ in range(places)]
    begun: list[list[Any]] = [[] for _ in workers]      # what each has at hand: references that are ready when it is done
    left, waiting = iter(rows), deque[tuple[list[_T], Any]]()

    def hand_out() -> None:
        done = set(ray.wait(list(chain(*begun)), num_returns=sum(map(len, begun)), timeout=0)[0]) if any(begun) else set()
        for at_hand in begun:
            at_hand[:] = [ref for ref in at_hand if ref not in done]
        while len(waiting) < 2 * _AHEAD * places:       # those behind a slow one wait, so many at most
            place = min(range(places), key=lambda i: len(begun[i]))
            batch = list(islice(left, batch_size)) if len(begun[place]) < _AHEAD else []
            if not batch:
                break
            results = workers[place].run.options(num_returns="streaming").remote(batch)
            begun[place].append(results.completed())
            waiting.append((batch, results))

    def arriving(results: Any) -> Iterator[_R]:
        for reference in results:
            found = ray.get(reference)
            hand_out()
            yield from found

    try:
        hand_out()
        while waiting:
            batch, results = waiting.popleft()
            yield from _paired(batch, arriving(results))
            hand_out()
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayActorError:
        raise ChildProcessError(f"a Ray worker died more than {_RESTARTS} times (out of memory?); nothing is lost") from None
    finally:
        for worker in workers:
            ray.kill(worker)


def _version() -> str:
    from harmaug.runs import machine

    return str(machine()["harmaug"])
