"""Checks that configurations share; what fails says the field, the range and the value."""
from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator

_OFFLINE = "HARMAUG_OFFLINE"
_LARGEST = 2**53        # floats hold every integer up to here, and C's sizes more
_RANGE = re.compile(r"in ([\[(])(\S+), (\S+)([\])])")


def within(values: object, **rules: str) -> None:
    """Raise ValueError for a number outside its range.

    Parameters
    ----------
    values : object
        Its attributes are looked at. None passes, NaN never does.
    **rules : str
        Attribute to range: ">= 0" (and at most 2**53), "in [0, 1]", "in (0, 1]".

    Examples
    --------
    >>> within(range(3), step="in [2, 1e9]")
    Traceback (most recent call last):
    ValueError: step must be in [2, 1e9], got 1
    """
    for name, rule in rules.items():
        value = getattr(values, name)
        if value is not None and not _holds(value, rule):
            bound = " and <= 2**53" if rule.startswith(">=") and value > _LARGEST else ""
            raise ValueError(f"{name} must be {rule}{bound}, got {value!s:.40}")


def one_of(name: str, value: str, known: Collection[str]) -> str:
    """Return the value, which must be among the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def bounded(kind: type, most: float) -> Callable[[str], float]:
    """Return what argparse reads a number of an option with: one from -most to most."""
    def read(text: str) -> float:
        value: float = kind(text)
        if not -most <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a number of at most {most:g}, got {text[:24]}")
        return value

    read.__name__ = kind.__name__       # in argparse's message for what is no number
    return read


@contextlib.contextmanager
def without_network() -> Iterator[None]:
    """Let `require_network` refuse, as the environment variable HARMAUG_OFFLINE=1 does."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_OFFLINE)
        if before is not None:
            os.environ[_OFFLINE] = before


def require_network(what: str) -> None:
    """Raise ValueError where the network must not be used; `what` needs it."""
    if os.environ.get(_OFFLINE, "0") not in ("", "0"):
        raise ValueError(f"{what} needs the network, which --offline (or HARMAUG_OFFLINE) forbids")


def _holds(value: float, rule: str) -> bool:
    found = _RANGE.fullmatch(rule)
    if found is None:
        return float(rule.removeprefix(">= ")) <= value <= _LARGEST
    low, high = float(found[2]), float(found[3])
    return (low < value if found[1] == "(" else low <= value) and (value < high if found[4] == ")" else value <= high)
