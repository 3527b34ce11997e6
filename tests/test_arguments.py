"""Arguments of the compiled part: whatever their size or length, a typed error that names them."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm import _core, errors
from test_engine import make

STUB = Path(_core.__file__ or "").with_name("_core.pyi")
LARGEST = sys.maxsize


def integers() -> Iterator[tuple[str, str]]:
    """Every function of the stub with each of its arguments that are integers, or contain some."""
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in functions:
            if not isinstance(function, ast.FunctionDef):
                continue
            owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
            for argument in [*function.args.args, *function.args.kwonlyargs]:
                kind = ast.unparse(argument.annotation) if argument.annotation else ""
                if re.search(r"\bint\b", kind) and not kind.startswith("Callable"):
                    yield owner + function.name, argument.arg


class Calls:
    """One call of each function that has integers among its arguments, with the others as they should be."""

    def __init__(self) -> None:
        self.engine, self.graph, _ = make("f32")
        self.sequence = self.engine.sequence()
        self.engine.step([(self.sequence, [1, 2, 3], None, "none")])
        self.store = _core.WeightStore()
        self.values = np.ones((16, 32), np.float32)
        self.store.add("w", self.values)
        self.parts = _core.palettize_tensor(self.store, "w", "p4")
        file = b'{"model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}'
        self.pairs = _core.BytePairs.reading(file).result()
        self.hessian = _core.Hessian(np.eye(32, dtype=np.float32), "p4", damping=0.01)

    def of(self, name: str) -> Callable[..., object]:
        def engine(**given: Any) -> object:
            return _core.Engine(self.graph.to_json(), self.store, **{"cache_tokens": 64, **given})

        def palette(shape: int) -> None:
            parts = self.parts
            self.store.add_palette("p", "p4", (shape, 32), parts.codes, parts.codebook, parts.scale)

        def compensate(rows: int = 16, threads: int | None = None) -> object:
            weights = np.ones(16, np.float32)
            return _core.compensate_tensor(
                self.store, "w", "p4", self.hessian, rows=(0, rows), row_weights=weights, threads=threads
            )

        item = (self.sequence, [1], None, "none")
        calls: dict[str, Callable[..., object]] = {
            "Engine.__new__": engine,
            "Engine.step_threads": self.engine.step_threads,
            "Engine.step": lambda **given: self.engine.step([item], **given),
            "Engine.continuation": lambda prompt=(1,), max_tokens=9, **given: self.engine.continuation(
                prompt, max_tokens=max_tokens, **given
            ),
            "Engine.drafts": lambda texts: self.engine.drafts(
                self.engine.continuation([1], max_tokens=9), texts
            ),
            "Engine.restore": lambda length: self.engine.restore(length, b""),
            "Engine.trace": lambda ids: self.engine.trace(ids),
            "Sequence.truncate": self.sequence.truncate,
            "BytePairs.merges_are_tokens": self.pairs.merges_are_tokens,
            "BytePairs.texts": self.pairs.texts,
            "Continuation.draft": lambda ids: self.engine.continuation([1], max_tokens=9).draft(ids, 0.0),
            "Sampler.__new__": _core.Sampler,
            "read_bandwidth": lambda threads: _core.read_bandwidth(threads, 0.0),
            "int8_peak": lambda threads: _core.int8_peak(threads, 0.0),
            "WeightStore.add_palette": palette,
            "WeightStore.fingerprint": self.store.fingerprint,
            "WeightStore.dense": lambda **given: self.store.dense("w", **given),
            "WeightStore.raw": lambda **given: self.store.raw("w", **given),
            "WeightStore.check_finite": self.store.check_finite,
            "palettize_tensor": lambda **given: _core.palettize_tensor(self.store, "w", "p4", **given),
            "SecondMoment.__new__": _core.SecondMoment,
            "SecondMoment.add": lambda **given: _core.SecondMoment(32).add(self.values, **given),
            "Hessian.__new__": lambda **g: _core.Hessian(
                np.eye(32, dtype=np.float32), "p4", damping=0.1, **g
            ),
            "compensate_tensor": compensate,
            "measure_tensor": lambda **given: _core.measure_tensor(self.store, "w", "p4", **given),
        }
        return calls[name]

    def given(self, argument: str, number: int) -> dict[str, Any]:
        """The argument with this number in it."""
        if argument in ("prompt", "ids", "stop_ids", "history"):
            return {argument: [number]}
        return {argument: {number: 1.0} if argument == "logit_bias" else number}


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize(("function", "argument"), list(integers()))
def test_integers_out_of_range_are_parameter_errors(calls: Calls, function: str, argument: str) -> None:
    for number in (2**70, -(2**70), 2**200, -(2**200), -1):
        if number in (-1, 2**70, -(2**70)) and argument == "seed":
            continue  # Of seeds the low 64 bits count.
        if number == -1 and argument == "top_k":
            continue  # All tokens.
        given = calls.given(argument, number)
        with pytest.raises(errors.ParameterError, match=argument):
            calls.of(function)(**given)


@pytest.mark.parametrize(("function", "argument"), list(integers()))
def test_the_largest_integers_are_taken_or_refused(calls: Calls, function: str, argument: str) -> None:
    for number in (2**32 - 1, 2**63, 2**64 - 1):
        with contextlib.suppress(errors.PocketlmError):
            calls.of(function)(**calls.given(argument, number))


def test_there_are_integers_to_test() -> None:
    found = list(integers())
    assert len(found) >= 30 and ("Engine.step", "steps") in found and ("Sampler.__new__", "history") in found


def test_steps_may_be_as_many_as_wanted(calls: Calls) -> None:
    sequence = calls.engine.sequence()
    sampler = _core.Sampler(temperature=0, seed=-1)
    continuation = calls.engine.continuation([1], max_tokens=LARGEST, guesses=LARGEST)
    item = (sequence, [1], sampler, "none", continuation)
    (result,) = calls.engine.step([item], steps=LARGEST)
    assert len(result.tokens) == 1


@pytest.mark.parametrize("padding", ["u1", "<u2"])
def test_fields_of_packed_records_are_read_where_they_lie_or_refused(calls: Calls, padding: str) -> None:
    ids = np.zeros(20, np.dtype([("p", padding), ("v", "<u4")]))
    ids["v"] = np.arange(20) % 13
    wanted = calls.engine.trace(ids["v"].tolist())
    for name, values in calls.engine.trace(ids["v"]).items():
        assert np.array_equal(values, wanted[name])
    floats = np.zeros((16, 32), np.dtype([("p", padding), ("v", "<f4")]))
    floats["v"] = np.random.default_rng(0).random((16, 32)) + 0.5
    square = np.zeros((32, 32), floats.dtype)
    square["v"] = np.eye(32)
    for argument, call in {
        "x": lambda: _core.SecondMoment(32).add(floats["v"]),
        "weights": lambda: _core.SecondMoment(32).add(calls.values, floats["v"][:, 0]),
        "moment": lambda: _core.Hessian(square["v"], "p4", damping=0.1),
        "importance": lambda: _core.palettize_tensor(calls.store, "w", "p4", importance=floats["v"][0]),
        "row_weights": lambda: _core.compensate_tensor(
            calls.store, "w", "p4", calls.hessian, rows=(0, 16), row_weights=floats["v"][:, 0]
        ),
    }.items():
        with pytest.raises(errors.ParameterError, match=f"^{argument}: .* multiples of 4 bytes"):
            call()
    # Backwards and with steps they can be viewed.
    moment, copied = _core.SecondMoment(16), _core.SecondMoment(16)
    view = floats["v"].copy()[::-2, ::-2]
    moment.add(view)
    copied.add(view.copy())
    assert np.array_equal(moment.finish(1.0), copied.finish(1.0))


class Boundless:
    """A sequence without end that claims some length."""

    def __init__(self, claimed: int, element: object) -> None:
        self.claimed, self.element = claimed, element

    def __len__(self) -> int:
        return self.claimed

    def __getitem__(self, index: int) -> object:
        return self.element

    def __iter__(self) -> Iterator[object]:
        return itertools.repeat(self.element)  # As by index, and faster.


# In a process of its own: what it must not do ends it.
CALLS = {
    "history": "_core.Sampler(history=ids)",
    "prompt": "engine.continuation(ids, max_tokens=1)",
    "stop_ids": "engine.continuation([1], max_tokens=1, stop_ids=ids)",
    "ids": "engine.trace(ids)",
    "ids of a draft": "engine.continuation([1], max_tokens=1).draft(ids, 0.0)",
    "ids of tokens": "pairs.texts(ids)",
    "ids of an item": "engine.step([(sequence, ids, None, 'none')])",
    "ids of a timed item": "engine.step_timed([(sequence, ids, None, 'none')])",
    "items": "engine.step(others((sequence, [1], None, 'none')))",
    "items to be timed": "engine.step_timed(others((sequence, [1], None, 'none')))",
    "names": "engine.trace([1], others('embed'))",
    "parts": "_core.Palettized.join(others(part))",
    "texts": "_core.byte_level_text(others('a'))",
}
SCRIPT = """
import numpy as np
from pocketlm import _core
from pocketlm.errors import ParameterError
from test_arguments import CALLS, Boundless, make
engine, _, _ = make("f32")
sequence = engine.sequence()
store = _core.WeightStore()
store.add("w", np.ones((16, 32), np.float32))
part = _core.palettize_tensor(store, "w", "p4")
pairs = _core.BytePairs.reading(b'{"model": {"vocab": {"a": 0}, "merges": []}}').result()
for name, call in CALLS.items():
    try:
        eval(call)
    except ParameterError as error:
        assert str(error).startswith(name.split()[0] + ": "), (call, error)
    else:
        raise AssertionError(call)
