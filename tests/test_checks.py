"""Whatever a caller gives as a number: it is taken as it is meant, or refused by the parameter's name."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from checkpoints import write_checkpoint
from independent.cases import llama
from pocketlm.errors import ContextLengthError, MemoryLimitError, ParameterError
from pocketlm.generate.params import SamplingParams
from pocketlm.loading import open_model
from pocketlm.palettize import palettize, plan
from tokenizer_files import byte_level, save

BEYOND = st.one_of(
    st.integers(min_value=1 << 31), st.integers(max_value=-1), st.sampled_from([1 << 70, -(1 << 70)])
)
SMALL = st.integers(0, 3)
ODD: st.SearchStrategy[Any] = st.one_of(
    BEYOND,
    SMALL,
    SMALL.map(np.int64),
    st.integers(0, 255).map(np.uint8),
    st.just(np.int64(-1)),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.booleans(),
    st.booleans().map(np.bool_),
    st.text(max_size=3),
    st.sampled_from([b"1", 1j, object(), [], {}, np.zeros(2), np.asarray(3)]),
)
LISTS = st.one_of(
    st.lists(ODD, max_size=3), st.dictionaries(st.one_of(BEYOND, SMALL, st.text()), ODD, max_size=2)
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("models") / "tiny", byte_level()
    write_checkpoint(path, llama(vocab_size=tokenizer.get_vocab_size() + 3, eos_token_id=1))
    (path / "text.txt").write_text("once upon a time the cat sat on the mat")
    return save(path, tokenizer)


@pytest.fixture(scope="module")
def lm(directory: Path) -> Iterator[pocketlm.LM]:
    with pocketlm.load(directory) as model:
        yield model


def taken(name: str, call: Callable[[], Any], *also: type[Exception]) -> bool:
    """Whether a call takes an argument. If not, it says so by the argument's name."""
    try:
        call()
    except also:
        return False
    except ParameterError as problem:
        assert str(problem).startswith(f"{name}: ")
        return False
    return True


@settings(max_examples=400)
@given(
    name=st.sampled_from([f.name for f in dataclasses.fields(SamplingParams)]), value=st.one_of(ODD, LISTS)
)
def test_sampling_parameters(lm: pocketlm.LM, name: str, value: Any) -> None:
    changes = {"max_tokens": 2, name: value}
    if taken(name, lambda: lm.generate([5, 6], **changes), ContextLengthError):
        for call in (lm.stream, lm.session().stream_response):
            with call("a", SamplingParams(**changes | {"n": 1})) as stream:
                next(stream)


@settings(max_examples=150)
@given(
    name=st.sampled_from(
        ["threads", "context", "max_memory", "cache_tokens", "precise", "check_values", "prewarm", "kv_dtype",
         "revision", "adapter"]
    ),
    value=ODD,
)  # fmt: skip
def test_loading(directory: Path, name: str, value: Any) -> None:
    def call() -> None:
        with pocketlm.load(directory, **{name: value}) as model:
            assert model.context >= 1

    taken(name, call, MemoryLimitError)


