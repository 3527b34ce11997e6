"""Scheduling, streams and sessions over an engine that notices any wrong token."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import re
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import FakeEngine, FakeResult, FakeSampler, FixedPace
from pocketlm.describe import count
from pocketlm.errors import ContextLengthError, ParameterError, WeightError
from pocketlm.generate.pace import Pace
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.result import Completion
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import CHAT, byte_level

TOKENIZER = Tokenizer(
    byte_level(),
    config={"bos_token": "<|bos|>", "eos_token": "<|end|>"},
    template=CHAT,
    source="tokenizer.json",
)
FREE = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)


def make(**options: Any) -> LM:
    return LM(FakeEngine(TOKENIZER.size, **options), TOKENIZER, FakeSampler)  # type: ignore[arg-type]


@pytest.fixture
def lm() -> Iterator[LM]:
    with make() as model:
        yield model


def oracle(prompt: list[int], params: SamplingParams) -> list[int]:
    """The tokens, by the plainest loop."""
    engine, ids = FakeEngine(TOKENIZER.size), list(prompt)
    temperature = 1.0 if params.temperature is None else params.temperature
    sampler = FakeSampler(temperature=temperature, seed=params.seed or 0, logprobs=None)
    while len(ids) - len(prompt) < (params.max_tokens or 0):
        result = FakeResult()
        sampler.sample(engine.logits(ids), result)
        ids += result.tokens
        if ids[-1] in TOKENIZER.eos and not params.ignore_eos:
            break
    return ids[len(prompt) :]


def plain(completion: Completion) -> tuple[Any, ...]:
    return completion.text, completion.tokens, completion.finish_reason, completion.stop_reason


def test_tokens_are_those_of_the_plain_loop(lm: LM) -> None:
    ids = TOKENIZER.encode("once upon a time")
    completion = lm.generate("once upon a time", FREE)
    assert list(completion.tokens) == oracle(ids, FREE)
    assert completion.finish_reason == "length" and completion.seed == 3
    assert completion.usage.prompt_tokens == len(ids) and completion.usage.completion_tokens == 12
    assert completion.text == TOKENIZER.decode(completion.tokens)


@settings(max_examples=40, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.integers(0, TOKENIZER.size - 1), min_size=1, max_size=120), min_size=1, max_size=9
    ),
    shared=st.integers(0, 40),
    rows=st.integers(9, 64),
    cache=st.integers(3, 12),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_a_batch_equals_its_rows(
    prompts: list[list[int]], shared: int, rows: int, cache: int, temperature: float
) -> None:
    params = SamplingParams(max_tokens=9, seed=5, temperature=temperature)
    prompts = [[7] * shared + prompt for prompt in prompts]
    with make(max_rows=rows, cache_tokens=64 * cache) as lm:
        found = lm.generate(prompts, params)
        again = lm.generate(prompts, params)
    for prompt, completion, second in zip(prompts, found, again, strict=True):
        assert list(completion.tokens) == oracle(prompt, params)
        assert plain(second) == plain(completion)
    assert not lm.engine.live  # type: ignore[attr-defined]


def test_a_long_prompt_does_not_hold_up_others(lm: LM) -> None:
    engine: Any = lm.engine
    lm._scheduler._pace = FixedPace(32)
    long = lm.stream([5] * 200, FREE)
    short = lm.stream([6] * 4, FREE)
    short.result()
    # The short prompt is through in the first step, and has a token in every step after it.
    assert engine.steps[:4] == [[16, 4], [1, 32], [1, 32], [1, 32]] and len(engine.steps) == 12
    assert long.result().usage.completion_tokens == 12
    assert max(map(sum, engine.steps)) <= 33


def test_prefix_of_an_earlier_prompt_is_reused(lm: LM) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(5, 250, 100)]
    first = lm.generate(ids, FREE)
    second = lm.generate([*ids[:80], 9, 9, 9], FREE)
    assert (first.usage.reused_tokens, second.usage.reused_tokens) == (0, 80)
    assert list(second.tokens) == oracle([*ids[:80], 9, 9, 9], FREE)
    # All of a prompt known: its last token is computed again, for its logits.
    assert lm.generate(ids, FREE).usage.reused_tokens == 99


def test_end_token_stop_string_and_stop_token(lm: LM) -> None:
    tokens = lm.generate([5], FREE).tokens
    text = TOKENIZER.decode(tokens)
    stopped = lm.generate([5], FREE, stop_token_ids=[tokens[4]])
    assert (
        stopped.tokens == tokens[:5] and stopped.stop_reason == tokens[4] and stopped.finish_reason == "stop"
    )
    bias = {next(iter(TOKENIZER.eos)): 100.0}
    ended = lm.generate([5], max_tokens=5, logit_bias=bias)
    assert ended.tokens == tuple(TOKENIZER.eos) and ended.text == "" and ended.finish_reason == "stop"
    assert len(lm.generate([5], max_tokens=5, logit_bias=bias, ignore_eos=True).tokens) == 5
    for start in range(len(text) - 2):
        stop = text[start : start + 2]
        if "\ufffd" not in stop:
            found = lm.generate([5], FREE, stop=stop)
            assert found.text == text[: text.index(stop)] and found.stop_reason == stop
            with lm.stream([5], FREE, stop=stop) as stream:
                assert "".join(chunk.text for chunk in stream) == found.text


def test_stream_yields_the_same_text_in_pieces(lm: LM) -> None:
    whole = lm.generate("the cat", FREE, logprobs=2)
    with lm.stream("the cat", FREE, logprobs=2) as stream:
        chunks = list(stream)
    assert "".join(map(str, chunks)) == whole.text == stream.text
    assert sum((chunk.tokens for chunk in chunks), ()) == whole.tokens
    assert sum((chunk.logprobs or () for chunk in chunks), ()) == whole.logprobs
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length" and stream.completion is not None
    assert whole.logprobs is not None and len(whole.logprobs) == 12
    assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in whole.logprobs)
    assert [entry.text for entry in whole.logprobs] == [TOKENIZER.decode_token(i) for i in whole.tokens]
    assert any(entry.text != TOKENIZER.token_text(entry.token) for entry in whole.logprobs)
    assert next(stream, None) is None


class NotedPace(Pace):
    """Writes down whether steps with prompts were shared, and what was learned from."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[bool] = []
        self.noted: list[int] = []

    def rows(self, most: int, shared: bool) -> int:
        self.shared.append(shared)
        return min(32, most)

    def note(self, rows: int, seconds: float) -> None:
        self.noted.append(rows)


