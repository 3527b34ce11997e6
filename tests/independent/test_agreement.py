"""Every interpreter against mlx-lm: its stored logits always, fresh ones where it is installed.

Distances are relative to the largest logit of the case.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from independent import cases, peer
from pocketlm.graph import Attention, Gated, Linear, Norm, Op, Rope
from pocketlm.interpret.reference import Reference

FIXTURES = np.load(Path(__file__).with_name("fixtures.npz"))
REFERENCE = 2e-5  # the contract is 1e-4; both run in float32 and are found within 3e-6 of each other
everywhere = pytest.mark.parametrize("precision", cases.PRECISIONS)
each_case = pytest.mark.parametrize("case", cases.CASES)


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, as a share of the largest expected logit."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def stored(case: str, precision: cases.Precision) -> NDArray[np.float32]:
    """mlx-lm's logits of the last rows of the case's prompt."""
    return FIXTURES[f"{case}/{precision}"]


@each_case
@everywhere
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference(case: str, precision: cases.Precision, dtype: type) -> None:
    expected = stored(case, precision)
    found = Reference(cases.graph(case), cases.weights(case, precision), dtype).logits(cases.ids(case))
    assert found.dtype == dtype
    assert distance(found[-len(expected) :], expected) < REFERENCE


@each_case
def test_jax(case: str) -> None:
    jax = pytest.importorskip("jax")
    interpreter = importlib.import_module("pocketlm.interpret.jax")
    weights, ids = cases.weights(case), cases.ids(case)
    with jax.default_matmul_precision("highest"):
        params = {name: jax.numpy.asarray(value) for name, value in weights.items()}
        batch = np.stack([ids, ids[::-1]])
        logits = jax.jit(functools.partial(interpreter.logits, cases.graph(case)))
        found = np.asarray(logits(params, jax.numpy.asarray(batch, jax.numpy.int32)))
    assert found.dtype == np.float32
    assert distance(found[0, -len(stored(case, "full")) :], stored(case, "full")) < 1e-4
    oracle = Reference(cases.graph(case), weights)
    for row, sequence in zip(found, batch, strict=True):
        assert distance(row, oracle.logits(sequence)) < 1e-4


@pytest.mark.skipif(not peer.available(), reason="mlx-lm is not installed (extra: independent)")
@each_case
@everywhere
def test_stored_logits_are_those_of_mlx_lm(case: str, precision: cases.Precision) -> None:
    fresh = peer.logits(cases.CASES[case], cases.weights(case, precision), cases.ids(case))
    expected = stored(case, precision)
    assert distance(fresh[-len(expected) :], expected) < 1e-5
    found = Reference(cases.graph(case), cases.weights(case, precision)).logits(cases.ids(case))
    assert distance(found, fresh) < 1e-4  # all rows, where the stored ones are the last


def mutants() -> dict[str, tuple[str, Callable[[Op], Op]]]:
    """Plausible mistakes, each with a case that must notice it."""

    def change(kind: type[Op], **fields: Any) -> Callable[[Op], Op]:
        def apply(op: Op) -> Op:
            if not isinstance(op, kind):
                return op
            new = {key: value(op) if callable(value) else value for key, value in fields.items()}
            return dataclasses.replace(op, **new)

        return apply

    def named(suffix: str, apply: Callable[[Op], Op]) -> Callable[[Op], Op]:
        return lambda op: apply(op) if op.name.endswith(suffix) else op

    def rotary(**fields: Any) -> Callable[[Op], Op]:
        return change(Rope, rotary=lambda op: dataclasses.replace(op.rotary, **fields))

    return {
        "epsilon of Llama": ("llama-faint", change(Norm, eps=1e-5)),
        "epsilon of OpenELM": ("openelm-faint", change(Norm, eps=2e-6)),
        "epsilon of the heads' norms": ("openelm-faint", named("q.norm", change(Norm, eps=1e-5))),
        "interleaved pairs": ("llama2", rotary(interleaved=True)),
        "scaled rotation": ("llama2", rotary(scale=1.001)),
        "activation": ("openelm", change(Gated, activation="gelu")),
        "gate and up swapped": ("openelm", change(Gated, gate=lambda op: op.up, up=lambda op: op.gate)),
        "softmax scale": ("llama-head-dim", change(Attention, scale=10**-0.5)),
        "window": ("openelm", change(Attention, window=100)),
        "no biases": ("llama-attention-bias", change(Linear, bias=None)),
        "one bias less": ("llama-biases", named("0.attn.k", change(Linear, bias=None))),
        "missing scaling": ("llama31", rotary(frequencies=tuple(5e5 ** (-2 * i / 32) for i in range(16)))),
    }


@pytest.mark.parametrize("mistake", mutants())
def test_the_cases_notice_mistakes(mistake: str) -> None:
    case, apply = mutants()[mistake]
    graph = cases.graph(case)
    wrong = dataclasses.replace(graph, ops=tuple(map(apply, graph.ops)))
    assert wrong != graph
    found = Reference(wrong, cases.weights(case)).logits(cases.ids(case))
    assert distance(found[-len(stored(case, "full")) :], stored(case, "full")) > 1e-4


def test_every_stored_case_is_still_a_case() -> None:
    expected = {f"{case}/{precision}" for case in cases.CASES for precision in cases.PRECISIONS}
    assert set(FIXTURES.files) - {"made_with"} == expected
