"""The command line in a terminal: bars, tables and lists fit it. Others get whole lines."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from pocketlm.cli import run
from pocketlm.cli.profile import _progress as measuring
from pocketlm.doctor import examine
from pocketlm.palettize.progress import Progress
from terminals import Terminal, narrow


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_bars_fit_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns - 1, 24))
    for title, unit, times, told in (
        ("calibrating", "tokens", 17, ", once for each of 17 parts"),
        ("measuring damage", "models", 1, ""),
        ("training", "tokens", 1, ""),
        ("palettizing", "weights", 1, ""),
    ):
        shown = Terminal()
        monkeypatch.setattr("sys.stderr", shown)
        with Progress(title, 123_456, True, unit, times=times, told=told) as bar:
            bar._bar.start_t -= 4000  # times with hours are longer
            if title == "training":
                bar.note("loss 1.2345")
            bar._bar.n = 61_728 * times
            bar._bar.refresh()
        half = shown.getvalue().split("\r")[-3]
        assert len(half) < columns and half.count("#") >= 3 and title in half
        assert f" {unit}" in half or (columns == 60 and title == "training")
        assert half.endswith(("]", " left", "1.2345"))  # nothing is cut
        assert shown.getvalue().count("\n") == shown.getvalue().count("17 parts") == (1 if told else 0)


def test_measuring_tells_no_total_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    show = measuring()
    for done, total in ((0, 6), (1, 24), (24, 24)):
        show(done, total)
    assert sys.stderr.getvalue() == "measuring products: 1\rmeasuring products: 2\r\x1b[K"  # type: ignore[attr-defined]


def test_lists_wrap_at_words_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    assert run(["doctor", "--quick"]) in (0, 1)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if not line.startswith(("system", "processor"))]
    assert max(map(len, lines)) <= 60 and "levels       scalar, " in out and "\n             " in out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert run(["doctor", "--quick"]) in (0, 1)
    whole = capsys.readouterr().out
    assert "memory" in whole and max(map(len, whole.splitlines())) > 60  # who reads a pipe wants lines


def test_the_list_of_kernels_is_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(quick=True)
    monkeypatch.setattr("pocketlm.doctor.examine", lambda quick: found)
    said = []
    for args in ([], ["--quick"], ["--quick", "--json"]):
        assert run(["doctor", *args]) in (0, 1)
        said.append(capsys.readouterr().out)
    assert "kernels in use\n  matmul_palette " in said[0]
    assert "kernels in use" not in said[1] and json.loads(said[2])["kernels"]


def test_tensors_fit_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    narrow(monkeypatch)
    assert run(["inspect", str(source)]) == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert run(["inspect", str(source)]) == 0
    whole = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 60 < max(map(len, whole)) and "…" not in "".join(whole)
    for line, full in zip(table, whole, strict=True):
        (name, kind, *figures), (long, *rest) = re.split("  +", line), re.split("  +", full)
        assert [kind, *figures] == [rest[0], *rest[-2:]] and long.endswith(name.partition("…")[2])
    assert len({line.split()[0] for line in table}) == len(whole)
