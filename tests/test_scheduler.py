"""Who may use the engine when, and what goes wrong: nobody waits for ever or pays for another's mistake."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fake_engine import FakeEngine, FakeSampler
from pocketlm.errors import InternalError, ParameterError, TokenizerError
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.stream import _wake
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import byte_level

TOKENIZER = Tokenizer(byte_level(), config={"bos_token": "<|bos|>", "eos_token": "<|end|>"})
FREE = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)
SAVED = [int(i) for i in np.random.default_rng(1).integers(5, 250, 180)]
STATE = np.asarray(SAVED, np.int64).tobytes()


def make(**options: Any) -> LM:
    return LM(FakeEngine(TOKENIZER.size, **options), TOKENIZER, FakeSampler)  # type: ignore[arg-type]


@pytest.fixture
def lm() -> Iterator[LM]:
    with make(cache_tokens=512, max_rows=128) as model:
        yield model


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def before_each_step(lm: LM, work: Callable[[], object]) -> None:
    """Does something when a step's room is made, and the engine does not run yet."""
    engine: Any = lm.engine
    step = engine.step

    def later(*args: Any, **options: Any) -> Any:
        work()
        return step(*args, **options)

    engine.step = later


def test_a_session_that_is_restored_does_not_take_the_room_of_a_step(lm: LM) -> None:
    with make() as other:
        expected = other.generate([9] * 120, FREE).tokens
    lm.generate([8] * 250, FREE, max_tokens=5)  # four of eight blocks, kept
    stream = lm.stream([9] * 120, FREE)
    threads: list[threading.Thread] = []

    def restore() -> None:
        if not threads:
            threads.append(start(lambda: lm._scheduler.keep("a session", SAVED, STATE)))
            threads[0].join(0.2)

    before_each_step(lm, restore)
    assert stream.result().tokens == expected
    threads[0].join(60)
    assert lm._scheduler.kept("a session") == (SAVED, STATE)


def test_while_a_session_waits_for_a_step_streams_can_be_listened_to(lm: LM) -> None:
    engine: Any = lm.engine
    stream, other = lm.stream([9] * 60, FREE), lm.stream([10] * 20, FREE)
    found: list[bool] = []

    def hold() -> None:
        engine.before_step = lambda: None
        threads = [start(lambda: lm._scheduler.keep("a session", SAVED, STATE))]
        threads[0].join(0.2)
        assert threads[0].is_alive()  # it waits for this step
        listening = start(lambda: lm._scheduler.listen(other._job, lambda: None))
        listening.join(10)
        found.append(listening.is_alive())
        for work in (lambda: lm._forget("nobody"), other.cancel):
            thread = start(work)
            thread.join(10)
            found.append(thread.is_alive())

    engine.before_step = hold
    stream.result()
    assert found == [False] * 3


def test_what_is_forgotten_during_a_step_is_freed_after_it(lm: LM) -> None:
    engine: Any = lm.engine
    chat = lm.session(params=FREE)
    chat.respond("once upon a time")
    kept = len(lm._scheduler._prefixes)
    engine.before_step = chat.close
    lm.generate([9] * 20, FREE)
    engine.before_step = lambda: None
    assert lm._scheduler.kept(chat._key) == ([], b"") and len(lm._scheduler._prefixes) == kept


def test_sessions_are_saved_and_restored_beside_texts(lm: LM) -> None:
    expected = [lm.generate([i] * 30, FREE).tokens for i in range(5, 9)]
    found: dict[int, Any] = {}

    def generate(i: int) -> None:
        found[i] = lm.generate([i] * 30, FREE).tokens

    def restore(i: int) -> None:
        for _ in range(20):
            lm._scheduler.keep(i, SAVED[: 20 * i], np.asarray(SAVED[: 20 * i], np.int64).tobytes())
            ids, data = lm._scheduler.kept(i)
            assert np.frombuffer(data, np.int64).tolist() == ids

    threads = [start(lambda i=i: generate(i)) for i in range(5, 9)]  # type: ignore[misc]
    threads += [start(lambda i=i: restore(i)) for i in range(1, 5)]  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(5, 9)] == expected


def test_what_a_step_calls_can_keep_sessions_but_not_wait_for_itself(lm: LM) -> None:
    def receive(start: int, rows: Any) -> None:
        lm._scheduler.keep("a session", SAVED, STATE)
        assert lm._scheduler.kept("a session")[0] == SAVED
        lm.generate([5], FREE)

    with pytest.raises(ParameterError, match="at work in this thread"):
        lm.evaluate([[5, 6]], [receive])
    assert lm.generate([5], FREE).finish_reason == "length"


def broken(*_: Any) -> str:
    raise TokenizerError("tokenizer.json: damaged")


@pytest.mark.parametrize("started", [False, True])
def test_a_text_whose_end_cannot_be_written_fails_alone(lm: LM, started: bool) -> None:
    stream, other = lm.stream([5], FREE, max_tokens=200), lm.stream([6], FREE, max_tokens=200)
    if started:
        next(stream)
    stream._job._detokenizer.flush = broken  # type: ignore[method-assign]
    stream.cancel()
    assert stream.finished
    for _ in range(2):
        with pytest.raises(TokenizerError, match="damaged"):
            stream.result()
    other._job._detokenizer.flush = broken  # type: ignore[method-assign]
    third = lm.stream([7], FREE)
    with pytest.raises(TokenizerError, match="damaged"):
        other.result()  # at its own end
    assert third.result().finish_reason == "length"
    assert len(lm.engine.live) == len(lm._scheduler._prefixes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["close", "cancel", "leave"])
