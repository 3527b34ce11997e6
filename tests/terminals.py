"""Streams that say they are terminals."""

from __future__ import annotations

import io
import sys

import pytest


class Terminal(io.StringIO):
    """Standard error where that is a terminal."""

    def isatty(self) -> bool:
        return True


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes standard output a terminal of 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
