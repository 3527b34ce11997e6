"""Several texts of one prompt: those of consecutive seeds, with the prompt computed once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import FakeEngine, FakeSampler
from pocketlm.errors import ContextLengthError, ParameterError, WeightError
from pocketlm.generate.params import SamplingParams
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level

TOKENIZER = Tokenizer(byte_level(), config={"bos_token": "<|bos|>", "eos_token": "<|end|>"})
FREE = SamplingParams(max_tokens=6, seed=3, ignore_eos=True)
PROMPT = [int(i) for i in np.random.default_rng(0).integers(5, 250, 100)]


def make(**options: Any) -> LM:
    return LM(FakeEngine(TOKENIZER.size, **options), TOKENIZER, FakeSampler)  # type: ignore[arg-type]


def computed(lm: LM) -> int:
    engine: Any = lm.engine
    return sum(map(sum, engine.steps))


def test_texts_are_those_of_consecutive_seeds_and_the_prompt_is_computed_once() -> None:
    with make(cache_tokens=4096) as lm:
        found = lm.generate(PROMPT, FREE, n=4)
        assert computed(lm) == len(PROMPT) - 1 + 4 * 6
    assert [c.seed for c in found.choices] == [3, 4, 5, 6] and found.choices[0].tokens == found.tokens
    assert [c.usage.prompt_tokens for c in found.choices] == [100] * 4
    assert all(not c.others for c in found.choices)
    with make() as lm:
        singles = [lm.generate(PROMPT, FREE, seed=seed).tokens for seed in range(3, 7)]
    assert [c.tokens for c in found.choices] == singles and len(set(singles)) == 4


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 5)), min_size=1, max_size=4),
    cache=st.integers(3, 12),
    rows=st.integers(9, 64),
)
def test_any_batch_with_any_memory(sizes: list[tuple[int, int]], cache: int, rows: int) -> None:
    prompts = [PROMPT[:size] for size, _ in sizes]
    with make(cache_tokens=64 * cache, max_rows=rows) as lm:
        found = lm.generate(prompts, [FREE.replace(n=n) for _, n in sizes])
    assert not lm.engine.live  # type: ignore[attr-defined]
    with make(cache_tokens=4096) as lm:
        for prompt, (_, n), completion in zip(prompts, sizes, found, strict=True):
            expected = [lm.generate(prompt, FREE, seed=3 + i).tokens for i in range(n)]
            assert [c.tokens for c in completion.choices] == expected


def test_seeds_wrap_and_are_drawn() -> None:
    with make() as lm:
        last = lm.generate([5], FREE, seed=(1 << 64) - 1, n=2)
        assert [c.seed for c in last.choices] == [(1 << 64) - 1, 0]
        drawn = lm.generate([5], FREE.replace(seed=None), n=3)
        assert len({c.tokens for c in drawn.choices}) > 1
        again = lm.generate([5], FREE, seed=drawn.choices[2].seed)
        assert again.tokens == drawn.choices[2].tokens
        greedy = lm.generate(PROMPT, FREE, n=2, temperature=0)
        assert greedy.tokens == greedy.others[0].tokens


def test_plain_data_holds_all_texts() -> None:
    with make() as lm:
        values = json.loads(json.dumps(lm.generate(PROMPT, FREE, n=3, logprobs=1).to_dict()))
        assert lm.generate(PROMPT, FREE).to_dict()["others"] == []
    assert [other["seed"] for other in values["others"]] == [4, 5]
    assert all(other["timings"]["decode_tokens_per_second"] > 0 for other in values["others"])


def test_a_stream_or_session_has_one_text() -> None:
    with make() as lm:
        for call in (
            lambda: lm.stream([5], n=2),
            lambda: lm.session().respond("once", n=2),
        ):
            with pytest.raises(ParameterError, match="n: "):
                call()
        assert lm.stream([5], FREE, n=1).result().choices[0].tokens
        with pytest.raises(ContextLengthError):
            lm.generate([5] * 250, max_tokens=7, n=2)
        assert not computed(lm) - 6


def test_a_failure_while_the_prompt_is_computed_is_raised() -> None:
    with make() as lm:
        engine: Any = lm.engine

        def fail(error: BaseException) -> None:
            engine.before_step = lambda: None
            raise error

        for error in (WeightError("tensor 'x' is damaged"), KeyboardInterrupt()):
            engine.before_step = lambda error=error: fail(error)
            with pytest.raises(type(error)):
                lm.generate(PROMPT, FREE, n=3)
        assert len(lm.generate(PROMPT, FREE, n=3).choices) == 3


def test_seeds_that_are_drawn_survive_readers_of_json_with_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.urandom", lambda size: b"\xff" * size)
    with make(cache_tokens=16384) as lm:
        seeds = [c.seed for c in lm.generate([5], max_tokens=1, n=128).choices]
        given = lm.generate([5], max_tokens=1, seed=(1 << 64) - 1).seed
    assert seeds == list(range(seeds[0], seeds[0] + 128)) and seeds[0] > 2**51 and seeds[-1] < 2**53
    assert all(int(float(seed)) == seed for seed in seeds) and given == (1 << 64) - 1