@pytest.mark.parametrize("name", ["threads", "context", "cache_tokens", "max_memory"])
@pytest.mark.parametrize("value", [1 << 70, -1, 0, math.nan, True, "4", np.float64(2)])
def test_numbers_of_the_engine(directory: Path, name: str, value: Any) -> None:
    assert not taken(name, lambda: pocketlm.load(directory, **{name: value}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "threads: must be 1 or more, not 0"),
        ({"context": -1}, "context: must be 1 or more, not -1"),
        ({"max_memory": 1000}, r"MB, 1\.0 kB are available"),
    ],
)
def test_limits_are_told_where_they_mean_something(
    directory: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises((ParameterError, MemoryLimitError), match=message):
        pocketlm.load(directory, **given)


def test_numpy_integers_are_numbers(directory: Path) -> None:
    sizes = {"context": np.int64(64), "cache_tokens": np.uint16(256), "threads": np.int8(1)}
    with pocketlm.load(directory, **sizes) as model:  # type: ignore[arg-type]
        assert (model.context, model.engine.cache_tokens, model.engine.threads) == (64, 256, 1)
        assert (
            len(model.generate([5], max_tokens=np.int32(3), seed=np.uint64(5), ignore_eos=True).tokens) == 3
        )


@settings(max_examples=150)
@given(value=ODD)
def test_the_other_ways_in(lm: pocketlm.LM, directory: Path, value: Any) -> None:
    text = directory / "text.txt"
    taken("first", lambda: list(lm.iter_logits([5, 6, 7], value)))
    taken("first", lambda: lm.evaluate([[5, 6, 7]], [lambda *_: None], [value]))
    for name in ("context", "stride", "limit"):
        taken(name, lambda name=name: lm.perplexity(text, **{name: value}))  # type: ignore[misc]
    for call in (lm.generate, lm.stream, lm.session().respond):
        assert not taken("params", lambda call=call: call("a", [value], max_tokens=1))  # type: ignore[misc]
        assert not taken("params", lambda call=call: call("a", value, max_tokens=1))  # type: ignore[misc]
    assert not taken("params", lambda: lm.session(params=value))
    for ids in ([5, value], itertools.chain([5], [value])):
        for call in (lm.logits, lm.score, lambda ids: lm.generate(ids, max_tokens=1)):
            taken("prompt", lambda call=call, ids=ids: call(ids))  # type: ignore[misc]
    taken("continuation", lambda: lm.score("a", [value]))
    taken("ids", lambda: lm.tokenizer.decode([5, value]))


ENDLESS: list[Callable[[], Any]] = [
    lambda: itertools.repeat(5),
    lambda: itertools.count(),
    lambda: range(10**12),
    lambda: range(10**30),
    lambda: np.broadcast_to(np.int64(5), 10**12),
]


@pytest.mark.parametrize("values", ENDLESS)
def test_what_never_ends_is_too_long(lm: pocketlm.LM, values: Callable[[], Any]) -> None:
    for call in (
        lambda: lm.generate(values()),
        lambda: lm.stream(values()),
        lambda: lm.logits(values()),
        lambda: lm.score(values()),
        lambda: lm.score("a", values()),
        lambda: list(lm.iter_logits(values())),
        lambda: lm.evaluate([values()], [lambda *_: None]),
    ):
        with pytest.raises(ContextLengthError, match="context holds"):
            call()
    for name in ("stop", "stop_token_ids"):
        with pytest.raises(ParameterError, match=f"{name}: .*at most"):
            lm.generate("a", **{name: values()})
    with pytest.raises(ParameterError, match="logit_bias"):
        lm.generate("a", logit_bias=values())


def test_sequences_and_receivers_must_match(lm: pocketlm.LM) -> None:
    for sequences, receivers, first in (
        ([[5]], [], None),
        ([], [print], None),
        ([[5]], [print], [0, 0]),
        ([[5]], [print], []),
    ):
        with pytest.raises(ParameterError, match=r"for [01] sequences"):
            lm.evaluate(sequences, receivers, first)  # type: ignore[arg-type]


class Given:
    """A path of any kind."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __fspath__(self) -> Any:
        return self.value


NO_PATHS = (10**5000, 5, None, [], "", "a\0b", "/x/\ud800", Given("/x/\ud800"), b"x", Given(b"x"), Given(5))


@pytest.mark.parametrize("value", NO_PATHS, ids=range(len(NO_PATHS)))
def test_what_is_no_path_is_named(lm: pocketlm.LM, directory: Path, tmp_path: Path, value: Any) -> None:
    target = tmp_path / "dst"
    text = ["once upon a time the cat sat on the mat " * 100]
    calls: dict[str, Callable[[], Any]] = {
        "path": lambda: lm.perplexity(value),
        "path_or_id": lambda: open_model(value),
        "dst": lambda: palettize(directory, value, progress=False),
    }
    if value is not None:
        calls |= {
            "restore": lambda: lm.session(restore=value),
            "recipe_out": lambda: plan(directory, recipe_out=value, progress=False),
            "calibration_out": lambda: plan(
                directory, calibration=text, calibration_out=value, progress=False
            ),
        }
        if not isinstance(value, list | bytes):
            calls |= {
                "calibration": lambda: plan(directory, calibration=value, progress=False),
                "validation": lambda: plan(directory, validation=value, progress=False),
                "recipe": lambda: palettize(directory, target, recipe=value, progress=False),
            }
    for name, call in calls.items():
        assert not taken(name, call)
    with lm.session() as chat:
        assert not taken("path", lambda: chat.save(value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["overwrite", "compensation", "guided", "progress"])
@pytest.mark.parametrize("value", ["no", "x", 5, 0, None, np.bool_(True), [10**5000]])
def test_switches_of_palettize(directory: Path, tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "mine").write_text("x")
    options = {"progress": False, name: value}
    assert not taken(name, lambda: palettize(directory, tmp_path / "dst", **options))
    assert [file.name for file in (tmp_path / "dst").iterdir()] == ["mine"]
    if name != "overwrite":
        assert not taken(name, lambda: plan(directory, **options))


def test_progress_is_told_to_functions_only(lm: pocketlm.LM, directory: Path) -> None:
    text: Any = directory / "text.txt"
    for odd in ("x", True, 5):
        assert not taken("progress", lambda odd=odd: lm.perplexity(text, progress=odd))  # type: ignore[misc]
        assert not taken("progress", lambda odd=odd: pocketlm.compare(lm, lm, text, progress=odd))  # type: ignore[misc]


@pytest.mark.parametrize("context", [1, 2, 3])
def test_the_smallest_contexts_are_prewarmed(directory: Path, context: int) -> None:
    with pocketlm.load(directory, context=context, prewarm=True) as model:
        assert model.context == context


def test_numbers_too_large_to_print_of_palettize_and_profile(directory: Path, tmp_path: Path) -> None:
    huge: Any = 10**5000
    for name in (
        *("bits", "bits_all", "size", "tokens_per_second", "max_kl", "kinds", "embedding_bits", "threads"),
        *("recover", "recover_dtype", "recover_train"),
    ):
        for value in (huge, -huge, [huge]):
            options = {name: value, "progress": False}
            assert not taken(name, lambda o=options: palettize(directory, tmp_path / "x", **o))  # type: ignore[misc]
    assert not taken("size", lambda: plan(directory, size=10**400, progress=False))
    for bad in ({"ffn.*": huge}, {huge: "p4"}, {"ffn.*": {huge: 1}}, {"pocketlm_recipe": huge}):
        assert not taken("recipe", lambda bad=bad: plan(directory, recipe=bad, progress=False))  # type: ignore[misc]
    with pytest.raises(ParameterError, match=r"^recipe: has the entry"):
        plan(directory, recipe={"pocketlm_recipe": 1, huge: 1}, progress=False)  # type: ignore[dict-item]
    for name in ("prompt", "context", "repeats", "watts", "cache", "precise"):
        assert not taken(name, lambda name=name: pocketlm.profile(directory, **{name: huge}))  # type: ignore[misc]
    assert not taken("calibration", lambda: plan(directory, calibration=[huge], progress=False))
    damage: Any = {"lm_head.weight": {"p4": huge}}
    assert not taken("sensitivities", lambda: pocketlm.profile(directory, sensitivities=damage, repeats=1))


def test_numbers_too_large_to_print(lm: pocketlm.LM, directory: Path) -> None:
    huge = 10**5000
    for field in dataclasses.fields(SamplingParams):
        assert not taken(field.name, lambda name=field.name: lm.generate("a", **{name: huge}))  # type: ignore[misc]
    for name in (
        "threads",
        "context",
        "max_memory",
        "cache_tokens",
        "kv_dtype",
        "revision",
        "adapter",
        "draft",
    ):
        assert not taken(name, lambda name=name: pocketlm.load(directory, **{name: huge}))  # type: ignore[misc]
    assert not taken("prompt", lambda: lm.generate([huge]))
    assert not taken("logit_bias", lambda: lm.generate("a", logit_bias={"9" * 5000: 1.0}))
    assert not taken("context", lambda: lm.perplexity(directory / "text.txt", context=huge))
