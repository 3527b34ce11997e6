"""Runs kept in a file of JSON lines, so that a comparison can be split, broken off and taken up again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class Results:
    """The runs of one checkpoint.

    A run is known by the variant, its version, the settings and the number of its round; of several of the
    same, the last counts. Why a variant was ``refused`` before any run, as by a check, or ``failed`` in one
    is kept until it passes a check, or has a run.
    """

    def __init__(self, path: Path, settings: dict[str, Any], again: bool) -> None:
        self.path = path
        self.settings = settings
        self._records: dict[str, Run] = {}
        if path.exists() and not again:
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if record["settings"] == self._settings(record["kind"]):
                    self._keep(record)

    def _settings(self, kind: str) -> dict[str, Any]:
        return self.settings if kind in ("run", "failed") else {}

    def _keep(self, record: Run) -> None:
        # In the order in which they came, so that the last one is known.
        self._records.pop(self._key(record), None)
        self._records[self._key(record)] = record

    @staticmethod
    def _key(record: Run) -> str:
        return json.dumps([record[key] for key in ("kind", "variant", "version", "round")])

    def find(self, kind: str, variant: str, version: str, number: int = 0) -> Run | None:
        """What was kept of a ``run``, or of a ``check``."""
        key = self._key({"kind": kind, "variant": variant, "version": version, "round": number})
        return self._records.get(key)

    def add(self, kind: str, variant: str, version: str, values: Run, number: int = 0) -> Run:
        """Keeps a run, a check or a reason, at once and on disk."""
        record: Run = {"kind": kind, "variant": variant, "version": version, "round": number}
        record |= {"settings": self._settings(kind), "date": time.strftime("%Y-%m-%d %H:%M")} | values
        self._keep(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def runs(self, variant: str, version: str) -> list[Run]:
        """The runs of a variant by their rounds."""
        found = [r for r in self._records.values() if r["kind"] == "run" and r["variant"] == variant]
        return sorted((r for r in found if r["version"] == version), key=lambda r: int(r["round"]))

    def reasons(self) -> dict[str, str]:
        """Why variants take no part, by variant: those that have nothing later than what stopped them."""
        found: dict[str, str] = {}
        stopped: dict[str, str] = {}
        ended_by = {"run": ("failed", "refused"), "check": ("refused",)}
        for record in self._records.values():
            variant, kind = record["variant"], record["kind"]
            if kind in ("failed", "refused"):
                found[variant], stopped[variant] = record["reason"], kind
            elif stopped.get(variant) in ended_by[kind]:
                del found[variant], stopped[variant]
        return found
