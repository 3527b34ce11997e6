"""Perplexity against a plain recomputation: every token once, every byte counted, whatever the windows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_engine import FakeEngine, FakeSampler
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, StorageError
from pocketlm.evaluate.compare import compare
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level

TEXT = "once upon a time there was a naïve little girl.\nthe café 日本語の本 😀\n" * 9


def make(bos: bool) -> LM:
    tokenizer = Tokenizer(byte_level(bos), config={"bos_token": "<|bos|>"} if bos else {})
    return LM(FakeEngine(tokenizer.size), tokenizer, FakeSampler)  # type: ignore[arg-type]


def plain(lm: LM, ids: list[int], bos: bool, context: int, stride: int) -> float:
    engine: Any = lm.engine
    total, start = 0.0, 0 if bos else 1
    for index in range(start, len(ids)):
        end = min(start + (index - start) // stride * stride + stride, len(ids))
        begin = max(0, end - context + (1 if bos else 0))
        before = ([0] if bos else []) + ids[begin:index]
        logits = engine.logits(before).astype(np.float64)
        total -= logits[ids[index]] - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    return total


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("context", "stride"), [(16, None), (64, None), (64, 10), (2, None), (256, 3)])
def test_equals_the_plain_sum(tmp_path: Path, bos: bool, context: int, stride: int | None) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    with make(bos) as lm:
        ids = lm.tokenizer.encode(TEXT, bos=False)
        found = lm.perplexity(path, context=context, stride=stride)
        expected = plain(lm, ids, bos, context, stride or context - 1)
    assert found.nll == pytest.approx(expected, rel=1e-9)
    first = 0 if bos else len(lm.tokenizer.decode(ids[:1]).encode())
    assert found.tokens == len(ids) - (0 if bos else 1) and found.bytes == len(TEXT.encode()) - first
    assert found.perplexity == pytest.approx(math.exp(expected / found.tokens))
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / found.bytes)


def test_pieces_of_a_long_file_are_all_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    monkeypatch.setattr("pocketlm.evaluate.windows._PIECE", 50)
    with make(True) as lm:
        done: list[int] = []
        found = lm.perplexity(path, context=32, progress=done.append)
        assert found.bytes == len(TEXT.encode()) and done == sorted(done)
        limited = lm.perplexity(path, context=32, limit=77)
        assert limited.tokens == 77 and limited.bytes < found.bytes


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_damage_is_placed_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("pocketlm.evaluate.windows._PIECE", block)
    whole = TEXT.encode() * 20
    for before in (0, 1, 50, 8192, len(whole)):
        for bad in (b"\xff\xfe" + whole, "é".encode()[:1]):
            before = len(whole[:before].decode("utf-8", "ignore").encode())
            (tmp_path / "text").write_bytes(whole[:before] + bad)
            with (
                make(True) as lm,
                pytest.raises(FileFormatError, match=rf"not UTF-8 \(.* at byte {before}\)$"),
            ):
                lm.perplexity(tmp_path / "text", context=64)


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    with make(True) as lm:
        for error, name in (
            (ParameterError, "empty"),
            (FileFormatError, "latin"),
            (MissingFileError, "none"),
            (StorageError, "."),
        ):
            with pytest.raises(error, match=name if name != "." else "directory"):
                lm.perplexity(tmp_path / name, context=64)
        for long in ("x" * 300, tmp_path / ("x" * 300)):
            with pytest.raises(StorageError, match="xxx: File name too long"):
                lm.perplexity(long, context=64)
            with pytest.raises(StorageError, match="xxx: File name too long"):
                compare(lm, lm, long, context=64)
        os.mkfifo(tmp_path / "pipe")
        for special in (tmp_path / "pipe", Path("/dev/zero")):  # of which there is no end
            with pytest.raises(MissingFileError, match=f"{special}: is not a regular file"):
                lm.perplexity(special, context=64)
            with pytest.raises(MissingFileError, match=f"{special}: is not a regular file"):
                compare(lm, lm, special, context=64)
        for odd in ("a\0b", "", 5):
            with pytest.raises(ParameterError, match=r"^path: must be a path"):
                lm.perplexity(odd, context=64)  # type: ignore[arg-type]
            with pytest.raises(ParameterError, match=r"^path: must be a path"):
                compare(lm, lm, odd, context=64)  # type: ignore[arg-type]
        for options in ({"context": 1}, {"context": 257}, {"stride": 0}, {"stride": 512}, {"limit": 0}):
            with pytest.raises(ParameterError, match=next(iter(options))):
                lm.perplexity(tmp_path / "empty", **{"context": 64, **options})
