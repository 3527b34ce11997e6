"""Checks of arguments. A wrong one is a :class:`~pocketlm.errors.ParameterError` that names it, however odd
the value: of any type, not a number, or beyond every machine word."""

from __future__ import annotations

import itertools
import math
import numbers
import reprlib
from collections.abc import Iterable
from typing import Any, TypeVar

from pocketlm.errors import ParameterError

T = TypeVar("T")

_NO_BOUND = 1 << 60  # beyond what anybody means by a limit

_repr = reprlib.Repr()
_repr.maxlist = _repr.maxdict = 12
_repr.maxstring = _repr.maxlong = _repr.maxother = 60


def shown(value: Any) -> str:
    """A value as an error message shows it: its representation, shortened."""
    try:
        return _repr.repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return f"a {type(value).__name__} that is too large to show"


def integer(name: str, value: Any, least: int, most: int) -> int:
    """An integer of any type (not a boolean) from ``least`` to ``most``, as Python's own.

    Raises:
        ParameterError: it is none, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ParameterError(f"{name}: must be an integer, not {shown(value)}")
    found = int(value)
    if not least <= found <= most:
        bounds = f"from {least} to {most}" if most < _NO_BOUND or found > most else f"{least} or more"
        raise ParameterError(f"{name}: must be {bounds}, not {shown(found)}")
    return found


def number(name: str, value: Any, least: float, most: float) -> float:
    """A finite number of any type (not a boolean) from ``least`` to ``most``, as Python's own.

    Raises:
        ParameterError: it is none, or out of its range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ParameterError(f"{name}: must be a number, not {shown(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    # Written so that NaN fails.
    if not (math.isfinite(found) and least <= found <= most):
        raise ParameterError(f"{name}: must be from {least:g} to {most:g}, not {found}")
    return found


def flag(name: str, value: Any) -> bool:
    """A boolean, and nothing that merely counts as one.

    Raises:
        ParameterError: it is none.
    """
    if not isinstance(value, bool):
        raise ParameterError(f"{name}: must be true or false, not {shown(value)}")
    return value


def token_ids(name: str, values: list[Any], size: int) -> list[int]:
    """Token ids below ``size``, of any type of integer (no booleans), as Python's own.

    Raises:
        ParameterError: one is no integer, or out of its range.
    """
    # Asked of each type once, and not of Python's own: this looks at every token of a text.
    others = set(map(type, values)) - {int}
    for kind in others:
        if kind is bool or not issubclass(kind, numbers.Integral):
            odd = next(value for value in values if type(value) is kind)
            raise ParameterError(f"{name}: token ids must be integers, not {shown(odd)}")
    found = [int(value) for value in values] if others else values
    if found and not 0 <= min(found) <= max(found) < size:
        odd = next(value for value in found if not 0 <= value < size)
        raise ParameterError(f"{name}: token id {shown(odd)} is not from 0 to {size - 1}")
    return found


def first_of(values: Iterable[T], count: int) -> list[T]:
    """At most ``count + 1`` of some values: enough to see that there are too many, even where they never end.

    Raises:
        TypeError: they are not iterable.
    """
    return list(itertools.islice(values, count + 1))
