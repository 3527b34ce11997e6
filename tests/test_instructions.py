"""Decoding executes as many instructions as recorded, within 2 %, which no clock on a shared machine could
tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import instructions, singlestep


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What this machine executes. In a process of its own: stepping forks before it loads a program."""
    command = [sys.executable, "-m", "benches.instructions", "--json"]
    done = subprocess.run(command, cwd=instructions.ROOT, capture_output=True, text=True, check=False)
    if done.stderr.startswith("instructions cannot be counted"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.mark.parametrize("level", json.loads(instructions.RECORD.read_text())["levels"])
def test_counts_are_as_recorded(found: dict[str, Any], level: str) -> None:
    known = json.loads(instructions.RECORD.read_text())["levels"][level]
    if level not in found["levels"]:
        pytest.skip(f"{level}: not on this machine, so its instructions were not counted")
    here = found["levels"][level]
    if here["compiler"] != known["compiler"]:
        pytest.skip(f"{level}: recorded with {known['compiler']}, not {here['compiler']} (make instructions)")
    said = instructions.differences(here["counts"], known["counts"])
    assert not said, "\n".join([*said, "if that is meant, `make instructions` records it"])


def test_levels_of_this_machine_are_recorded(found: dict[str, Any]) -> None:
    known = json.loads(instructions.RECORD.read_text())
    missing = set(found["levels"]) - set(known["levels"])
    assert missing <= {"avx2vnni", "avx512amx"}, f"not recorded: {missing}"
    assert found["lines"] == known["lines"]


def test_more_and_fewer_instructions_are_told_and_so_are_names() -> None:
    recorded = {"a": 1000, "b": 1000, "c": 1000, "gone": 1}
    said = instructions.differences({"a": 1021, "b": 979, "c": 1020, "new": 1}, recorded)
    assert said == [
        "new: not recorded",
        "gone: recorded, but no piece of work has that name",
        "a: 1,021 instructions, recorded 1,000 (+2.1%)",
        "b: 979 instructions, recorded 1,000 (-2.1%)",
    ]


def test_rates_are_of_the_difference_of_two_widths() -> None:
    counts = {"p4 rows=1 cols=64": 150, "p4 rows=1 cols=128": 230, "decode step": 7}
    lines = {"p4 rows=1 cols=64": 8, "p4 rows=1 cols=128": 16, "decode step": 0}
    assert instructions.rates(counts, lines) == {"p4 rows=1": (10.0, 70.0)}
    assert "| p4 rows=1 | 10.00 + 70 | - |" in instructions.rates_table({"a": counts, "b": {}}, lines)


def test_calls_are_cut_out_of_a_trace() -> None:
    # A call at 0x10 of the function at 0x40, which calls one at 0x80; then another call from 0x14.
    steps = [0x0C, 0x10, 0x40, 0x44, 0x80, 0x84, 0x48, 0x14, 0x40, 0x44, 0x48, 0x18]
    trace = [b"Trace 0: 0x7f00 [00000000/%016x/00000051/ff200000] name\n" % at for at in steps]
    assert instructions._calls(iter([b"IN: name\n", *trace]), 0x40) == [5, 3]
    with pytest.raises(ValueError, match="ends within a call"):
        instructions._calls(iter(trace[:-1]), 0x40)


def test_a_program_that_fails_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(singlestep.platform, "machine", lambda: "riscv64")
    with pytest.raises(singlestep.CannotCountError, match="not linux on riscv64"):
        singlestep.Process(["/bin/true"], {})