def test_only_texts_that_are_generated_share_a_step_and_only_prompts_teach(lm: LM) -> None:
    lm._scheduler._pace = pace = NotedPace()
    first = lm.stream([5] * 40, FREE, max_tokens=8)
    next(first)  # its prompt is done
    lm.generate([6] * 40, FREE, max_tokens=1)
    assert first.result().usage.completion_tokens == 8
    assert pace.shared[:2] == [False, False] and all(pace.shared[2:])
    assert pace.noted == [32, 8, 33, 9]


def test_cancel_during_prefill_ends_at_the_next_chunk(lm: LM) -> None:
    engine: Any = lm.engine
    lm._scheduler._pace = FixedPace(32)
    stream = lm.stream([5] * 200, FREE)
    engine.before_step = stream.cancel
    chunks = list(stream)
    assert [chunk.finish_reason for chunk in chunks] == ["cancelled"] and len(engine.steps) == 1
    assert stream.result().tokens == ()


def test_cancel_from_another_thread_and_after_some_text(lm: LM) -> None:
    stream = lm.stream([5], max_tokens=200, ignore_eos=True, seed=1)
    first = next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    thread.join()
    rest = list(stream)
    assert rest[-1].finish_reason == "cancelled"
    assert first.text + "".join(map(str, rest)) == stream.text
    # The model is free for others at once.
    assert lm.generate([5], FREE).finish_reason == "length"


