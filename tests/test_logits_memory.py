"""Logits of long texts: refused where they do not fit the memory, or a few rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from checkpoints import write_checkpoint
from fake_engine import FakeEngine, FakeSampler
from independent.cases import llama
from pocketlm.errors import MemoryLimitError
from pocketlm.generate.params import SamplingParams
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level, save

TOKENIZER = Tokenizer(byte_level(), config={"bos_token": "<|bos|>", "eos_token": "<|end|>"})
FREE = SamplingParams(max_tokens=5, seed=3, ignore_eos=True)
IDS = [int(i) for i in np.random.default_rng(0).integers(5, 250, 250)]


def make(vocab: int = TOKENIZER.size, max_memory: int | None = None, **options: Any) -> LM:
    return LM(FakeEngine(vocab, **options), TOKENIZER, FakeSampler, max_memory=max_memory)  # type: ignore[arg-type]


def test_logits_that_no_machine_holds_are_refused_before_any_work() -> None:
    with make(vocab=1 << 40) as lm:
        with pytest.raises(MemoryLimitError, match=r"logits of 200 tokens.*iter_logits"):
            lm.logits(IDS[:200])
        assert not lm.engine.steps  # type: ignore[attr-defined]


def test_logits_count_within_max_memory() -> None:
    size = 4 * 100 * TOKENIZER.size
    with make(max_memory=2000 + size) as lm:  # the engine takes 2,000 bytes
        assert lm.logits(IDS[:100]).nbytes == size
        with pytest.raises(MemoryLimitError, match=r"\d\.\d MB.*max_memory.*iter_logits"):
            lm.logits(IDS[:101])
        assert sum(len(rows) for _, rows in lm.iter_logits(IDS)) == len(IDS)


def test_what_cannot_be_allocated_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: Any) -> None:
        raise MemoryError

    with make() as lm, monkeypatch.context() as patched:
        patched.setattr(np, "empty", empty)
        with pytest.raises(MemoryLimitError, match="iter_logits"):
            lm.logits(IDS)


def test_load_hands_its_limit_on(tmp_path: Path) -> None:
    tokenizer = byte_level()
    path = write_checkpoint(
        tmp_path / "tiny", llama(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_id=1)
    )
    save(path, tokenizer)
    with pocketlm.load(path) as lm:
        used, size = sum(lm.engine.memory().values()), 4 * 100 * lm.engine.vocab_size
    with pocketlm.load(path, max_memory=used + size) as lm:
        assert len(lm.logits(IDS[:100])) == 100
        with pytest.raises(MemoryLimitError, match="max_memory"):
            lm.logits(IDS[:101])


def test_logits_are_not_computed_ahead_when_others_run() -> None:
    with make(max_rows=16, cache_tokens=1024) as lm:
        engine: Any = lm.engine
        expected = lm.logits(IDS)
        rows = lm.iter_logits(IDS)
        parts = [next(rows)]
        # Another request, which leads for many steps, leaves the iterator where it is.
        before = sum(map(sum, engine.steps))
        assert lm.generate([7] * 20, FREE).finish_reason == "length"
        assert sum(map(sum, engine.steps)) - before == 20 + FREE.max_tokens - 1  # type: ignore[operator]
        parts += list(rows)
        assert np.array_equal(np.concatenate([part for _, part in parts]), expected)
        assert [start for start, _ in parts] == list(np.cumsum([0, *(len(part) for _, part in parts[:-1])]))


@settings(max_examples=30)
@given(
    size=st.integers(1, 250),
    first=st.integers(0, 260),
    known=st.integers(0, 250),
    cache=st.integers(4, 8),
    rows=st.integers(2, 64),
    squeezed=st.booleans(),
)
def test_whatever_is_kept_or_lost_logits_are_the_same(
    size: int, first: int, known: int, cache: int, rows: int, squeezed: bool
) -> None:
    with make(max_rows=rows, cache_tokens=64 * cache) as lm:
        if known:
            lm.generate(IDS[:known], FREE)  # a beginning that can be taken up
        expected = lm.logits(IDS[:size])[first:]
        found = []
        for position, part in lm.iter_logits(IDS[:size], first):
            assert position == first + sum(map(len, found)) and len(part) <= rows
            found.append(part)
            if squeezed:
                lm.generate([9] * 200, FREE)  # takes the room
        assert np.array_equal(np.concatenate(found) if found else expected[:0], expected)
        assert len(expected) == max(0, size - first)
