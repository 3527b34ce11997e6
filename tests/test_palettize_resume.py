"""Interrupted, killed, crowded out: no half model, and the same bytes in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import write_checkpoint
from independent.cases import llama
from palettizing import QUIET, content, interrupted, names
from pocketlm.errors import (
    MissingFileError,
    StorageError,
)
from pocketlm.loading import directory, open_model
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.palettize import palettize, run

TEXT = " ".join(f"w{i * 7 % 97}" for i in range(1400))


@pytest.mark.parametrize("bits", [4, 3.5])
def test_interrupted_work_is_resumed_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float
) -> None:
    palettize(source, tmp_path / "whole", bits=bits, threads=1, **QUIET)
    target = tmp_path / "dst"
    for after in (1, 3, 11):
        interrupted(source, target, monkeypatch, after, bits=bits)
    report = palettize(source, target, bits=bits, **QUIET)
    assert report.resumed >= 15  # what the three runs had finished
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["dst", "src", "whole"]


def test_damage_to_unfinished_work_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    palettize(source, tmp_path / "whole", **QUIET)
    target = tmp_path / "dst"
    partial = interrupted(source, target, monkeypatch, 9)
    journal, file = partial / "journal.jsonl", partial / "model.safetensors"
    journal.write_bytes(journal.read_bytes()[:-5])  # cut short by a crash
    middle = len(file.read_bytes()) // 4
    with file.open("r+b") as out:
        out.seek(middle)
        out.write(os.urandom(64))
    palettize(source, target, **QUIET)
    assert content(target) == content(tmp_path / "whole")
    partial = interrupted(source, tmp_path / "third", monkeypatch, 9)
    (partial / "journal.jsonl").write_bytes(b"\xff\0garbage\n[1]\n")
    (partial / "model.safetensors").unlink()
    palettize(source, tmp_path / "third", **QUIET)
    assert content(tmp_path / "third") == content(tmp_path / "whole")


def test_other_work_is_not_resumed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "dst"
    interrupted(source, target, monkeypatch, 5, bits=4)
    assert palettize(source, target, bits=3, **QUIET).resumed == 0
    assert list(tmp_path.glob("dst.partial-*"))


PROGRAM = (
    "import sys; from pocketlm.palettize import palettize; palettize(*sys.argv[1:], bits=3.5, progress=False)"
)


def test_a_kill_at_any_moment_leaves_no_model_and_costs_no_byte(tmp_path: Path) -> None:
    config = llama(hidden_size=240, intermediate_size=600, num_hidden_layers=6)
    source = write_checkpoint(tmp_path / "src", config)
    palettize(source, tmp_path / "whole", bits=3.5, **QUIET)
    target = tmp_path / "dst"
    for delay in np.linspace(0.0, 0.6, 5):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(source), str(target)])
        while not list(tmp_path.glob("dst*")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(float(delay))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():  # it was faster
            break
    if not target.exists():
        palettize(source, target, bits=3.5, **QUIET)
    assert content(target) == content(tmp_path / "whole")


def test_disks_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "file" / "dst", Path("/proc/pocketlm/dst"), Path("/proc/dst")):
        (tmp_path / "file").write_text("x")
        with pytest.raises((StorageError, MissingFileError)) as error:
            palettize(source, place, **QUIET)
        assert str(error.value).startswith(f"{place}: ")
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 1000})
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match="free"):
            palettize(source, tmp_path / "dst", **QUIET)
    assert not (tmp_path / "dst").exists()


def test_a_disk_that_fills_up(source: Path, tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pocketlm.errors import StorageError\n"
        "from pocketlm.palettize import palettize\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    palettize(sys.argv[1], sys.argv[2], progress=False)\n"
        "except StorageError as error:\n"
        "    assert 'model.safetensors' in str(error), error\n"
        "    raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(source), str(tmp_path / "dst")], check=False)
    assert done.returncode == 7
    assert not (tmp_path / "dst").exists()
    palettize(source, tmp_path / "dst", **QUIET)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_what_cannot_be_written_names_the_disk_and_leaves_no_lock(tmp_path: Path) -> None:
    target = tmp_path / "dst"
    with (
        pytest.raises(StorageError, match=r"journal\.jsonl.*[Nn]o space"),
        DirectoryWriter(target, "key") as writer,
    ):
        writer.record("first", {})
        assert writer._journal is not None
        writer._journal.close()
        writer._journal = os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b")
        writer.record("second", {})
    with pytest.raises(StorageError, match="at work"), DirectoryWriter(target, "key") as writer:
        assert writer.note("first") == {} and writer.note("second") is None
        writer._file = os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b")
        writer._file.write(b"still to be flushed")
        raise StorageError("at work")
    assert writer._journal is not None and writer._journal.closed
    with DirectoryWriter(target, "key") as again:  # no lock is left, although `writer` is still there
        again.discard()


def test_two_at_once_do_not_mix(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.palettize_tensor

    def nested(*args: Any, **kwargs: Any) -> Any:
        with pytest.raises(StorageError, match="another process"):
            palettize(source, tmp_path / "dst", **QUIET)
        monkeypatch.setattr(run, "palettize_tensor", real)
        return real(*args, **kwargs)

    monkeypatch.setattr(run, "palettize_tensor", nested)
    palettize(source, tmp_path / "dst", **QUIET)
    open_model(tmp_path / "dst")


@pytest.mark.parametrize("moment", ["in the scratch", "behind the scratch", "behind the rename"])
def test_kills_at_the_end_leave_no_scratch(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    options: dict[str, Any] = {"calibration": [TEXT], **QUIET}
    palettize(source, tmp_path / "whole", **options)
    target = tmp_path / "dst"

    def kill(path: Path, **_: Any) -> None:
        for file in list(path.glob("*.npy"))[:1]:
            file.unlink()
        raise KeyboardInterrupt

    sync = directory._sync_directory

    def late(path: Path) -> None:
        (kill if target.exists() else sync)(path)

    with monkeypatch.context() as patch:
        if moment == "in the scratch":
            patch.setattr("shutil.rmtree", kill)
        elif moment == "behind the scratch":
            patch.setattr(DirectoryWriter, "_rename", lambda writer: kill(writer.partial))
        else:
            patch.setattr(directory, "_sync_directory", late)
        with pytest.raises(KeyboardInterrupt):
            palettize(source, target, **options)
    assert target.exists() == (moment == "behind the rename")
    if not target.exists():
        palettize(source, target, **options)
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["dst", "src", "whole"]


def test_a_kill_while_overwriting_loses_neither_model(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    palettize(source, tmp_path / "whole", bits=3, **QUIET)
    target = tmp_path / "dst"
    palettize(source, target, bits=2, **QUIET)
    before = content(target)
    real = Path.rename

    def kill(path: Any, to: Any, *_: Any, **__: Any) -> Any:
        if isinstance(path, Path) and to != target:
            return real(path, to)
        raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (run, "_write")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            with pytest.raises(KeyboardInterrupt):
                palettize(source, target, bits=3, overwrite=True, **QUIET)
        (old,) = tmp_path.glob("dst.partial-*.old")
        assert content(old) == before and not target.exists()
    report = palettize(source, target, bits=3, **QUIET)
    assert report.resumed == len(report.tensors)  # all was there but for the name
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["dst", "src", "whole"]
    # Killed before it was deleted.
    real(tmp_path / "whole", old)
    palettize(source, target, bits=3, overwrite=True, **QUIET)
    assert names(tmp_path) == ["dst", "src"]
