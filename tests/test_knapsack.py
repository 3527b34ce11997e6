"""The multiple-choice knapsack against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.palettize import knapsack
from pocketlm.palettize.knapsack import solve

Instance = tuple[list[list[float]], list[list[list[float]]], list[float]]


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """Up to five items of up to four choices, up to three limits; whole numbers, so that sums are exact."""
    limits = draw(st.integers(0, 3))
    number, load = st.integers(0, 40), st.integers(0, 12)
    values, weights = [], []
    for _ in range(draw(st.integers(1, 5))):
        choices = draw(st.integers(1, 4))
        values.append([float(draw(number)) / 8 for _ in range(choices)])
        weights.append([[float(draw(load)) for _ in range(limits)] for _ in range(choices)])
    return values, weights, [float(draw(st.integers(0, 45))) for _ in range(limits)]


def best(instance: Instance) -> float | None:
    values, weights, limits = instance
    found = None
    for picks in itertools.product(*(range(len(row)) for row in values)):
        loads = [sum(weights[i][k][j] for i, k in enumerate(picks)) for j in range(len(limits))]
        if all(load <= limit for load, limit in zip(loads, limits, strict=True)):
            value = sum(values[i][k] for i, k in enumerate(picks))
            found = value if found is None else min(found, value)
    return found


@given(instances())
def test_the_best_of_all_is_found(instance: Instance) -> None:
    values, weights, limits = instance
    expected, found = best(instance), solve(values, weights, limits)
    if expected is None:
        assert found is None
        return
    assert found is not None and found.exact
    assert found.value == expected
    assert found.bound <= expected + 1e-9
    assert found.value == sum(values[i][k] for i, k in enumerate(found.picks))
    for j, limit in enumerate(limits):
        assert sum(weights[i][k][j] for i, k in enumerate(found.picks)) <= limit


@given(instances(), st.integers(0, 10))
def test_more_room_never_costs(instance: Instance, room: int) -> None:
    values, weights, limits = instance
    tight, loose = solve(values, weights, limits), solve(values, weights, [limit + room for limit in limits])
    if tight is not None:
        assert loose is not None and loose.value <= tight.value


def large(items: int, limits: int) -> Instance:
    rng = np.random.default_rng(items)
    values, weights = [], []
    for _ in range(items):
        size, worth = float(rng.choice([1, 4, 11])), float(np.exp(1.2 * rng.standard_normal()))
        bits = (2, 3, 4, 8)
        values.append([worth * size * 4.0**-b * float(rng.uniform(0.7, 1.3)) for b in bits])
        weights.append([[size * b * 1e6, size * b / 9 * 1e6 + 3000, size][:limits] for b in bits])
    return values, weights, [3.3 / 4 * sum(w[2][j] for w in weights) for j in range(min(limits, 2))]


@pytest.mark.parametrize("limits", [1, 2])
def test_models_of_real_size(limits: int) -> None:
    found = solve(*large(200, limits))
    assert found is not None and found.exact
    # Hundreds of items leave hardly any gap to the bound: 1e-3 is the share of one choice of one item.
    assert found.value <= found.bound * (1 + 2e-3)


def test_long_lists_are_cut_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solve(*large(30, 1))
    monkeypatch.setattr(knapsack, "_MOST_STATES", 2)
    cut = solve(*large(30, 1))
    assert whole is not None and cut is not None and whole.exact and not cut.exact
    assert whole.value <= cut.value <= whole.value * 1.05


def test_nothing_to_choose() -> None:
    assert solve([], [], []) is not None
    assert solve([], [], [0.0]) is not None
    assert solve([], [], [-1.0]) is None
    assert solve([[1.0, 1.0]], [[[], []]], []) == knapsack.Solution((0,), 1.0, 1.0, True)
