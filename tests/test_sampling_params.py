"""Sampling parameters: every wrong value names its parameter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pocketlm.errors import ConfigError, ParameterError
from pocketlm.generate.defaults import GenerationDefaults
from pocketlm.generate.params import NEUTRAL, SamplingParams, checked

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_tokens", [0, -1, 1.5, "5", True, 1 << 40, NAN]),
        ("temperature", [NAN, INF, -INF, -0.1, "hot", True, 10**400, 1j]),
        ("top_k", [-2, 1.0, NAN, False]),
        ("top_p", [0, -0.1, 1.01, NAN, None.__class__]),
        ("min_p", [-0.1, 1.01, NAN, []]),
        ("repetition_penalty", [0, -1, NAN, INF]),
        ("presence_penalty", [-2.1, 2.1, NAN]),
        ("frequency_penalty", [-2.1, 2.1, NAN]),
        (
            "logit_bias",
            [5, {"a": 1}, {1: NAN}, {1: 101}, {-1: 0}, {1: None}, [(1, 2)], dict.fromkeys(range(5000), 0)],
        ),
        ("stop", [5, [5], "", [""], ["a"] * 65, b"a", "a" * 1025, {"a": 1}]),
        ("stop_token_ids", [5, "5", [-1], ["a"], [1.0], [None]]),
        ("seed", ["a", 1.0, NAN, 1 << 64, True]),
        ("logprobs", [-1, 65, 1.0]),
        ("ignore_eos", [1, None, "yes"]),
        ("n", [0, -1, 1.0, "2", True, 129]),
    ],
)
def test_wrong_values_are_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ParameterError, match=name):
            SamplingParams(**{name: value})


def test_right_values_are_taken_as_they_are_meant() -> None:
    params = SamplingParams(
        max_tokens=np.int64(5),
        temperature=0,
        top_k=-1,
        top_p=np.float32(1),
        logit_bias={"7": -3},
        stop="ab",
        seed=-1,
    )
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (5, 0.0, 0, 1.0)
    assert params.logit_bias == {7: -3.0} and params.stop == ("ab",)
    assert hash(params) == hash(params.replace()) and params == params.replace()


def test_names_are_checked_and_max_new_tokens_is_known() -> None:
    assert SamplingParams().replace(max_new_tokens=7).max_tokens == 7
    with pytest.raises(ParameterError, match="max_new_tokens"):
        SamplingParams().replace(max_new_tokens=7, max_tokens=7)
    with pytest.raises(ParameterError, match="temprature"):
        SamplingParams().replace(temprature=1)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("repeat_penalty", "repetition_penalty"),
        ("temprature", "temperature"),
        ("max_length", "max_tokens"),
        ("stops", "stop"),
        ("xyz", None),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, meant: str | None) -> None:
    hint = f"; the nearest is '{meant}'" if meant else ""
    with pytest.raises(ParameterError, match=f"^{name}: unknown sampling parameter{hint}; known: max_tokens"):
        SamplingParams().replace(**{name: 1})


@pytest.mark.parametrize("value", [3, b"a", {"a": 1}])
def test_stop_says_what_it_may_be(value: Any) -> None:
    with pytest.raises(ParameterError) as found:
        SamplingParams(stop=value)
    assert str(found.value) == f"stop: must be a string or a sequence of strings, not {value!r}"


def test_the_items_of_a_dict_are_keywords() -> None:
    with pytest.raises(ParameterError, match=r"^params: expected SamplingParams, not dict; .*: \*\*params$"):
        checked({"temperature": 1})
    with pytest.raises(ParameterError, match=r"^params: expected SamplingParams, not list$"):
        checked([])


def test_what_is_left_open_comes_from_the_defaults() -> None:
    defaults = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=100)
    found = SamplingParams(temperature=0.0, stop="x").over(defaults).over(NEUTRAL)
    assert (found.temperature, found.top_p, found.max_tokens, found.min_p, found.stop) == (
        0.0,
        0.9,
        100,
        0.0,
        ("x",),
    )


def test_generation_config_is_honoured() -> None:
    values = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "do_sample": True,
        "eos_token_id": [2, 5],
        "num_beams": 1,
    }
    found = GenerationDefaults.of(
        {**values, "max_length": 4096, "transformers_version": "5"}, {"eos_token_id": 9}
    )
    assert (found.params.temperature, found.params.top_k, found.eos) == (0.6, 50, (2, 5))
    greedy = GenerationDefaults.of(
        {"do_sample": False, "temperature": 0.6, "max_new_tokens": 9}, {"eos_token_id": 9}
    )
    assert (greedy.params.temperature, greedy.params.max_tokens, greedy.eos) == (0.0, 9, (9,))
    stops = GenerationDefaults.of({"stop_strings": ["x", "y"], "do_sample": None}).params
    assert SamplingParams().over(stops).stop == ("x", "y") and SamplingParams(stop="z").over(stops).stop == (
        "z",
    )
    assert GenerationDefaults.of({"stop_strings": "x"}).params.stop == ("x",)
    with pytest.raises(ConfigError, match="stop"):
        GenerationDefaults.of({"stop_strings": [""]})


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [1]},
        {"temperature": NAN},
        {"top_p": "high"},
        {"eos_token_id": "end"},
        {"eos_token_id": [1.5]},
        {"eos_token_id": -1},
        {"top_k": -5},
        {"typical_p": 0.5},
        {"do_sample": "no"},
        {"num_return_sequences": 2},
        {"max_time": 1.0},
    ],
)
def test_generation_config_that_cannot_be_honoured_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        GenerationDefaults.of(values)
