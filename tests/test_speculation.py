"""Guessing tokens changes the speed and nothing else: texts with and without, on real engines."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from checkpoints import write_checkpoint
from fake_engine import FixedPace
from independent.cases import llama
from pocketlm.errors import ParameterError
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.result import Completion
from tokenizer_files import byte_level, save

STORY = "once upon a time the cat sat on the mat. " * 3


def checkpoint(directory: Path, seed: int = 0, **config: Any) -> Path:
    tokenizer = byte_level()
    case = llama(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_id=1, **config)
    write_checkpoint(directory, case)
    return save(directory, tokenizer)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def lm(directory: Path) -> Iterator[pocketlm.LM]:
    with pocketlm.load(directory) as model:
        yield model


@pytest.fixture(scope="module")
def helped(directory: Path) -> Iterator[pocketlm.LM]:
    # Its own draft model: all guesses are right, as far as the sampler sees the same history.
    with pocketlm.load(directory, draft=directory) as model:
        yield model


@pytest.fixture(scope="module")
def small(directory: Path) -> Iterator[Callable[[int, bool], pocketlm.LM]]:
    """Models with caches of so many tokens, with a draft model (which has a cache as small) or without."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def make(cache_tokens: int, drafted: bool) -> pocketlm.LM:
            draft = directory if drafted else None
            model = pocketlm.load(directory, context=cache_tokens, cache_tokens=cache_tokens, draft=draft)
            return stack.enter_context(model)

        yield make


def plain(completion: Completion) -> tuple[Any, ...]:
    return (
        completion.text,
        completion.tokens,
        completion.finish_reason,
        completion.stop_reason,
        completion.logprobs,
    )


PARAMS = st.fixed_dictionaries(
    {
        "max_tokens": st.integers(1, 60),
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "seed": st.integers(0, 1000),
        "top_k": st.sampled_from([0, 3]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.2]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5]),
        "logprobs": st.sampled_from([None, 0, 3]),
        "ignore_eos": st.booleans(),
        "stop": st.sampled_from([(), (), ("e",), ("zq", "a")]),
    }
)


@settings(max_examples=25, deadline=None)
@given(
    params=PARAMS,
    prompts=st.lists(
        st.sampled_from([STORY, "a", "the cat " * 9, "naïve café 日本語 " * 4]), min_size=1, max_size=4
    ),
    guesses=st.integers(1, 16),
    keep=st.booleans(),
)
def test_texts_are_the_same_with_and_without(
    lm: pocketlm.LM, helped: pocketlm.LM, params: dict[str, Any], prompts: list[str], guesses: int, keep: bool
) -> None:
    singles = [lm.generate(prompt, num_speculative_tokens=0, **params) for prompt in prompts]
    assert all(c.usage.proposed_tokens == c.usage.accepted_tokens == 0 for c in singles)
    for model in (lm, helped):
        if not keep:
            model._scheduler._prefixes.clear()
        together = model.generate(prompts, num_speculative_tokens=guesses, **params)
        assert [plain(c) for c in together] == [plain(c) for c in singles]
        assert all(0 <= c.usage.accepted_tokens <= c.usage.proposed_tokens for c in together)
        # What is kept for later texts is right too.
        again = model.generate(prompts[0] + singles[0].text, num_speculative_tokens=guesses, **params)
        model._scheduler._prefixes.clear()
        assert plain(again) == plain(
            model.generate(prompts[0] + singles[0].text, num_speculative_tokens=0, **params)
        )


def test_guesses_are_made_and_right(lm: pocketlm.LM, helped: pocketlm.LM) -> None:
    # A small random model without sampling soon runs in circles. Whether guesses pay is measured, and a busy
    # machine may delay that.
    for _ in range(20):
        found = lm.generate(STORY, max_tokens=300, temperature=0, ignore_eos=True)
        if found.usage.accepted_tokens:
            break
    assert 0 < found.usage.accepted_tokens <= found.usage.proposed_tokens
    # A twin guesses right at once, where looking up hardly ever does.
    for seed in range(20):
        found = helped.generate(STORY, max_tokens=60, temperature=1, seed=seed, ignore_eos=True)
        if found.usage.accepted_tokens:
            break
    assert found.usage.accepted_tokens > 0
    assert found.to_dict()["usage"]["accepted_tokens"] == found.usage.accepted_tokens