def test_a_stream_that_ends_while_a_step_runs_has_its_text_at_once(lm: LM, how: str) -> None:
    chat = lm.session(max_tokens=60, ignore_eos=True, seed=1)
    stream = chat.stream_response("hello")
    pieces = [next(stream).text for _ in range(3)]

    def end() -> None:
        if how == "cancel":
            stream.cancel()
            assert stream.finished and stream.result().finish_reason == "cancelled"
        elif how == "close":
            stream.close()
        else:
            chat.close()

    ended: list[threading.Thread] = []

    def once() -> None:
        if not ended:
            ended.append(start(end))
            ended[0].join(60)
            # Before the step's end, and with a text to go on from.
            assert not ended[0].is_alive()
            assert [m.role for m in chat.transcript] == ["user", "assistant"]

    engine: Any = lm.engine
    engine.before_step = once
    other = lm.generate([9], FREE)
    engine.before_step = lambda: None
    assert other.tokens == lm.generate([9], FREE).tokens
    assert chat.transcript[1].content.startswith("".join(pieces))
    if how != "leave":
        answer = chat.respond("and then?")
        assert [m.content for m in chat.transcript][2:] == ["and then?", answer.text]
        chat.close()
    assert len(lm.engine.live) == len(lm._scheduler._prefixes)  # type: ignore[attr-defined]


def test_an_async_stream_that_was_left_is_not_still_answering(lm: LM) -> None:
    engine: Any = lm.engine
    engine.before_step = lambda: time.sleep(0.015)

    async def talk() -> None:
        chat = lm.session(max_tokens=60, ignore_eos=True, seed=1)
        for _ in range(4):
            turns, text = len(chat.transcript), ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.04), chat.stream_response("hello") as stream:
                    async for chunk in stream:
                        text += chunk.text
            # At once, though the step may still run. What never began leaves no turn.
            assert len(chat.transcript) == turns + 2 * (text != "" or len(chat.transcript) > turns)
            assert not text or chat.transcript[-1].content.startswith(text)
        chat.close()

    asyncio.run(talk())


def test_two_tasks_may_read_one_stream(lm: LM) -> None:
    async def read() -> list[str]:
        stream, found = lm.stream([5], FREE, max_tokens=40), []

        async def some() -> None:
            async for chunk in stream:
                found.append(chunk.text)
                await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(some(), some()), 60)
        return found

    assert "".join(asyncio.run(read())) == lm.generate([5], FREE, max_tokens=40).text


class Alarm(Exception):
    """What a signal's handler raises."""


@pytest.mark.parametrize("kind", [Alarm, KeyboardInterrupt])
def test_a_handlers_exception_is_only_the_leading_threads(lm: LM, kind: type[BaseException]) -> None:
    expected = [lm.generate([i], FREE, max_tokens=60).tokens for i in (5, 6)]
    engine: Any = lm.engine
    steps = [0]

    def alarm() -> None:
        steps[0] += 1
        if steps[0] == 3:
            raise kind("now")

    other = lm.stream([6], FREE, max_tokens=60)
    engine.before_step = alarm
    with pytest.raises(kind, match="now"):
        lm.generate([5], FREE, max_tokens=60)
    assert other.result().tokens == expected[1]
    assert lm.generate([5], FREE, max_tokens=60).tokens == expected[0]
    assert len(lm.engine.live) == len(lm._scheduler._prefixes)  # type: ignore[attr-defined]


def test_a_tokenizer_may_be_wanted_while_it_is_read() -> None:
    def read() -> Tokenizer:
        # As a signal's handler, or a forked child, may.
        calls.append(len(calls))
        return lm.tokenizer if len(calls) == 1 else TOKENIZER

    calls: list[int] = []
    engine: Any = FakeEngine(TOKENIZER.size)
    with LM(engine, read, FakeSampler) as lm:  # type: ignore[arg-type]
        assert lm.tokenizer is lm.tokenizer is TOKENIZER and len(calls) == 2


def test_a_lost_job_is_an_error_and_no_endless_wait(lm: LM) -> None:
    stream = lm.stream([5], FREE)
    lm._scheduler._waiting.clear()
    with pytest.raises(InternalError, match="nothing to do"):
        stream.result()
    assert lm.generate([5], FREE).finish_reason == "length"


def test_an_event_loop_that_is_gone_harms_no_text(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.new_event_loop()
    stream, other = lm.stream([5], FREE), lm.stream([6], FREE)
    stream._job.listeners.append(lambda: _wake(loop, loop.create_future()))
    loop.close()
    monkeypatch.setattr(loop, "is_closed", lambda: False)  # it ended after it was asked
    assert other.result().finish_reason == stream.result().finish_reason == "length"
    assert not stream._job.listeners
