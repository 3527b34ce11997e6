"""Text that judges: the end of what calibrates, of enough tokens, encoded like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from palettizing import QUIET
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError
from pocketlm.loading import open_model
from pocketlm.palettize import plan
from pocketlm.palettize.damage import products
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.text import Head, read_windows


def test_the_end_of_the_text_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for texts in (["one two three " * 40], ["a b c " * 5, "d e " * 50, "f g " * 9], ["x" * 50]):
        head, tail = hold_out(texts, None)
        assert isinstance(head, list)
        assert "".join(head + tail) == "".join(texts)
        assert 0 < sum(map(len, tail)) <= sum(map(len, texts)) // 5
    (tmp_path / "text").write_text("é" * 1000)
    head, (tail_text,) = hold_out(tmp_path / "text", None)
    assert head == ["é" * 800] and tail_text == "é" * 200
    assert hold_out(tmp_path / "text", ["v"]) == (tmp_path / "text", ["v"])
    # Of a large file only the end is read, even where a character begins before it.
    monkeypatch.setattr("pocketlm.palettize.held_out._WHOLE_BYTES", 100)
    monkeypatch.setattr("pocketlm.palettize.held_out._END_CHARACTERS", 101)
    assert hold_out(tmp_path / "text", None) == (Head(tmp_path / "text", 1900), ["é" * 50])
    assert hold_out(tmp_path, None) == (tmp_path, [])  # a directory has no text
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(FileFormatError, match=r"latin: not UTF-8.*byte 3"):
        hold_out(None, tmp_path / "latin")
    with pytest.raises(MissingFileError, match="nothing"):
        hold_out(None, tmp_path / "nothing")
    for bad in ([], [" "], [7]):
        with pytest.raises(ParameterError, match="validation"):
            hold_out(None, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("whole", [1 << 20, 1000])  # read whole, and in pieces
def test_no_window_of_a_large_file_has_text_that_judges(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    model, path = open_model(source), tmp_path / "text"
    path.write_text("w1 " * 40_000 + "w2 " * 10_000)
    monkeypatch.setattr("pocketlm.palettize.held_out._WHOLE_BYTES", 1000)
    monkeypatch.setattr("pocketlm.palettize.held_out._END_CHARACTERS", 30_000)
    monkeypatch.setattr("pocketlm.palettize.text._WHOLE_BYTES", whole)
    left, (judging,) = hold_out(path, None)
    assert judging == "w2 " * 10_000 and left is not None
    windows = read_windows(left, model, window=8, tokens=2000)
    assert len(windows) == 250
    calibrating, judges = (model.read_tokenizer().inner.encode(text).ids[-1] for text in ("w1", "w2"))
    assert calibrating in windows and judges not in windows


def test_long_runs_take_fewer_tokens(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = open_model(source), [" ".join(f"w{i % 97}" for i in range(5000))]
    assert [len(ids) for ids in sequences(model, text)] == [256] * 8
    monkeypatch.setattr("pocketlm.palettize.held_out.MOST_WORK", 32 * products(model.graph) * 1100)
    assert sum(map(len, sequences(model, text))) == 1024
    monkeypatch.setattr("pocketlm.palettize.held_out.MOST_WORK", 1)
    few = sequences(model, text)
    assert sum(map(len, few)) == 512 and few[1] == sequences(model, text)[1]
    short = "w1 w2 w3 w4 " * 64
    assert sequences(model, [short]) == [model.read_tokenizer().inner.encode(short).ids]


def test_few_tokens_cannot_judge(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    for text, count in (("", 0), ("w1 w2 w3", 3), ("w1 " * 255, 255)):
        with pytest.raises(ParameterError, match=f"^validation: the text has {count} tokens; at least 256"):
            sequences(model, [text])
    (tmp_path / "few").write_text("w1 w2")
    with pytest.raises(ParameterError, match=r"^validation: .*few has 2 tokens; at least 256 can judge$"):
        plan(source, validation=tmp_path / "few", **QUIET)
    (tmp_path / "text").write_text("w1 w2 " * 500)
    with pytest.raises(ParameterError, match=r"^calibration: the end of .*text, which.*--validation"):
        plan(source, calibration=tmp_path / "text", **QUIET)
    assert plan(source, calibration=["w1 w2 " * 700], kinds="4", **QUIET).measured["tokens"] >= 256


def test_texts_that_judge_are_encoded_like_any_other(source: Path, tmp_path: Path) -> None:
    text, file = " ".join(f"w{i % 89}" for i in range(300)), source / "tokenizer.json"
    plain = sequences(open_model(source), [text])
    facts = json.loads(file.read_text())
    cut = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padded = {
        "strategy": {"Fixed": 700},
        "direction": "Right",
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "w0",
    }
    for settings in ({"truncation": cut}, {"padding": {**padded, "pad_to_multiple_of": None}}):
        file.write_text(json.dumps({**facts, **settings}))
        assert sequences(open_model(source), [text]) == plain
    file.write_text(json.dumps(facts))
    # What cannot judge is refused as what cannot calibrate is.
    model = open_model(source)
    with pytest.raises(ParameterError, match=r"^validation: .*surrogate"):
        sequences(model, ["w1 \ud800 w2"])
    with pytest.raises(ParameterError, match=r"^validation: \d+ % of the text's tokens are unknown"):
        plan(source, validation=["x y z " * 90], **QUIET)
    for end, words in (("x y z ", "unknown"), ("w\ud800 ", "surrogate")):
        with pytest.raises(ParameterError, match=rf"^calibration: .*{words}"):
            plan(source, calibration=["w1 w2 " * 1500, end * 200], **QUIET)
