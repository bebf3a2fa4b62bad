"""Checks that configurations share; what fails says the field, the range and the value."""
from __future__ import annotations

import re
from collections.abc import Collection

_RANGE = re.compile(r"in ([\[(])(\S+), (\S+)([\])])")


def within(values: object, **rules: str) -> None:
    """Raise ValueError for a number outside its range.

    Parameters
    ----------
    values : object
        Its attributes are looked at. None passes, NaN never does.
    **rules : str
        Attribute to range: ">= 0", "in [0, 1]", "in (0, 1]".

    Examples
    --------
    >>> within(range(3), step="in [2, 1e9]")
    Traceback (most recent call last):
    ValueError: step must be in [2, 1e9], got 1
    """
    for name, rule in rules.items():
        value = getattr(values, name)
        if value is not None and not _holds(value, rule):
            raise ValueError(f"{name} must be {rule}, got {value}")


def one_of(name: str, value: str, known: Collection[str]) -> str:
    """Return the value, which must be among the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _holds(value: float, rule: str) -> bool:
    found = _RANGE.fullmatch(rule)
    if found is None:
        return value >= float(rule.removeprefix(">= "))
    low, high = float(found[2]), float(found[3])
    return (low < value if found[1] == "(" else low <= value) and (value < high if found[4] == ")" else value <= high)
