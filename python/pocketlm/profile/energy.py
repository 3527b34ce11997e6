"""Energy of steps: the processor's own counters where they can be read, else an estimate that says so."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketlm.checks import shown
from pocketlm.errors import ParameterError

# Per thread in use, with its share of caches and memory: server processors at 4 to 6 W a core, laptops at
# 3 to 8.
ASSUMED_WATTS = 6.0
POWERCAP = Path("/sys/class/powercap")


@dataclasses.dataclass(frozen=True)
class Energy:
    """Power while steps of one sort run, and where that figure comes from.

    Attributes:
        watts: of the processor, while such steps run.
        measured: read from its counters; else assumed.
        source: how, in words.
    """

    watts: float
    measured: bool
    source: str


class Meter:
    """Joules and seconds of the work that :meth:`running` surrounds. Decoding and prefill use the processor
    differently, so each has a meter of its own."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = _packages(root)
        self._joules = self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what happens inside."""
        before, began = [_read(path / "energy_uj") for path in self._packages], time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        after = [_read(path / "energy_uj") for path in self._packages]
        for path, start, end in zip(self._packages, before, after, strict=True):
            if start is not None and end is not None:
                # The counter starts again at its range.
                around = 0 if end >= start else (_read(path / "max_energy_range_uj") or 0)
                self._joules += max(0, end - start + around) / 1e6
        self._seconds += seconds

    def energy(self, threads: int, watts: float | None = None) -> Energy:
        """The power of what ran, on so many threads.

        Raises:
            ParameterError: ``watts`` is not a positive number.
        """
        if watts is not None:
            wrong = isinstance(watts, bool) or not isinstance(watts, int | float)
            if wrong or not 0 < watts <= sys.float_info.max:
                raise ParameterError(f"watts: must be a positive number, not {shown(watts)}")
            return Energy(float(watts), False, f"estimate: {watts:g} W, as given")
        if self._packages and self._seconds and self._joules:
            return Energy(
                self._joules / self._seconds,
                True,
                "RAPL counters of the processor packages, everything that ran on them included",
            )
        return Energy(
            ASSUMED_WATTS * threads,
            False,
            f"estimate: {ASSUMED_WATTS:g} W assumed for each thread; no counter is readable",
        )


def _packages(root: Path) -> list[Path]:
    """Energy domains of whole processor packages that can be read."""
    try:
        # Memory-mapped domains (intel-rapl-mmio:0) last: they are the same packages once more.
        domains = sorted(root.iterdir(), key=lambda path: ("mmio" in path.name, path.name))
    except OSError:
        return []
    found: dict[str, Path] = {}
    for path in domains:
        try:
            name = (path / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package") and name not in found and _read(path / "energy_uj") is not None:
            found[name] = path
    return [*found.values()]


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
