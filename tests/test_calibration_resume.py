"""Calibrations that are interrupted, share a place, or find no room: resumed to the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from calibrating import TEXT, some_windows
from checkpoints import write_checkpoint
from independent.cases import llama
from palettizing import QUIET, content, interrupted, names
from pocketlm.errors import ParameterError, StorageError
from pocketlm.loading import open_model
from pocketlm.palettize import calibrate as module
from pocketlm.palettize import palettize
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.calibration import MANIFEST
from pocketlm.palettize.hidden import Hidden


def test_threads_and_interruptions_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src", llama()))
    windows = some_windows(llama()["vocab_size"])
    calibrate(model, windows, tmp_path / "whole", progress=False, threads=1)
    real = Hidden.append
    for stop in (3, 8, 12):
        count = 0

        def limited(self: Hidden, values: Any, stop: int = stop) -> None:
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            real(self, values)

        monkeypatch.setattr(Hidden, "append", limited)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, windows, tmp_path / "cal", progress=False)
        monkeypatch.setattr(Hidden, "append", real)
        assert not (tmp_path / "cal").exists()
    seen: list[int] = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *args: (seen.append(args[5]), run(*args)))
    calibrate(model, windows, tmp_path / "cal", progress=False, threads=3)
    assert 0 not in seen  # what was finished is not computed again
    assert content(tmp_path / "cal") == content(tmp_path / "whole")
    assert names(tmp_path) == ["cal", "src", "whole"]
    before = len(seen)
    assert calibrate(model, windows, tmp_path / "cal", progress=False).tokens == windows.size
    assert len(seen) == before  # what is there is opened
    with pytest.raises(ParameterError, match="another"):
        calibrate(model, windows[:2], tmp_path / "cal", progress=False)


@pytest.mark.parametrize("kind", ["hidden-*", "moment-*"])
def test_files_of_another_size_count_as_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = open_model(write_checkpoint(tmp_path / "src"))
    calibrate(model, some_windows(90), tmp_path / "whole", progress=False)
    run = module._run

    def limited(*args: Any) -> None:
        if args[5] == 2:
            raise KeyboardInterrupt
        run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run", limited)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    for file in tmp_path.glob(f"cal.partial-*/{kind}"):
        data = file.read_bytes()
        file.write_bytes(data + data if kind == "hidden-*" else data[:-5])
    calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    assert content(tmp_path / "cal") == content(tmp_path / "whole")


def test_two_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src"))
    calibrate(model, some_windows(90), tmp_path / "whole", progress=False)
    real = module._run

    def nested(*args: Any) -> None:
        monkeypatch.setattr(module, "_run", real)
        with pytest.raises(StorageError, match=r"cal\.partial.*another process"):
            calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
        real(*args)

    monkeypatch.setattr(module, "_run", nested)
    calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    assert content(tmp_path / "cal") == content(tmp_path / "whole")
    assert names(tmp_path) == ["cal", "src", "whole"]


@pytest.mark.parametrize("moment", ["before the rename", "behind the rename"])
def test_a_kill_at_the_end_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    model, target = open_model(write_checkpoint(tmp_path / "src")), tmp_path / "cal"
    calibrate(model, some_windows(90), tmp_path / "whole", progress=False)
    rename = Path.rename

    def kill(path: Path, to: Path) -> Path:
        if moment == "behind the rename":
            rename(path, to)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            calibrate(model, some_windows(90), target, progress=False)
    assert target.exists() == (moment == "behind the rename")
    monkeypatch.setattr(module, "_run", None)  # nothing is computed again
    calibrate(model, some_windows(90), target, progress=False)
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["cal", "src", "whole"]


@pytest.mark.parametrize("moment", ["before the lock", "behind the rename"])
def test_who_comes_at_the_end_finds_it_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    model, target = open_model(write_checkpoint(tmp_path / "src")), tmp_path / "cal"
    calibrate(model, some_windows(90), tmp_path / "whole", progress=False)
    if moment == "before the lock":
        lock = module.open_locked

        def late(path: Path) -> Any:
            monkeypatch.setattr(module, "open_locked", lock)
            calibrate(model, some_windows(90), target, progress=False)
            return lock(path)

        monkeypatch.setattr(module, "open_locked", late)
    else:
        rename = Path.rename

        def early(path: Path, to: Path) -> Path:
            monkeypatch.setattr(Path, "rename", rename)
            done = rename(path, to)
            calibrate(model, some_windows(90), target, progress=False)
            return done

        monkeypatch.setattr(Path, "rename", early)
    assert calibrate(model, some_windows(90), target, progress=False).path == target
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["cal", "src", "whole"]


def test_one_place_has_one_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = open_model(write_checkpoint(tmp_path / "src")), tmp_path / "cal"
    calibrate(model, some_windows(90)[:2], tmp_path / "other", progress=False)
    real = module._run

    def nested(*args: Any) -> None:
        monkeypatch.setattr(module, "_run", real)
        with pytest.raises(StorageError, match=r"cal: another process.*another"):
            calibrate(model, some_windows(90)[:2], target, progress=False)
        assert len([*tmp_path.glob("cal.partial-*")]) == 1
        shutil.copytree(tmp_path / "other", target)  # by whatever way
        real(*args)

    monkeypatch.setattr(module, "_run", nested)
    with pytest.raises(ParameterError, match=r"cal: holds the calibration of another"):
        calibrate(model, some_windows(90), target, progress=False)
    assert content(target) == content(tmp_path / "other")
    shutil.rmtree(target)  # and what was computed is not lost
    monkeypatch.setattr(module, "_run", None)
    assert calibrate(model, some_windows(90), target, progress=False).tokens == some_windows(90).size
    # Work that was left by a kill is in nobody's way.
    (tmp_path / "third.partial-0").mkdir()
    (tmp_path / "third.partial-0" / module.LOCK).touch()
    monkeypatch.setattr(module, "_run", real)
    calibrate(model, some_windows(90), tmp_path / "third", progress=False)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(StorageError, match=r"needs .* bytes"):
        calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    assert names(tmp_path) == ["src"]


def test_a_disk_that_fills_up_keeps_what_is_finished_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows, real = open_model(write_checkpoint(tmp_path / "src")), some_windows(90), Hidden.append

    def full(border: int) -> None:
        def append(self: Hidden, values: Any) -> None:
            if self.path.name == f"hidden-{border:04d}.safetensors" and self.path.stat().st_size > 1000:
                raise StorageError(f"{self.path}: No space left on device")
            real(self, values)

        monkeypatch.setattr(Hidden, "append", append)

    full(1)
    with pytest.raises(StorageError, match="No space"):
        calibrate(model, windows, tmp_path / "cal", progress=False)
    assert names(tmp_path) == ["src"]
    full(2)
    with pytest.raises(StorageError, match="No space"):
        calibrate(model, windows, tmp_path / "cal", progress=False)
    assert names(tmp_path)[0].startswith("cal.partial-")
    monkeypatch.setattr(Hidden, "append", real)
    calibrate(model, windows, tmp_path / "cal", progress=False)
    assert names(tmp_path) == ["cal", "src"]


def test_palettize_keeps_its_calibration_with_the_unfinished_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    options: dict[str, Any] = {"bits": 3.5, **QUIET}
    palettize(source, tmp_path / "plain", **options)
    palettize(source, tmp_path / "list", calibration=[TEXT], threads=1, **options)
    from_file = {"bits": 3.5, "calibration": tmp_path / "text.txt"}
    partial = interrupted(source, tmp_path / "file", monkeypatch, 4, **from_file)
    assert (partial / "calibration" / MANIFEST).exists()
    palettize(source, tmp_path / "file", calibration=tmp_path / "text.txt", **options)
    assert content(tmp_path / "file") == content(tmp_path / "list")
    assert content(tmp_path / "file")["model.safetensors"] != content(tmp_path / "plain")["model.safetensors"]
