"""Budgets: what is chosen keeps to them, larger ones never lose more, and what cannot be met says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palettizing import QUIET
from pocketlm.errors import BudgetError, ParameterError
from pocketlm.kinds import BEST, BITS
from pocketlm.palettize import plan
from pocketlm.palettize.allocate import Choice, Item, Rest, allocate, rounded_up
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.recipe import KEEP, Candidate


def item(name: str, size: int, damages: dict[str, float], embedding: bool = False) -> Item:
    tensor = Candidate(name, (16, size), False, embedding, (f"layers.0.{name}",))
    return Item(
        tensor,
        tuple(
            Choice(kind, damages[kind], 2 * size * BITS[kind] + 32, BITS[kind], 1e-6 * size * BITS[kind])
            for kind in sorted(damages, key=lambda kind: BITS[kind])
        ),
    )


@st.composite
def models(draw: st.DrawFn) -> list[Item]:
    worth = st.floats(0.001, 1)
    return [
        item(f"t{at}", draw(st.integers(1, 9)), {kind: draw(worth) * 4.0 ** -BITS[kind] for kind in BITS})
        for at in range(draw(st.integers(1, 5)))
    ]


REST = Rest(bytes=100, file_bytes=500, parameters=2_500, seconds=1e-6)


def total(items: list[Item], recipe: dict[str, str], field: str) -> float:
    return sum(
        float(getattr(choice, field))
        for one in items
        for choice in one.choices
        if choice.kind == recipe[one.tensor.name]
    )


@given(models(), st.floats(2, 8), st.floats(0, 1))
def test_larger_budgets_never_lose_more(items: list[Item], bits: float, more: float) -> None:
    less, greater = (allocate(items, Budgets.of(bits=value), REST) for value in (bits, min(8.0, bits + more)))
    assert total(items, greater, "damage") <= total(items, less, "damage")
    elements = sum(one.tensor.elements for one in items)
    used = sum(BITS[less[one.tensor.name]] * one.tensor.elements for one in items)
    assert used <= bits * elements + 1e-6


@given(models(), st.floats(1e-4, 1), st.floats(1, 3))
def test_less_divergence_never_takes_fewer_bytes(items: list[Item], kl: float, factor: float) -> None:
    try:
        small = allocate(items, Budgets.of(max_kl=kl * factor), REST)
        large = allocate(items, Budgets.of(max_kl=kl), REST)
    except BudgetError:
        return
    assert total(items, small, "bytes") <= total(items, large, "bytes")
    assert total(items, large, "damage") <= kl
    scaled = allocate(items, Budgets.of(max_kl=kl * factor), REST, scale=factor)
    assert total(items, scaled, "damage") * factor <= kl * factor


@pytest.mark.parametrize(
    ("limits", "least"),
    [
        ({"bits": 2.5, "kinds": "3,4"}, "3"),
        ({"size": 1}, "bytes"),
        ({"bits_all": 1}, None),
        ({"tokens_per_second": 1e9}, None),
        ({"max_kl": 1e-9}, None),
    ],
)
def test_budgets_that_cannot_be_met_say_what_can(limits: dict[str, Any], least: str | None) -> None:
    kinds = ("p3", "p4") if "kinds" in limits else BITS
    items = [item(f"t{at}", 50, {k: 4.0 ** -BITS[k] for k in kinds}) for at in range(3)]
    (name, *_) = limits
    with pytest.raises(BudgetError, match=name) as error:
        allocate(items, Budgets.of(**limits), REST)
    assert isinstance(error.value, ValueError) and error.value.code == "budget"
    nearest = str(error.value).rpartition("nearest that can is ")[2]
    assert least is None or least in nearest
    # What it names can indeed be met, and hardly anything beyond.
    number = float(nearest.split()[0])
    met = {**limits, name: int(number) if name == "size" else number}
    allocate(items, Budgets.of(**met), REST)
    beyond = number * (1.01 if name == "tokens_per_second" else 0.99)
    if name == "bits" or beyond >= 1 or name == "max_kl":
        with pytest.raises(BudgetError):
            allocate(items, Budgets.of(**{**met, name: int(beyond) if name == "size" else beyond}), REST)


def test_sizes_are_named_in_whole_bytes() -> None:
    rest = Rest(bytes=12_345_600, file_bytes=399, parameters=2_500, seconds=0)
    items = [item("t", 50, {k: 4.0 ** -BITS[k] for k in BITS})]
    with pytest.raises(BudgetError, match=r"^size 12345678 cannot .* is 12346\d{3} bytes$"):
        allocate(items, Budgets.of(size=12_345_678), rest)
    with pytest.raises(BudgetError, match=r"size 12346500.* cannot be met together"):
        allocate(items, Budgets.of(max_kl=1e-4, size=12_346_500), rest)


def test_budgets_that_cannot_be_met_together_say_so() -> None:
    items = [item(f"t{at}", 50 + at, {k: 4.0 ** -BITS[k] for k in BITS}) for at in range(3)]
    with pytest.raises(BudgetError, match="together") as error:
        allocate(items, Budgets.of(max_kl=0.05, size=1500), REST)
    message = str(error.value)
    assert "max_kl 0.05, size" in message or "size 1500, max_kl 0.05" in message
    size = int(float(message.partition("nearest is size ")[2].split()[0]))
    allocate(items, Budgets.of(max_kl=0.05, size=size), REST)
    with pytest.raises(BudgetError):
        allocate(items, Budgets.of(max_kl=0.05, size=size - 1), REST)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"bits": 1.9}, "bits"),
        ({"bits": float("nan")}, "bits"),
        ({"bits_all": 0}, "bits_all"),
        ({"bits_all": "4"}, "bits_all"),
        ({"size": 0}, "size"),
        ({"size": 1e6}, "size"),
        ({"size": True}, "size"),
        ({"tokens_per_second": 0}, "tokens_per_second"),
        ({"tokens_per_second": float("inf")}, "tokens_per_second"),
        ({"max_kl": -1}, "max_kl"),
        ({"max_kl": 0}, "max_kl"),
        ({"kinds": ""}, "kinds"),
        ({"kinds": "5"}, "kinds: '5'"),
        ({"kinds": "p4,p5"}, "kinds: 'p5'"),
        ({"kinds": ["p4", 7]}, "kinds: 7"),
        ({"kinds": "keep"}, "kinds"),
        ({"kinds": [True]}, "kinds"),
        ({"kinds": 4}, "^kinds: .*not 4"),
        ({"kinds": "9" * 5000}, "^kinds"),
        ({"embedding_bits": [4]}, "^embedding_bits"),
        ({"embedding_bits": 4.0}, "^embedding_bits"),
        ({"tokens_per_second": 10**400}, "^tokens_per_second"),
        ({"max_kl": 10**400}, "^max_kl"),
        ({"embedding_bits": 5}, "embedding_bits"),
        ({"embedding_bits": True}, "embedding_bits"),
    ],
)
def test_budgets_out_of_range(arguments: dict[str, Any], word: str, source: Path) -> None:
    with pytest.raises(ParameterError, match=word):
        Budgets.of(**arguments)
    with pytest.raises(ParameterError, match=word):
        plan(source, **arguments, **QUIET)


def test_arguments_that_plan_does_not_have_are_named(source: Path) -> None:
    for name, hint in (
        ("bit", "; the nearest is bits; known: "),
        ("progres", "; the nearest is progress; known: "),
        ("zzz", ": unknown argument; known: src, recipe, "),
    ):
        with pytest.raises(ParameterError, match=f"^{name}: unknown argument") as error:
            plan(source, **{name: 4}, **QUIET)
        assert hint in str(error.value)


@given(st.floats(1e-9, 1e9))
def test_numbers_that_are_named_are_no_less(value: float) -> None:
    assert value <= float(rounded_up(value)) <= 1.0011 * value
    assert rounded_up(float(f"{value:.4g}")) == f"{float(f'{value:.4g}'):.10g}"  # as they are, if short


def test_budgets_by_default() -> None:
    plain = Budgets.of()
    assert (plain.bits, plain.embedding_bits, plain.kinds) == (4.0, 8, tuple(BEST.values()))
    assert Budgets.of(size=1000).embedding_bits is Budgets.of(size=1000).bits is None
    assert Budgets.of(bits=3, max_kl=0.1).embedding_bits is None
    assert Budgets.of(kinds="4, 2").kinds == Budgets.of(kinds=[4, BEST[2]]).kinds == (BEST[2], "p4")
    assert Budgets.of(kinds="p4,keep").kinds == ("p4", KEEP)
