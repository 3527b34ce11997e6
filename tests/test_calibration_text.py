"""The text of a calibration: of this tokenizer, long enough, and read where windows are alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pocketlm
from calibrating import TEXT
from palettizing import QUIET, names
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, TokenizerError
from pocketlm.loading import open_model
from pocketlm.palettize import palettize
from pocketlm.palettize import text as reading
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.text import read_windows


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