def test_a_lost_stream_gives_its_memory_back(lm: LM) -> None:
    engine: Any = lm.engine
    for _ in range(30):
        next(lm.stream([5], max_tokens=250, ignore_eos=True, seed=1))
        gc.collect()
    assert lm.generate([6] * 100, max_tokens=100, ignore_eos=True).finish_reason == "length"
    assert len(engine.live) <= 33


def test_a_stream_cannot_be_copied(lm: LM) -> None:
    with lm.stream([5, 6], max_tokens=4, ignore_eos=True) as stream:
        next(stream)
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="cannot be copied"):
                way(stream)
        gc.collect()  # nothing was made whose end would cancel the stream
        assert len(stream.result().tokens) == 4


def hold_until(lm: LM, jobs: int) -> None:
    """Holds the first step until as many jobs have come; a slow machine must not run them in turn."""
    engine: Any = lm.engine

    def hold() -> None:
        engine.before_step = lambda: None
        end = time.monotonic() + 60
        while len(lm._scheduler._waiting) + len(lm._scheduler._running) < jobs and time.monotonic() < end:
            time.sleep(0.001)

    engine.before_step = hold


def test_threads_share_steps(lm: LM) -> None:
    engine: Any = lm.engine
    hold_until(lm, 8)
    prompts = [[i + 10] * 20 for i in range(8)]
    found: dict[int, Completion] = {}
    barrier = threading.Barrier(8)

    def work(index: int) -> None:
        barrier.wait()
        found[index] = lm.generate(prompts[index], FREE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(list(found[i].tokens) == oracle(prompts[i], FREE) for i in range(8))
    assert any(len(step) > 1 for step in engine.steps)


def test_async_streams_run_together(lm: LM) -> None:
    async def read(token: int) -> str:
        async with lm.stream([token], FREE) as stream:
            return "".join([chunk.text async for chunk in stream])

    async def main() -> list[str]:
        return await asyncio.gather(*(read(token) for token in range(20, 30)))

    engine: Any = lm.engine
    hold_until(lm, 10)
    assert asyncio.run(main()) == [lm.generate([token], FREE).text for token in range(20, 30)]
    assert any(len(step) > 1 for step in engine.steps)


def test_async_stream_of_a_cancelled_task_stops(lm: LM) -> None:
    streams = []

    async def main() -> None:
        async def read() -> None:
            streams.append(lm.stream([5], max_tokens=250, ignore_eos=True, seed=1))
            async for _ in streams[0]:
                pass

        task = asyncio.create_task(read())
        while not streams or not streams[0].text:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert len(streams[0].result().tokens) < 250


def test_errors_of_the_engine_reach_their_requests_only(lm: LM) -> None:
    engine: Any = lm.engine

    def fail() -> None:
        engine.before_step = lambda: None
        raise WeightError("tensor 'x' is damaged")

    engine.before_step = fail
    with pytest.raises(WeightError, match="'x'"):
        lm.generate([5], FREE)
    assert lm.generate([5], FREE).finish_reason == "length"


def test_an_interrupt_leaves_the_model_usable(lm: LM) -> None:
    engine: Any = lm.engine

    def interrupt() -> None:
        engine.before_step = lambda: None
        raise KeyboardInterrupt

    engine.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        lm.generate([[5], [6]], FREE)
    assert list(lm.generate([5], FREE).tokens) == oracle([5], FREE)


def test_limits_are_errors_before_any_work(lm: LM) -> None:
    engine: Any = lm.engine
    for call in (
        lambda: lm.generate([5] * 256),
        lambda: lm.generate([5] * 300),
        lambda: lm.generate([5] * 250, max_tokens=7),
        lambda: lm.generate("a" * 100_000_000),
        lambda: lm.generate(["fine", "a " * 1000]),
        lambda: lm.logits([5] * 300),
    ):
        with pytest.raises(ContextLengthError):
            call()
    for call in (
        lambda: lm.generate([5, TOKENIZER.size]),
        lambda: lm.generate([-1]),
        lambda: lm.generate([5, 1.5]),  # type: ignore[list-item]
        lambda: lm.generate(None),  # type: ignore[call-overload]
        lambda: lm.generate([[]]),
        lambda: lm.generate([5], temperature=float("nan")),
        lambda: lm.generate([5], temprature=1.0),
        lambda: lm.generate([5], max_tokens=3, max_new_tokens=3),
        lambda: lm.generate([5], stop_token_ids=[TOKENIZER.size]),
        lambda: lm.generate([5], logit_bias={TOKENIZER.size: 1.0}),
        lambda: lm.generate("lone \ud800"),
        lambda: lm.logits([]),
    ):
        with pytest.raises(ParameterError):
            call()
    assert not engine.steps and lm.generate([]) == []


@pytest.mark.parametrize("wrong", [5, 5.0, None])
def test_what_is_no_prompt_is_named(lm: LM, wrong: Any) -> None:
    for call in (lm.generate, lm.stream, lm.score, lambda p: lm.generate(p, SamplingParams(max_tokens=1))):
        with pytest.raises(ParameterError, match=r"^prompt: "):
            call(wrong)
    with pytest.raises(ParameterError, match=r"^params: expected SamplingParams, not list"):
        lm.generate([5], [SamplingParams()])


@pytest.mark.parametrize("wrong", [b"abc", b"", bytearray(b"abc")])
def test_bytes_are_no_token_ids(lm: LM, wrong: Any) -> None:
    calls = (
        lm.generate,
        lambda p: lm.generate([p]),
        lm.stream,
        lm.score,
        lm.logits,
        lambda p: lm.score("a", p),
    )
    for call in calls:
        with pytest.raises(ParameterError, match=f"is {type(wrong).__name__}; decode it"):
            call(wrong)


def test_an_empty_prompt_is_refused(lm: LM) -> None:
    bare = LM(FakeEngine(TOKENIZER.size), Tokenizer(byte_level(bos=False)), FakeSampler)  # type: ignore[arg-type]
    for model in (lm, bare):
        for call in (lambda m: m.generate(""), lambda m: m.generate(["fine", ""]), lambda m: m.stream("")):
            with pytest.raises(ParameterError, match=r"^prompt( 1)?: is empty"):
                call(model)
    assert TOKENIZER.bos is not None
    assert lm.generate([TOKENIZER.bos], FREE).usage.prompt_tokens == 1
    # What is only scored may begin at nothing, where the model has a token for that.
    assert lm.score("", "once").tokens == tuple(TOKENIZER.encode("once", bos=False))
    with pytest.raises(ParameterError, match="no token that begins"):
        bare.score("", "once")


def test_without_max_tokens_the_context_is_the_end(lm: LM) -> None:
    completion = lm.generate([5] * 200, ignore_eos=True)
    assert len(completion.tokens) == 56 and completion.finish_reason == "length"


def test_logits_and_score(lm: LM) -> None:
    engine: Any = lm.engine
    ids = list(range(10, 150))
    logits = lm.logits(ids)
    assert logits.shape == (140, TOKENIZER.size) and logits.dtype == np.float32
    assert np.array_equal(logits[100], engine.logits(ids[:101]))
    score = lm.score(ids[:100], ids[100:])
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    expected = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))[range(99, 139), ids[100:]]
    assert score.tokens == tuple(ids[100:]) and np.allclose(score.logprobs, expected, atol=1e-12, rtol=0)
    assert not score.greedy and lm.score(ids[:100], [int(logits[99].argmax())]).greedy
    assert lm.score("once upon", " a time").tokens == tuple(TOKENIZER.encode(" a time", bos=False))
    assert len(lm.score("once upon a time").tokens) == len(TOKENIZER.encode("once upon a time")) - 1


