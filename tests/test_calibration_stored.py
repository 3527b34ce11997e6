"""Stored calibrations: as good as their text, of this model and vocabulary, and refused if damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrating import TEXT, some_windows
from checkpoints import weights, write_checkpoint
from independent.cases import llama
from palettizing import QUIET, content
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError
from pocketlm.loading import open_model
from pocketlm.palettize import palettize
from pocketlm.palettize.arrays import has_shape, load_array
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.calibration import MANIFEST, Calibration
from pocketlm.palettize.divergence import Divergence


def test_a_stored_calibration_is_as_good_as_the_text(source: Path, tmp_path: Path) -> None:
    stored = tmp_path / "kept" / "cal"
    # A stored calibration has no text of which the end could judge, so both are judged by the same.
    options: dict[str, Any] = {"bits": 4, "kinds": "4", "validation": ["w1 w2 w3 " * 90], **QUIET}
    palettize(source, tmp_path / "a", calibration=[TEXT], calibration_out=stored, **options)
    assert Calibration.open(stored).tokens > 0
    palettize(source, tmp_path / "b", calibration=stored, **options)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    palettize(source, tmp_path / "e", calibration=stored, compensation=False, **options)
    weights_of = [content(tmp_path / name)["model.safetensors"] for name in ("a", "e")]
    assert weights_of[0] != weights_of[1]
    for given, message in (
        ({"calibration_out": tmp_path / "c"}, "no calibration"),
        ({"calibration": stored, "calibration_out": tmp_path / "c"}, "stored already"),
        ({"calibration": ["w3 " * 99 + TEXT], "calibration_out": stored}, "another"),
    ):
        with pytest.raises(ParameterError, match=message):
            palettize(source, tmp_path / "d", **given, **QUIET)
    other = write_checkpoint(tmp_path / "other", arrays=weights(llama(), seed=1))
    with pytest.raises(ParameterError, match="another model"):
        palettize(other, tmp_path / "d", calibration=stored, **QUIET)
    assert not (tmp_path / "d").exists()


def test_a_stored_calibration_knows_its_vocabulary(source: Path, tmp_path: Path) -> None:
    stored = tmp_path / "cal"
    options: dict[str, Any] = {"bits": 4, "kinds": "4", "validation": ["w1 w2 w3 " * 90], **QUIET}
    palettize(source, tmp_path / "a", calibration=[TEXT], calibration_out=stored, **options)
    swapped = shutil.copytree(source, tmp_path / "swapped")
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w1"], vocabulary["w2"] = vocabulary["w2"], vocabulary["w1"]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ParameterError, match=r"another vocabulary than that of .*swapped"):
        palettize(swapped, tmp_path / "b", calibration=stored, **options)
    # Those of before do not say which it was.
    facts = json.loads((stored / MANIFEST).read_text())
    del facts["tokenizer"]
    (stored / MANIFEST).write_text(json.dumps(facts))
    palettize(swapped, tmp_path / "b", calibration=stored, **options)
    (stored / MANIFEST).write_text(json.dumps({**facts, "tokenizer": 7}))
    with pytest.raises(FileFormatError, match="tokenizer"):
        Calibration.open(stored)


def test_a_stored_calibration_keeps_what_kinds_cost(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, runs = tmp_path / "cal", []
    of = Divergence.of

    def counted(self: Divergence, store: Any) -> float:
        runs.append(store)
        return of(self, store)

    monkeypatch.setattr(Divergence, "of", counted)
    options: dict[str, Any] = {"validation": ["w1 w2 w3 " * 90], **QUIET}
    palettize(source, tmp_path / "a", bits=3, calibration=[TEXT], calibration_out=stored, **options)
    first = len(runs)
    palettize(source, tmp_path / "b", bits=3.5, calibration=stored, **options)
    assert len(runs) == first + 1  # the whole model's
    (file,) = stored.glob("measured-*.jsonl")
    lines = file.read_text().splitlines()
    assert len(lines) == first - 1
    broken = [
        "{",
        '{"name": "damage x"}',
        "7",
        json.dumps({"name": json.loads(lines[0])["name"], "kl": None}),
    ]
    file.write_text("\n".join([*broken, *lines[1:], lines[0][:-9].replace('"kl"', '"kl": NaN, "x"')]))
    palettize(source, tmp_path / "c", bits=3.5, calibration=stored, **options)
    assert len(runs) == first + 3  # the line that was lost, and the whole model's
    assert content(tmp_path / "b") == content(tmp_path / "c")
    palettize(source, tmp_path / "d", bits=3.5, calibration=stored, validation=["w9 w8 " * 130], **QUIET)
    assert len(runs) == 2 * first + 3  # other text, other costs


def test_damaged_calibrations_are_refused(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    stored = tmp_path / "cal"
    calibrate(model, some_windows(90), stored, progress=False)
    name = "model.layers.1.mlp.up_proj.weight"
    facts = json.loads((stored / MANIFEST).read_text())
    (moment,) = facts["tensors"][name]["inputs"]
    with pytest.raises(ParameterError, match="nothing"):
        Calibration.open(stored).second_moment("nothing")

    def damaged(change: Any) -> Calibration:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(stored, tmp_path / "bad")
        change(tmp_path / "bad")
        return Calibration.open(tmp_path / "bad")

    whole = np.load(stored / moment)
    wrong = whole.copy()
    wrong[0, 0] = np.nan

    def huge(d: Path) -> None:  # 16 TiB, says the header
        with (d / moment).open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 21, 1 << 21)}
            np.lib.format.write_array_header_1_0(file, header)

    def zipped(d: Path) -> None:
        np.savez(d / "a.npz", whole)
        (d / "a.npz").rename(d / moment)

    for change in (
        huge,
        zipped,
        lambda d: (d / moment).write_bytes(b"PK\x03\x04" + b"?" * 200),
        lambda d: (d / moment).write_bytes((stored / moment).read_bytes() + b"more"),
        lambda d: (d / moment).write_bytes((stored / moment).read_bytes().replace(b"<f4", b"|O8")),
        lambda d: (d / moment).write_bytes(b"\x93NUMPY\x01\0\x40\0" + b"(" * 64),
        lambda d: (d / moment).write_bytes(b"\x93NUMPY\x09\0\x40\0" + b" " * 64),
        lambda d: (d / moment).write_bytes((d / moment).read_bytes()[:-5]),
        lambda d: (d / moment).write_bytes(b""),
        lambda d: (d / moment).write_bytes(b"\x93NUMPY garbage"),
        lambda d: np.save(d / moment, whole[1:]),
        lambda d: np.save(d / moment, whole.astype(np.float64)),
        lambda d: np.save(d / moment, wrong),
    ):
        with pytest.raises(FileFormatError, match=moment):
            damaged(change).second_moment(name)
    for change in (huge, zipped):
        damaged(change)
        assert not has_shape(tmp_path / "bad" / moment, whole.shape)
    assert has_shape(stored / moment, whole.shape)
    np.save(tmp_path / "turned.npy", whole.T)  # in Fortran's order
    assert (load_array(tmp_path / "turned.npy", whole.shape) == whole.T).all()
    with pytest.raises(MissingFileError, match=moment):
        damaged(lambda d: (d / moment).unlink()).second_moment(name)
    for text in ("", "[]", "{", '{"pocketlm_calibration": 1}', '{"pocketlm_calibration": 2}'):
        with pytest.raises(FileFormatError, match=MANIFEST):
            damaged(lambda d, text=text: (d / MANIFEST).write_text(text))
    for inputs in (["../up.npy"], "x", [7], None):
        bad = json.loads(json.dumps(facts))
        bad["tensors"][name]["inputs"] = inputs
        with pytest.raises(FileFormatError, match=MANIFEST):
            damaged(lambda d, bad=bad: (d / MANIFEST).write_text(json.dumps(bad)))
    with pytest.raises(MissingFileError, match=MANIFEST):
        damaged(lambda d: (d / MANIFEST).unlink())


def test_calibrations_whose_numbers_are_absurd_are_refused(source: Path, tmp_path: Path) -> None:
    model, stored = open_model(source), tmp_path / "cal"
    calibrate(model, some_windows(90), stored, progress=False)
    name, text = "model.layers.1.mlp.up_proj.weight", (stored / MANIFEST).read_text()
    facts = json.loads(text)

    def changed(**change: Any) -> Calibration:
        entry = {**facts["tensors"][name], **change}
        whole = {**facts, "tensors": {**facts["tensors"], name: entry}}
        (stored / MANIFEST).write_text(json.dumps(whole))
        return Calibration.open(stored)

    for tokens in (
        "Infinity",
        "-Infinity",
        "NaN",
        "1e400",
        "-1",
        "0",
        "true",
        "1.5",
        '"9"',
        "[]",
        str(1 << 62),
    ):
        (stored / MANIFEST).write_text(text.replace(f'"tokens": {facts["tokens"]}', f'"tokens": {tokens}'))
        with pytest.raises(FileFormatError, match=MANIFEST):
            Calibration.open(stored)
    for shape in ([-1, 8], [0, 8], [8, 1 << 60], [8.0, 8], [8], [8, 8, 8], "88", None, [True, 8], [1e999, 1]):
        with pytest.raises(FileFormatError, match=MANIFEST):
            changed(shape=shape)
    rows, width = facts["tensors"][name]["shape"]
    # Sizes that something could have, though not this model.
    for shape in ([rows, 1 << 30], [1 << 30, width], [rows + 16, width], [width, rows]):
        with pytest.raises(FileFormatError, match=rf"{MANIFEST}: damaged \(tensor '{name}' has the shape"):
            changed(shape=shape).check(model)
        with pytest.raises(FileFormatError, match="damaged"):
            palettize(source, tmp_path / "x", calibration=stored, **QUIET)
    with pytest.raises(FileFormatError, match=r"moment-\d+\.npy"):
        changed(shape=[rows, 1 << 30]).importance(name)
    with pytest.raises(FileFormatError, match=f"no statistics of tensor '{name}'"):
        changed(inputs=[]).check(model)
    del facts["tensors"]["lm_head.weight"]
    with pytest.raises(FileFormatError, match=r"'lm_head\.weight' has the shape None"):
        changed().check(model)
