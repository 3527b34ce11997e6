"""The command line with streams that are closed, in a locale without UTF-8, and with more than one Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = [sys.executable, "-W", "error"]
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FEW = ["--max-tokens", "3", "--seed", "1"]


def redirected(args: list[str], streams: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of Python with redirections of a shell."""
    script = f"{shlex.join([*PYTHON, *args])} {streams}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    return found.returncode, found.stdout, found.stderr


@pytest.mark.parametrize(
    ("args", "streams", "status", "err"),
    [
        (["--version"], ">&-", 0, ""),
        (["doctor", "--quick"], ">&-", 0, ""),
        (["generate", "Once", "-q", *FEW], ">&-", 0, ""),
        (["generate", "Once", "--json", *FEW], "<&- >&- 2>&-", 0, ""),
        (["generate"], "<&-", 2, "pocketlm: error: PROMPT is empty; give a word or more to go on from\n"),
        (["chat", "--json"], "<&-", 0, ""),
        (["chat"], "<&-", 0, ""),
        (["generate", ""], "2>&-", 2, ""),
        (["fly"], ">&- 2>&-", 2, ""),
    ],
)
def test_a_closed_stream_is_an_empty_one(args: list[str], streams: str, status: int, err: str) -> None:
    assert redirected(["-m", "pocketlm", *args], streams) == (status, "", err)


def test_progress_has_nowhere_to_go(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("Once upon a time there was a cat.")
    status, out, _ = redirected(["-m", "pocketlm", "perplexity", str(tmp_path / "text")], "2>&-")
    assert status == 0 and "bits per byte" in out


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_no_file_takes_the_place_of_a_closed_stream(closed: tuple[int, ...]) -> None:
    code = (
        "import os, sys, pocketlm.cli as cli; cli._open_closed_streams(); "
        "null = os.stat(os.devnull).st_rdev; "
        "streams = (sys.stdin, sys.stdout, sys.stderr); "
        "assert [stream.fileno() for stream in streams] == [0, 1, 2]; "
        f"assert all(os.fstat(n).st_rdev == null and os.get_inheritable(n) for n in {closed}); "
        "assert sys.stdin.read() == ''; print('x', flush=True); print('x', file=sys.stderr, flush=True)"
    )
    streams = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    out, err = ("" if number in closed else "x\n" for number in (1, 2))
    assert redirected(["-c", code], f"</dev/null {streams}") == (0, out, err)


@pytest.mark.parametrize("piped", [False, True])
def test_text_is_utf8_in_any_locale(piped: bool) -> None:
    args = [*PYTHON, "-m", "pocketlm", "generate", *FEW, "--stop", "É", "--json", *([] if piped else ["Éa"])]
    found = subprocess.run(
        [os.fsencode(word) for word in args],
        input="Éa\n".encode() if piped else b"",
        capture_output=True,
        env=ASCII,
        timeout=60,
    )
    assert (found.returncode, found.stderr) == (0, b"") and json.loads(found.stdout)["prompt"] == "Éa"


def test_chat_in_a_locale_without_utf8(tmp_path: Path) -> None:
    found = subprocess.run(
        [*PYTHON, "-m", "pocketlm", "chat", "-i", "Sois brève.".encode(), *FEW],
        input="Éa\n/save É.json\n".encode(),
        capture_output=True,
        cwd=tmp_path,
        env=ASCII,
        timeout=60,
    )
    assert (found.returncode, found.stderr) == (0, b""), found.stderr
    said = json.loads((tmp_path / "É.json").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in said[:2]] == ["Sois brève.", "Éa"]


def test_bytes_that_are_no_text_are_refused_in_any_locale() -> None:
    for word, told in ((b"\xc9a", b"PROMPT"), (b"-", b"standard input")):
        found = subprocess.run(
            [*PYTHON, "-m", "pocketlm", "generate", word],
            input=b"\xc9a",
            capture_output=True,
            env=ASCII,
            timeout=60,
        )
        assert found.returncode == 2 and found.stderr == b"pocketlm: error: %b is not UTF-8 text\n" % told


def test_more_than_one_interrupt_is_told_in_one_line() -> None:
    # Each write to standard error comes with another Ctrl-C, as from whoever keeps the keys pressed.
    code = (
        "import signal, sys, pocketlm.cli as cli, pocketlm.doctor as doctor\n"
        "class Pressed:\n"
        "    def write(self, text):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        return sys.__stderr__.write(text)\n"
        "    def flush(self):\n"
        "        sys.__stderr__.flush()\n"
        "sys.stderr, sys.argv = Pressed(), ['pocketlm', 'doctor']\n"
        "doctor.examine = lambda **_: signal.raise_signal(signal.SIGINT)\n"
        # Whoever starts the tests in the background has them ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "cli.main()\n"
    )
    found = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stderr.lstrip()) == (130, "pocketlm: error: interrupted\n")