def test_closed_model_says_so() -> None:
    lm = make()
    lm.generate([5], FREE)
    lm.close()
    for call in (lambda: lm.generate([5], FREE), lambda: lm.session().respond("a"), lm.prewarm):
        with pytest.raises(ParameterError, match=r"^the model is closed$"):
            call()


def test_what_is_no_single_prompt_is_told_how_it_is_given(lm: LM) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    calls: list[tuple[Any, Any, str]] = [
        (lm.generate, messages, r"^prompt: messages go through lm\.tokenizer\.encode_chat\(messages\)"),
        (lm.generate, messages[0], r"^prompt: messages go through"),
        (lm.generate, ["a", messages], r"^prompt 1: messages go through"),
        (lm.stream, messages, r"^prompt: messages go through"),
        (lm.stream, ["a", "b"], "^prompt: a stream takes one prompt, not several"),
        (lm.stream, [[5], [6]], "^prompt: a stream takes one prompt, not several"),
        (lm.stream, iter(["a", "b"]), "^prompt: a stream takes one prompt, not several"),
        (lm.generate, (word for word in ("a", "b")), "^prompt: several prompts must be given as a list"),
        (lm.generate, (word for word in ["a"] * 1000), "^prompt: several prompts must be given as a list"),
        (lm.score, iter(["a"]), "^prompt: token ids must be integers, not 'a'"),
    ]
    for call, prompt, message in calls:
        with pytest.raises(ParameterError, match=message):
            call(prompt)
    assert lm.generate(lm.tokenizer.encode_chat(messages), FREE).usage.completion_tokens == 12
    assert "lm.tokenizer.encode_chat(messages)" in (LM.generate.__doc__ or "")


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", {}, "prompt: is empty; to begin"),
        ([], {}, "prompt: holds no tokens"),
        ([5, -1], {}, "prompt: token id -1 is not from 0"),
        ([5, "x"], {}, "prompt: token ids must be integers, not 'x'"),
        ("lone \ud800", {}, "text: holds a lone surrogate"),
        (b"bytes", {}, "prompt: is bytes"),
        (None, {}, "prompt: expected a string or token ids, not NoneType"),
        ([5] * 300, {}, "prompt: has more than 256 tokens"),
        ("a " * 600, {}, r"the prompt has \d+ tokens; the context holds 256"),
        ("a " * 30_000, {}, "a text of 60000 characters does not fit"),
        ([5] * 250, {"max_tokens": 7}, "the prompt has 250 tokens and up to 7 are to follow"),
    ],
)
def test_errors_about_one_of_several_prompts_say_which(
    lm: LM, prompt: Any, params: dict[str, Any], message: str
) -> None:
    kinds = (ParameterError, ContextLengthError)
    with pytest.raises(kinds, match=f"^{message}") as single:
        lm.generate([prompt], **params)
    for place in range(3):
        prompts: list[Any] = ["a", [5], "b"]
        prompts[place] = prompt
        told = re.sub("^(prompt: |the prompt |text: )", "", message)
        with pytest.raises(type(single.value), match=f"^prompt {place}: {told}"):
            lm.generate(prompts, **params)
    # What all have in common is no matter of one.
    with pytest.raises(ParameterError, match=r"^stop_token_ids: "):
        lm.generate(["a", "b"], stop_token_ids=[TOKENIZER.size])


def test_a_model_says_what_it_is() -> None:
    model = LM(FakeEngine(TOKENIZER.size), TOKENIZER, FakeSampler, name="stories")  # type: ignore[arg-type]
    assert repr(model) == "<pocketlm.LM 'stories', context 256>"
    model._describe = lambda: SimpleNamespace(parameters=1_235_814_400)  # type: ignore[assignment,return-value]
    assert repr(model) == "<pocketlm.LM 'stories', 1.24 billion parameters, context 256>"
    model._describe = lambda: 1 // 0  # type: ignore[assignment,return-value]
    assert repr(model) == "<pocketlm.LM 'stories', context 256>"
    model.close()
    assert repr(model) == "<pocketlm.LM 'stories', closed>"
    assert repr(LM.__new__(LM)) == "<pocketlm.LM>"


def test_numbers_of_parameters_are_told_in_three_digits() -> None:
    told = {
        0: "0",
        7: "7",
        999: "999",
        1500: "1.5 thousand",
        27_400_000: "27.4 million",
        999_700_000: "1,000 million",
    }
    assert {number: count(number) for number in told} == told