"""


@pytest.mark.parametrize(
    ("ids", "claimed"),
    [
        ("range(10**12)", 10**18),
        ("np.broadcast_to(np.uint32(1), 10**13)", 2**62),
        ("Boundless(10**18, 1)", 10**18),
        ("Boundless(3, 1)", 3),
    ],
)
def test_sequences_without_end_are_parameter_errors(ids: str, claimed: int) -> None:
    script = SCRIPT.replace("for name", f"others = lambda e: Boundless({claimed}, e)\nids = {ids}\nfor name")
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, timeout=300, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_only_sequences_and_arrays_of_integers_are_ids() -> None:
    engine, _, _ = make("f32")
    expected = engine.trace([5, 6, 7])
    for ids in (
        (5, 6, 7),
        range(5, 8),
        np.array([5, 6, 7]),
        np.array([5, 6, 7], np.uint32),
        bytes([5, 6, 7]),
    ):
        found = engine.trace(ids)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(errors.ParameterError, match="names"):
        engine.trace([5], "embed")
    refused: list[Any] = [
        {5: 6},
        {5},
        iter([5]),
        "5",
        ["5"],
        [5.0],
        [[5]],
        np.ones((2, 2), np.uint32),
        5,
        None,
    ]
    for ids in refused:
        with pytest.raises(errors.ParameterError, match="ids"):
            engine.trace(ids)


def test_arrays_that_repeat_a_number_are_copied_only_where_there_is_room(calls: Calls) -> None:
    one: Any = np.float32(1)
    row, square = np.broadcast_to(one, 2**48), np.broadcast_to(one, (2**24, 2**24))
    store = calls.store
    moment = _core.SecondMoment(2**8)
    made: dict[str, Callable[[], object]] = {
        "x": lambda: moment.add(np.broadcast_to(one, (2**40, 2**8))),
        "weights": lambda: moment.add(np.ones((2, 2**8), np.float32), row),
        "moment": lambda: _core.Hessian(square, "p4", damping=0.1),
        "importance": lambda: _core.palettize_tensor(store, "w", "p4", importance=row),
        "row_weights": lambda: _core.compensate_tensor(
            store, "w", "p4", calls.hessian, rows=(0, 16), row_weights=row
        ),
    }
    for name, call in made.items():
        with pytest.raises(errors.MemoryLimitError, match=f"copy of {name}"):
            call()


def test_a_moment_that_no_machine_holds_is_refused_before_anything_is_allocated() -> None:
    # What there is, only Linux tells.
    for width in (2**20, 2**40) if sys.platform == "linux" else (2**40,):
        with pytest.raises(errors.MemoryLimitError, match=f"second moment of {width} inputs"):
            _core.SecondMoment(width)


def test_a_shape_may_not_be_without_end() -> None:
    class Array:
        dtype = np.dtype(np.float32)
        shape = Boundless(10**18, 1)

    with pytest.raises(errors.ParameterError, match="array"):
        _core.WeightStore().add("w", Array())