def test_streams_sessions_and_cancelling(lm: pocketlm.LM) -> None:
    options: dict[str, Any] = {"max_tokens": 120, "temperature": 0, "ignore_eos": True}
    whole = lm.generate(STORY, num_speculative_tokens=0, **options)
    with lm.stream(STORY, **options) as stream:
        chunks = list(stream)
    assert "".join(map(str, chunks)) == whole.text
    assert sum((chunk.tokens for chunk in chunks), ()) == whole.tokens
    stream = lm.stream(STORY, **options | {"max_tokens": 300})
    first = next(stream)
    stream.cancel()
    rest = "".join(map(str, stream))
    assert stream.result().finish_reason == "cancelled" and first.text + rest == stream.text
    answers = []
    for guesses in (0, 8):
        with lm.session(num_speculative_tokens=guesses, **options) as chat:
            answers.append([chat.respond(text).text for text in ("the cat sat", "the cat sat")])
    assert answers[0] == answers[1]


def test_a_stop_string_inside_of_what_was_guessed_ends_the_text_there(lm: pocketlm.LM) -> None:
    options: dict[str, Any] = {"max_tokens": 200, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    text = lm.generate(STORY, **options).text
    for start in range(100, len(text) - 3, 17):
        stop = text[start : start + 3]
        if "\ufffd" not in stop:
            found, expected = (
                lm.generate(STORY, stop=stop, num_speculative_tokens=n, **options) for n in (8, 0)
            )
            assert plain(found) == plain(expected) and found.text == text[: text.index(stop)]


def test_threads_with_different_wishes(lm: pocketlm.LM, helped: pocketlm.LM) -> None:
    wishes: list[dict[str, Any]] = [
        {"max_tokens": 80, "temperature": t, "seed": 5, "ignore_eos": True} for t in (0, 0.5, 1)
    ]
    expected = [lm.generate(STORY, num_speculative_tokens=0, **wish).tokens for wish in wishes]
    found: dict[tuple[int, int], Any] = {}

    def work(model: pocketlm.LM, which: int, index: int) -> None:
        found[which, index] = model.generate(STORY, **wishes[index]).tokens

    threads = [
        threading.Thread(target=work, args=(model, which, index))
        for which, model in enumerate((lm, helped))
        for index in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(found[which, index] == expected[index] for which in range(2) for index in range(3))


def test_draft_models_must_fit(lm: pocketlm.LM, directory: Path, tmp_path: Path) -> None:
    for draft in (5, object()):
        with pytest.raises(ParameterError, match="draft"):
            pocketlm.load(directory, draft=draft)  # type: ignore[arg-type]
    other = tmp_path / "other"
    tokenizer = byte_level()
    tokenizer.add_tokens(["another"])
    write_checkpoint(other, llama(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_id=1))
    save(other, tokenizer)
    with pytest.raises(ParameterError, match="another tokenizer"):
        pocketlm.load(directory, draft=other)
    # A loaded model can help, and goes on by itself.
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}
    expected = lm.generate(STORY, **options).tokens
    with pocketlm.load(directory, draft=lm) as model:
        assert model.generate(STORY, **options).tokens == expected
    assert lm.generate(STORY, **options).tokens == expected


def test_a_draft_model_with_a_shorter_context_is_done_without(
    lm: pocketlm.LM, directory: Path, tmp_path: Path
) -> None:
    short = checkpoint(tmp_path / "short", max_position_embeddings=96)
    options: dict[str, Any] = {"max_tokens": 80, "temperature": 0, "ignore_eos": True}
    expected = [lm.generate(STORY * n, num_speculative_tokens=0, **options).tokens for n in (1, 2)]
    with pocketlm.load(directory, draft=short) as model:
        assert [model.generate(STORY * n, **options).tokens for n in (1, 2)] == expected
        assert not model._scheduler._drafter._drafts  # type: ignore[union-attr]


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(2, 5),
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    drafted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_without_room_texts_are_the_same(
    lm: pocketlm.LM,
    small: Callable[[int, bool], pocketlm.LM],
    blocks: int,
    sizes: list[tuple[int, int]],
    drafted: bool,
    seed: int,
) -> None:
    """Whatever fits without guesses fits with them, to the last token of the cache, one text or several."""
    ids = lm.tokenizer.encode(STORY * 3)
    model = small(64 * blocks, drafted)
    options: dict[str, Any] = {"temperature": 0.3, "seed": seed, "ignore_eos": True}
    prompts, params = [], []
    for index, (prompt, tokens) in enumerate(sizes):
        # The first text fills the cache, up to its last place.
        most = model.context if index == 0 else min(model.context, prompt + tokens)
        prompts.append(ids[: min(prompt, most - 1)])
        params.append(SamplingParams(max_tokens=most - len(prompts[-1]), **options))
    found = model.generate(prompts, params)
    for prompt, wish, completion in zip(prompts, params, found, strict=True):
        expected = lm.generate(prompt, wish, num_speculative_tokens=0)
        assert plain(completion) == plain(expected)


def test_prewarming_changes_nothing(lm: pocketlm.LM, directory: Path) -> None:
    expected = lm.generate("once", max_tokens=9, seed=1).tokens
    with pocketlm.load(directory, prewarm=True) as model:
        assert len(model._scheduler._prefixes) == 0
        assert model.generate("once", max_tokens=9, seed=1).tokens == expected
        assert model.generate("once", max_tokens=9, seed=1).usage.prompt_tokens > 0
    with pytest.raises(ParameterError, match="closed"):
        model.prewarm()


def test_numbers_of_guesses_are_checked(lm: pocketlm.LM) -> None:
    for value in (-1, 17, 1.5, True):
        with pytest.raises(ParameterError, match="num_speculative_tokens"):
            lm.generate("once", num_speculative_tokens=value)


class Recorded:
    """An engine that writes down how many rows each step has."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.rows = engine, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self, items: list[Any], **options: Any) -> Any:
        self.rows.append(sum(len(item[1]) for item in items))
        return self._engine.step(items, **options)


@pytest.mark.parametrize("texts", [1, 3])
def test_a_draft_model_reads_a_long_prompt_in_parts(lm: pocketlm.LM, directory: Path, texts: int) -> None:
    options: dict[str, Any] = {"max_tokens": 100, "temperature": 1, "seed": 4, "ignore_eos": True}
    prompts = [STORY[i:] * 3 for i in range(texts)]
    expected = [lm.generate(prompt, num_speculative_tokens=0, **options).tokens for prompt in prompts]
    with pocketlm.load(directory, draft=directory) as model:
        drafter = model._scheduler._drafter
        assert drafter is not None
        drafter.engine = engine = Recorded(drafter.engine)  # type: ignore[assignment]
        drafter._pace = FixedPace(24)
        propose, calls = drafter.propose, []

        def recorded(*args: Any) -> bool:
            engine.rows.clear()
            found = propose(*args)
            calls.append((sum(engine.rows), found))
            return found

        drafter.propose = recorded  # type: ignore[method-assign]
        found = model.generate(prompts, **options)
        assert [completion.tokens for completion in found] == expected
        assert max(rows for rows, _ in calls) <= 24
        # Guessing begins when the prompt is read, which takes several calls.
        reading = len(lm.tokenizer.encode(prompts[-1])) // 24
        assert reading > 5 and not any(guessed for _, guessed in calls[:reading])


def test_a_request_is_cancelled_while_the_draft_model_reads(directory: Path) -> None:
    with pocketlm.load(directory, draft=directory) as model:
        drafter = model._scheduler._drafter
        assert drafter is not None
        drafter.engine = engine = Recorded(drafter.engine)  # type: ignore[assignment]
        drafter._pace = FixedPace(8)
        stream = model.stream(STORY * 3, max_tokens=100, ignore_eos=True)
        while not engine.rows:
            next(stream)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled" and sum(engine.rows) <= 100
        assert not drafter._drafts
