"""The columns of a profile's tables in the terminal: what they say, and which of them a terminal has room
for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from pocketlm.cli.common import human
from pocketlm.errors import ParameterError
from pocketlm.near import nearest
from pocketlm.profile.lines import Line
from pocketlm.profile.profile import Profile

MOST_NAME = 26  # characters of an operation's name that columns of less worth leave room for
FEWEST_STEPS = 3  # of fewer, quartiles tell nothing
_LONG_SECONDS, _LONG_JOULES = 0.02, 0.02  # steps from which on milliseconds and millijoules are shown


@dataclasses.dataclass(frozen=True)
class Scale:
    """Units of a step's figures, and what they are compared with."""

    seconds: float  # in the unit of time
    time: str
    joules: float
    energy: str
    bandwidth: float
    spread: bool  # whether there are quartiles

    @classmethod
    def of(cls, profile: Profile, step: str) -> Scale:
        """Those of ``decode`` or ``prefill``."""
        total = profile.total(step)
        return cls(
            *((1e3, "ms") if total.seconds > _LONG_SECONDS else (1e6, "µs")),
            *((1e3, "mJ") if total.joules > _LONG_JOULES else (1e6, "µJ")),
            bandwidth=profile.machine.read_bandwidth,
            spread=total.steps >= FEWEST_STEPS,
        )


@dataclasses.dataclass(frozen=True)
class Column:
    """``title`` and ``text`` of a line's cell, in the units of a step."""

    title: Callable[[Scale], str]
    text: Callable[[Line, Scale], str]
    left: bool = False


def _kl(line: Line, _: Scale) -> str:
    if not line.has_kinds:
        return ""
    return "–" if line.kl is None else f"{line.kl:.2g}"


COLUMNS: Mapping[str, Column] = {
    "kind": Column(lambda _: "kind", lambda line, _: _one(line.kinds), left=True),
    "shape": Column(lambda _: "shape", lambda line, _: _one([f"{o}×{i}" for o, i in line.shapes])),
    "bits": Column(lambda _: "bits", lambda line, _: f"{line.bits:.2f}" if line.bits else ""),
    "bytes": Column(lambda _: "read", lambda line, _: human(line.bytes) if line.bytes else ""),
    "macs": Column(lambda _: "MACs", lambda line, _: _count(line.macs) if line.macs else ""),
    "time": Column(
        lambda unit: unit.time, lambda line, unit: figure(unit.seconds * line.seconds, _sure(line, unit))
    ),
    "spread": Column(lambda _: "±", lambda line, unit: _spread(line, unit)),
    "roof": Column(
        lambda unit: f"roof {unit.time}",
        lambda line, unit: figure(unit.seconds * line.roof_seconds, 3) if line.roof_seconds else "",
    ),
    "rate": Column(lambda _: "GB/s", lambda line, _: _rate(line)),
    "memory": Column(
        lambda _: "of mem",
        lambda line, unit: f"{_speed(line) / unit.bandwidth:.0%}" if line.bytes else "",
    ),
    "share": Column(lambda _: "share", lambda line, _: f"{line.share:.1%}"),
    "energy": Column(lambda unit: unit.energy, lambda line, unit: figure(unit.joules * line.joules, 3)),
    "kl": Column(lambda _: "KL", _kl),
    "bound": Column(lambda _: "bound", lambda line, _: line.bound, left=True),
}

# Titles that differ from the column's name, for who reads them off a table.
_TITLES = {"read": "bytes", "±": "spread", "gb/s": "rate", "of mem": "memory"}

# What a narrow terminal has room for comes first. The first ones are worth shortening names for.
_WORTH_NAMES = ("time", "share", "bytes", "bits", "kind", "bound", "rate", "memory", "spread")
_BY_WORTH = (*_WORTH_NAMES, "kl", "energy", "macs", "roof", "shape")


def chosen(names: str, source: str = "columns") -> tuple[str, ...]:
    """The columns that a list such as ``bytes,time,share`` names, in its order.

    Raises:
        ParameterError: one is unknown, or there is none; names it, and what there is.
    """
    given = [name.strip().lower() for name in names.split(",") if name.strip()]
    found = dict.fromkeys(_TITLES.get(name, name) for name in given)
    for name in found:
        if name not in COLUMNS:
            raise ParameterError(
                f"{source}: {name!r:.60} is no column; there are {', '.join(COLUMNS)}{nearest(name, COLUMNS)}"
            )
    if not found:
        raise ParameterError(f"{source}: no column is named; there are {', '.join(COLUMNS)}")
    return tuple(found)


def widths(found: Sequence[Line], scale: Scale) -> dict[str, int]:
    """Characters that each column takes."""
    return {
        name: max(map(len, [column.title(scale), *(column.text(line, scale) for line in found)]))
        for name, column in COLUMNS.items()
    }


def fitting(tables: Sequence[tuple[Sequence[Line], Scale]], width: int, least_name: int) -> tuple[str, ...]:
    """The columns that every one of some tables has room for in a terminal of ``width`` columns, beside
    names that cannot be told apart in fewer characters than ``least_name``."""
    longest = max(least_name, *(len(line.name) for found, _ in tables for line in found))
    needed = [widths(found, scale) for found, scale in tables]
    known = any(line.kl is not None and line.has_kinds for found, _ in tables for line in found)
    kept: list[str] = []
    for name in _BY_WORTH:
        if name == "kl" and not known:
            continue  # a column of dashes
        least = least_name if name in _WORTH_NAMES else max(least_name, MOST_NAME)
        tried = [*kept, name]
        room = width - min(longest, least) - len(tried)
        if any(sum(map(each.__getitem__, tried)) > room for each in needed):
            break  # narrower ones of less worth would go again where there is more room
        kept = tried
    return tuple(name for name in COLUMNS if name in kept)


def figure(value: float, digits: int) -> str:
    """A number in few characters."""
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:.{digits}g}" if round(value) < 10**digits else f"{value:.0f}"


def digits(value: float, spread: float) -> int:
    """How many digits of a figure mean something, beside how far it wanders."""
    return 1 if 2 * spread > value else 2 if 20 * spread > value else 3


def _sure(line: Line, unit: Scale) -> int:
    return digits(line.seconds, line.spread) if unit.spread else 3


def _spread(line: Line, unit: Scale) -> str:
    return figure(unit.seconds * line.spread, min(2, _sure(line, unit))) if unit.spread else ""


def _one(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else "mixed" if values else ""


def _count(number: float) -> str:
    for unit in ("", " k", " M", " G"):
        if number < 1000 or unit == " G":
            break
        number /= 1000
    return f"{number:.3g}{unit}" if number < 1000 else f"{number:.0f}{unit}"


def _speed(line: Line) -> float:
    return line.bytes / line.seconds if line.seconds else 0.0


def _rate(line: Line) -> str:
    rate = _speed(line)
    return f"{rate / 1e9:.{1 if rate < 1e11 else 0}f}" if line.bytes else ""
