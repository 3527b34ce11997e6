"""What each kind of each tensor costs, kept with a stored calibration: another budget asks for the same."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketlm.palettize.damage import Notes

_SHARED = "damage "  # what else is noted depends on the budgets or on the machine


class Measured:
    """Notes of unfinished work, with those of earlier work behind them.

    The file is a convenience: where it cannot be written nothing is kept, and lines that are damaged count
    as not there.
    """

    def __init__(self, own: Notes) -> None:
        self._own = own
        self._file: Path | None = None
        self._earlier: dict[str, dict[str, Any]] = {}

    def keep_in(self, file: Path) -> None:
        """Takes up what ``file`` holds, and adds to it from now on."""
        self._file = file
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    kl = float(entry["kl"])
                    if math.isfinite(kl):
                        self._earlier[str(entry["name"])] = {"kl": kl}

    def note(self, name: str) -> dict[str, Any] | None:
        """What is known under that name."""
        own = self._own.note(name)
        return self._earlier.get(name) if own is None and name.startswith(_SHARED) else own

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Keeps what was measured."""
        self._own.record(name, facts)
        if self._file is not None and name.startswith(_SHARED):
            # A line is written at once, so that lines of runs beside this one stay whole.
            line = json.dumps({"name": name, **facts}) + "\n"
            with contextlib.suppress(OSError), self._file.open("a") as file:
                file.write(line)
