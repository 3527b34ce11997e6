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
    same, the last counts.
    """

    def __init__(self, path: Path, settings: dict[str, Any], again: bool) -> None:
        self.path = path
        self.settings = settings
        self._records: dict[str, Run] = {}
        if path.exists() and not again:
            for line in path.read_text().splitlines():
                record = json.loads(line)
                if record["settings"] == self._settings(record["kind"]):
                    self._records[self._key(record)] = record

    def _settings(self, kind: str) -> dict[str, Any]:
        return self.settings if kind == "run" else {}

    @staticmethod
    def _key(record: Run) -> str:
        return json.dumps([record[key] for key in ("kind", "variant", "version", "round")])

    def find(self, kind: str, variant: str, version: str, number: int = 0) -> Run | None:
        """What was kept of a ``run``, or of a ``check``."""
        key = self._key({"kind": kind, "variant": variant, "version": version, "round": number})
        return self._records.get(key)

    def add(self, kind: str, variant: str, version: str, values: Run, number: int = 0) -> Run:
        """Keeps a run or a check, at once and on disk."""
        record: Run = {"kind": kind, "variant": variant, "version": version, "round": number}
        record |= {"settings": self._settings(kind), "date": time.strftime("%Y-%m-%d %H:%M")} | values
        self._records[self._key(record)] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record

    def runs(self, variant: str, version: str) -> list[Run]:
        """The runs of a variant by their rounds."""
        found = [r for r in self._records.values() if r["kind"] == "run" and r["variant"] == variant]
        return sorted((r for r in found if r["version"] == version), key=lambda r: int(r["round"]))
