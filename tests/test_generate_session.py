"""Conversations: what is reused, and that reuse changes nothing."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest

from fake_engine import FakeEngine, FakeSampler
from pocketlm.errors import ContextLengthError, ParameterError, TemplateError
from pocketlm.generate.session import Session
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer
from tokenizer_files import CHAT, byte_level

CONFIG = {"bos_token": "<|bos|>", "eos_token": "<|end|>"}


def make(template: str | None = CHAT, **options: Any) -> LM:
    tokenizer = Tokenizer(byte_level(), config=CONFIG, template=template)
    return LM(FakeEngine(tokenizer.size, **options), tokenizer, FakeSampler)  # type: ignore[arg-type]


def talk(lm: LM, turns: int) -> list[tuple[Any, ...]]:
    with lm.session("Be brief.", max_tokens=10, seed=1) as chat:
        answers = [chat.respond(f"once upon a time, turn {i}") for i in range(turns)]
        assert [m.role for m in chat.transcript] == ["system", *["user", "assistant"] * turns]
        assert [m.content for m in chat.transcript[2::2]] == [a.text for a in answers]
    return [(a.text, a.usage.prompt_tokens, a.usage.reused_tokens) for a in answers]


def test_reuse_equals_fresh() -> None:
    with make() as lm:
        found = talk(lm, 4)
    with make() as lm:
        lm._scheduler._prefixes.take = lambda *_: None  # type: ignore[method-assign]
        fresh = talk(lm, 4)
    assert [(text, size) for text, size, _ in found] == [(text, size) for text, size, _ in fresh]
    assert [reused for *_, reused in fresh] == [0] * 4
    for (_, before, _), (_, _, reused) in itertools.pairwise(found):
        assert reused >= before - 2  # all of the earlier prompt but what its last token's neighbour changed


def test_reuse_survives_others_in_between_and_close_frees() -> None:
    with make(cache_tokens=2048) as lm:
        chat = lm.session("Be brief.", max_tokens=10, seed=1)
        chat.respond("once upon a time")
        for i in range(5):
            lm.generate([i + 10] * 30, max_tokens=5, ignore_eos=True)
        assert chat.respond("and then").usage.reused_tokens > 10
        kept = len(lm._scheduler._prefixes)
        chat.close()
        assert len(lm._scheduler._prefixes) == kept - 1
        with pytest.raises(ParameterError, match="closed"):
            chat.respond("more")


def test_memory_pressure_costs_reuse_but_not_the_answer() -> None:
    with make(cache_tokens=256) as lm:
        chat = lm.session(max_tokens=10, seed=1)
        chat.respond("once upon a time")
        lm.generate([9] * 200, max_tokens=50, ignore_eos=True)
        squeezed = chat.respond("and then")
        assert squeezed.usage.reused_tokens == 0
    with make() as lm:
        chat = lm.session(max_tokens=10, seed=1)
        chat.respond("once upon a time")
        assert chat.respond("and then").text == squeezed.text


def test_fork_goes_its_own_way() -> None:
    with make() as lm:
        chat = lm.session(max_tokens=10, seed=1)
        chat.respond("once upon a time there was a little girl")
        other = chat.fork()
        branch = other.respond("the cat")
        assert branch.usage.reused_tokens > 0
        assert len(chat.transcript) == 2 and len(other.transcript) == 4
        assert chat.respond("the cat").text == branch.text


def test_cancelled_answers_stay_and_unborn_ones_do_not() -> None:
    with make() as lm:
        chat = lm.session(max_tokens=100, seed=1, ignore_eos=True)
        with chat.stream_response("once") as stream:
            first = next(stream)
            stream.cancel()
            text = first.text + "".join(map(str, stream))
        assert chat.transcript[-1].content == text != ""
        before = chat.transcript
        with chat.stream_response("the cat") as stream:
            pass
        assert chat.transcript == before and stream.finished
        chat.reset()
        assert chat.transcript == ()


def test_misuse_is_named_and_leaves_the_transcript() -> None:
    with make() as lm:
        chat = lm.session("Be brief.", max_tokens=100)
        stream = chat.stream_response("once")
        with pytest.raises(ParameterError, match="still answering"):
            chat.respond("twice")
        stream.close()
        for prompt in ("", None):
            with pytest.raises(ParameterError, match="prompt"):
                chat.respond(prompt)  # type: ignore[arg-type]
        with pytest.raises(ContextLengthError):
            chat.respond("the cat " * 300)
        with pytest.raises(ParameterError, match="tempo"):
            chat.respond("once", tempo=1)
        assert [m.role for m in chat.transcript] == ["system"]
    with (
        make("{{ raise_exception('no system turn') }}") as lm,
        pytest.raises(TemplateError, match="no system turn"),
    ):
        lm.session().respond("once")


def test_without_a_template_the_text_goes_on() -> None:
    with make(None) as lm:
        chat = lm.session("A tale.", max_tokens=6, seed=1, ignore_eos=True)
        answer = chat.respond("once upon a time")
        assert (
            answer.tokens
            == lm.generate("A tale.\nonce upon a time", max_tokens=6, seed=1, ignore_eos=True).tokens
        )


def test_the_description_is_set_evenly() -> None:
    assert not [line for line in (inspect.getdoc(Session) or " ").splitlines() if line.startswith(" ")]


def test_a_session_says_what_it_is() -> None:
    with make() as lm:
        lm.name = "stories"
        chat = lm.session("Be brief.", max_tokens=5, seed=1, ignore_eos=True)
        assert repr(chat) == "<pocketlm.Session with 'stories', 1 turn>"
        usage = chat.respond("once").usage
        told = f"<pocketlm.Session with 'stories', 3 turns, {usage.total_tokens} tokens"
        assert repr(chat) == repr(chat.fork()) == f"{told}>"
        chat.close()
        assert repr(chat) == f"{told}, closed>"
        chat.reset()
        assert repr(chat) == "<pocketlm.Session with 'stories', 1 turn, closed>"
    assert repr(Session.__new__(Session)) == "<pocketlm.Session>"
