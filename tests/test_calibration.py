"""Statistics of a model's inputs: right, complete, resumable, and of this model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pocketlm
from checkpoints import weights, write_checkpoint
from independent.cases import llama, openelm
from palettizing import QUIET, content, interrupted, names
from pocketlm._core import Engine
from pocketlm.errors import (
    FileFormatError,
    MissingFileError,
    ParameterError,
    StorageError,
    TokenizerError,
    WeightError,
)
from pocketlm.families import build_graph
from pocketlm.graph import Linear
from pocketlm.loading import open_model
from pocketlm.palettize import calibrate as module
from pocketlm.palettize import compensate, palettize
from pocketlm.palettize import text as reading
from pocketlm.palettize.arrays import has_shape, load_array
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.calibration import MANIFEST, Calibration
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.hidden import Hidden
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.segments import segments
from pocketlm.palettize.text import read_windows

CONFIGS = {"llama": llama(), "tied": llama(tie_word_embeddings=True), "openelm": openelm()}
TEXT = " ".join(f"w{i * 7 % 97}" for i in range(1500))


def some_windows(vocab: int, count: int = 5, length: int = 12) -> Any:
    return np.random.default_rng(1).integers(0, vocab, (count, length)).astype(np.uint32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_moments_are_those_of_what_the_whole_model_computes(tmp_path: Path, config: dict[str, Any]) -> None:
    model = open_model(write_checkpoint(tmp_path / "src", config))
    windows = some_windows(config["vocab_size"])
    found = calibrate(model, windows, tmp_path / "cal", progress=False, threads=2)
    engine = Engine(model.graph.to_json(), model.store, cache_tokens=64, precise=True)
    traces = [engine.trace(window) for window in windows]
    for op in model.graph.ops:
        if isinstance(op, Linear):
            # The parts of the model compute the very same numbers; only the sums are rounded to float32.
            x = np.concatenate([trace[model.graph.ops[op.x].name] for trace in traces]).astype(np.float64)
            moment = found.second_moment(op.weight.name)
            bound = 1e-6 * (np.abs(x).T @ np.abs(x)) / len(x)
            assert (np.abs(moment - x.T @ x / len(x)) <= bound).all()
            np.testing.assert_array_equal(moment, moment.T)
    assert found.tokens == windows.size
    tied = config.get("tie_word_embeddings", False) or "share_input_output_layers" in config
    if not tied:
        assert not found.multiplies("model.embed_tokens.weight")
        with pytest.raises(ParameterError, match=r"embed_tokens.*looked up"):
            found.second_moment("model.embed_tokens.weight")


def test_segments_cover_the_graph_and_end_where_one_value_passes() -> None:
    for config in CONFIGS.values():
        graph = build_graph(config)
        parts = segments(graph)
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (0, len(graph.ops))
        assert len(parts) > config.get("num_hidden_layers", config.get("num_transformer_layers", 0))
        for part in parts[1:]:
            crossing = {i for op in graph.ops[part.start :] for i in op.inputs() if i < part.start}
            assert crossing == {part.start - 1}


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


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = weights(llama())
    for name in ("gate", "up"):
        arrays[f"model.layers.0.mlp.{name}_proj.weight"] *= 1e25  # their products overflow
    model = open_model(write_checkpoint(tmp_path / "src", arrays=arrays))
    with pytest.raises(WeightError, match=r"layers\.\d.*not finite"):
        calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    assert names(tmp_path) == ["src"]


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


def test_rows_that_are_looked_up_too_stay_nearer_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, errors = "model.embed_tokens.weight", {}
    config = llama(tie_word_embeddings=True)
    src = write_checkpoint(tmp_path / "src", config)
    for label, damping in (("as it is", compensate.LOOKED_UP_DAMPING), ("as a head", compensate.DAMPING)):
        monkeypatch.setattr(compensate, "LOOKED_UP_DAMPING", damping)
        palettize(
            src, tmp_path / label, calibration=[TEXT], embedding_bits=3, validation=["w1 w2 " * 130], **QUIET
        )
        made, source = open_model(tmp_path / label).store.dense(name), open_model(src).store.dense(name)
        errors[label] = float(np.square(made.astype(np.float64) - source).sum())
    assert errors["as it is"] < 0.98 * errors["as a head"]
    model = open_model(src)
    assert Importance(model, Statistics()).looked_up == {name}


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


def test_text_of_another_tokenizer_is_refused(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    half = "w1 x " * 400  # as much is let through: names and numbers are unknown to any vocabulary of words
    assert read_windows([half], model).size
    with pytest.raises(ParameterError, match=r"calibration: \d+ % of the text's tokens are unknown"):
        read_windows(["x " * 100 + half], model)
    with pytest.raises(ParameterError, match="another model's"):
        palettize(source, tmp_path / "m", calibration=["日本語 " * 4000], **QUIET)
    assert names(tmp_path) == ["src"]


def test_text_of_another_language_is_refused(tmp_path: Path) -> None:
    """Whose tokenizer knows no unknown: all falls into bytes."""
    model = open_model(Path(pocketlm.__file__).parent / "assets" / "pocketlm-stories")
    rng = np.random.default_rng(0)
    chinese = "今天天气很好，孩子们在公园里玩。我们来看看这个分词器会怎样处理它。" * 120
    noise = bytes(rng.integers(0, 256, 8000).astype(np.uint8)).decode("latin-1")
    random = "".join(map(chr, rng.integers(0x80, 0xD7FF, 4000)))
    for text in (chinese, noise, random):
        with pytest.raises(ParameterError, match=r"^calibration: hardly any .* more than one byte.*language"):
            read_windows([text], model)
        with pytest.raises(ParameterError, match=r"^validation: hardly any"):
            sequences(model, [text])
    digits = "".join(map(str, rng.integers(0, 10, 4000)))
    table = "\n".join(",".join(f"{x:.4f}" for x in row) for row in rng.random((200, 6)))
    code = Path(__file__).read_text()
    story = "Once upon a time there was a little girl who liked to play in the park. " * 80
    german = "Die Kinder spielten den ganzen Tag im Park, während die Sonne schien. " * 60
    for text in (digits, table, code, story, german, story + chinese[: len(story) // 10]):
        assert read_windows([text], model).size and sequences(model, [text])


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


def test_texts_that_are_none(source: Path, tmp_path: Path) -> None:
    for bad, message in (
        ([], "no text"),
        ([""], "no text"),
        ([7], "texts"),
        (["w1 w2 w3"], r"the text gives \d tokens.* a window has \d+"),
    ):
        with pytest.raises(ParameterError, match=f"calibration.*{message}"):
            palettize(source, tmp_path / "x", calibration=bad, **QUIET)  # type: ignore[arg-type]
    for argument in ("calibration", "validation"):
        with pytest.raises(ParameterError, match=f"^{argument}: must be the path of a text file.*not 5"):
            palettize(source, tmp_path / "x", **{argument: 5}, **QUIET)
    with pytest.raises(ParameterError, match=r"^recover_text: must be the path of a text file.*not 5"):
        read_windows(5, open_model(source), argument="recover_text")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"^recover_text: must be"):
        read_windows([7], open_model(source), argument="recover_text")  # type: ignore[list-item]
    with pytest.raises(MissingFileError, match="nothing"):
        palettize(source, tmp_path / "x", calibration=tmp_path / "nothing", **QUIET)
    for file, message in (
        ("empty", "there is no text in .*empty"),
        ("short", "short gives [23] tokens.*a window has"),
    ):
        (tmp_path / file).write_text("" if file == "empty" else "w1 w2 w3")
        with pytest.raises(ParameterError, match=f"calibration: .*{message}"):
            palettize(source, tmp_path / "x", calibration=tmp_path / file, **QUIET)
        (tmp_path / file).unlink()
    # What is held out to judge is not there any more, which the count does not show by itself.
    (tmp_path / "near").write_text("w1 " * 70)
    with pytest.raises(
        ParameterError, match=r"near gives \d+ tokens.*up to a fifth, is held out.*--validation"
    ):
        palettize(source, tmp_path / "x", calibration=tmp_path / "near", **QUIET)
    with pytest.raises(ParameterError, match=r"a window has \d+$"):
        palettize(source, tmp_path / "x", calibration=["w1 w2"], validation=["w1 " * 300], **QUIET)
    (tmp_path / "near").unlink()
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(FileFormatError, match=r"latin: not UTF-8.*byte 3"):
        palettize(source, tmp_path / "x", calibration=tmp_path / "latin", **QUIET)
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="tokenizer"):
        palettize(source, tmp_path / "x", calibration=[TEXT], **QUIET)
    assert names(tmp_path) == ["latin", "src"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_texts_that_never_end_are_refused(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    model = open_model(source)
    for place in (tmp_path / "pipe", Path("/dev/zero"), source):
        for argument in ("calibration", "recover_text"):
            with pytest.raises(MissingFileError, match=f"{place}: is not a regular file"):
                read_windows(place, model, argument=argument)
        with pytest.raises(MissingFileError, match=f"{place}: is not a regular file"):
            hold_out(None, place)
    with pytest.raises(MissingFileError, match="is not a regular file"):
        palettize(source, tmp_path / "x", calibration=tmp_path / "pipe", **QUIET)


def test_no_number_of_tokens_has_a_large_file_read_whole(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(reading, "_MOST_BYTES", 4000)
    whole: list[int] = []
    real = reading._read
    monkeypatch.setattr(reading, "_read", lambda path, size: whole.append(size) or real(path, size))
    model, file = open_model(source), tmp_path / "text"
    file.write_text("w1 w2 w3 w4 " * 300)
    few = read_windows(file, model, 1 << 30, window=8)
    assert len(whole) == 1 and few.size == 1200
    file.write_text("w1 w2 w3 w4 " * 3000)
    many = read_windows(file, model, 1 << 40, window=8)
    # No more windows than the text has, whatever is asked for.
    assert len(whole) == 1 and 6000 < many.size <= 12_000


def test_windows_are_spread_over_the_text(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    length = min(1024, model.graph.context_length)
    text = " ".join(f"w{i % 90}" for i in range(20 * length))
    windows = read_windows([text], model, tokens=4 * length)
    assert windows.shape == (4, length)
    starts = [int(window[0]) for window in windows]
    assert starts == [i * 20 // 4 * length % 90 for i in range(4)]
    # Of a large file only the places of the windows are read: this one would not fit into memory.
    file = tmp_path / "large.txt"
    line = ("日本 " * 20 + " ".join(f"w{i % 90}" for i in range(length * 2)) + "\n").encode()
    with file.open("wb") as out:
        out.write(line * (-(-(20 << 20) // len(line))))
        out.truncate(8 << 30)  # takes no space on the disk; zeros are words that nobody knows
    found = read_windows(file, model, tokens=4 * length)
    assert found.shape[1] == length
    file.write_bytes(b"w1 " * (9 << 20) + b"\xff" * 64 + b" w2" * (1 << 20))
    with pytest.raises(FileFormatError, match="not UTF-8"):
        read_windows(file, model, tokens=4096 * length)
