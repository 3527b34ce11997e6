"""Times of products with other kinds of weights: doubles that are like their model, times that are kept for
what they were measured for, and steps that were disturbed do not count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adapters
import pocketlm
from checkpoints import write_checkpoint
from independent.cases import CASES, graph, llama
from palettizing import content, full_disk, names
from pocketlm._core import Engine
from pocketlm.builder import GraphBuilder
from pocketlm.graph import Embed, Graph, Weight
from pocketlm.kinds import PALETTES
from pocketlm.profile import costs, double, profile
from pocketlm.profile.costs import Costs
from pocketlm.profile.double import TABLE_ROWS, double_of, random_store
from pocketlm.profile.stand_in import Setting, StandIn
from profiles import made_up, made_up_times, measured, models, quick

SETTING = Setting(context=9, chunk=12, decode_threads=2, prefill_threads=1)
KINDS = (*PALETTES, "f16", "bf16", "f32")


def of_kind(of: Graph, *kinds: str) -> dict[str, str]:
    """Kinds in turn for the products of a graph."""
    return {op.name: kinds[at % len(kinds)] for at, op in enumerate(of.linears())}


def placed() -> Graph:
    """A model that learned its positions, with a table stored the other way around."""
    g = GraphBuilder("placed", 30, 64)
    x = g.add(g.embed("e", Weight("table", (30, 24))), g.positions("p", Weight("places", (64, 24))), "sum")
    x = g.attention(x, x, x, "attention", heads=1, kv_heads=1, head_dim=24, scale=1.0, cache=0)
    g.linear(x, "head", Weight("head", (30, 24), transposed=True), 30)
    return g.build()


@pytest.mark.parametrize("case", [*CASES, "placed"])
def test_a_double_has_the_models_operations_and_runs(case: str) -> None:
    model = placed() if case == "placed" else graph(case)
    tokens = 70
    for kinds in (of_kind(model, *KINDS), of_kind(model, *KINDS[::-1])):
        new, weights = double_of(model, kinds, tokens)
        assert [(op.name, op.kind, op.width, op.inputs()) for op in new.ops] == [
            (op.name, op.kind, op.width, op.inputs()) for op in model.ops
        ]
        store = random_store(weights)
        for op, old in zip(new.linears(), model.linears(), strict=True):
            assert op.weight.shape == old.weight.shape and store.info(op.weight.name).shape == op.weight.shape
        # Tensors are shared where the model shares them, and only there.
        assert len({w.name for w in new.weights().values()}) == len(model.weights())
        used = {op.weight.name for op in new.linears()}
        for op, old in zip(new.ops, model.ops, strict=True):
            if isinstance(op, Embed) and isinstance(old, Embed):
                assert op.weight.name in used or op.weight.shape[0] == TABLE_ROWS
        engine = Engine(new.to_json(), store, threads=2, cache_tokens=tokens, max_rows=tokens)
        ids = np.arange(tokens) % min(TABLE_ROWS, engine.vocab_size)
        (result,) = engine.step([(engine.sequence(), ids, None, "all")])
        assert result.logits is not None and np.isfinite(result.logits).all() and np.ptp(result.logits) > 0


@settings(deadline=None, max_examples=40)
@given(layers=st.integers(1, 12), room=st.integers(1, 1 << 20), data=st.data())
def test_layers_of_a_large_model_share_matrices(layers: int, room: int, data: st.DataObject) -> None:
    model = pocketlm.families.build_graph(llama(num_hidden_layers=layers))
    kinds = {op.name: data.draw(st.sampled_from(KINDS)) for op in model.linears()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(double, "_MOST_BYTES", room)
        new, weights = double_of(model, kinds, 8)
    matrices = {op.weight: kinds[op.name] for op in new.linears()}
    assert all(weights[weight] == kind for weight, kind in matrices.items())
    size = sum(double._bytes(weight.shape, kind) for weight, kind in matrices.items())
    whole = sum(double._bytes(op.weight.shape, kinds[op.name]) for op in model.linears())
    groups = {(weight.shape, kind) for weight, kind in matrices.items()}
    # Half a matrix of each shape and kind is lost or won by rounding, but for the only one.
    most = sum(double._bytes(*group) for group in groups)
    assert min(room, whole) - most <= size <= min(whole, room + most)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precise", [False, True])
def test_every_kind_can_be_measured(kind: str, precise: bool) -> None:
    model = graph("llama-tied")
    setting = dataclasses.replace(SETTING, precise=precise, kv_dtype="int8")
    one = StandIn(model, of_kind(model, kind), setting)
    assert one.bytes >= sum(double._bytes(op.weight.shape, kind) for op in model.linears())
    for times, steps in ((one.decode(3), 3), (one.prefill(2), 2)):
        assert times.shape == (steps, len(model.ops) + 2) and (times >= 0).all() and times.sum() < 60
        at = [number for number, op in enumerate(model.ops) if op.kind == "linear"]
        assert (times[:, at] > 0).all()
    one.close()


def test_doubles_run_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, bool, str]] = []

    def engine(*args: Any, threads: int, precise: bool, kv_dtype: str, **options: Any) -> Engine:
        made.append((threads, precise, kv_dtype))
        return Engine(*args, threads=threads, precise=precise, kv_dtype=kv_dtype, **options)

    monkeypatch.setattr(pocketlm.profile.stand_in, "Engine", engine)
    model = graph("llama2")
    for precise, kv in ((False, "f16"), (True, "int8")):
        StandIn(model, of_kind(model, "p4"), Setting(5, 6, 2, 1, precise, kv)).close()
    assert made == [(2, False, "f16"), (1, False, "f16"), (2, True, "int8"), (1, True, "int8")]


def test_kinds_are_measured_in_turn_and_the_least_disturbed_steps_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = graph("llama2")
    turns: list[str] = []
    closed: list[str] = []
    products = [op.name for op in model.linears()]

    class Fake:
        bytes = 1

        def __init__(self, _: Graph, kinds: dict[str, str], setting: Setting) -> None:
            assert setting == SETTING
            (self.kind,) = set(kinds.values())

        def decode(self, steps: int) -> Any:
            turns.append(self.kind)
            # Of four rounds three are disturbed; a kind takes as long as its name is.
            slow = 1.0 if turns.count(self.kind) == 2 else 3.0
            return np.full((steps, len(model.ops) + 2), slow * len(self.kind))

        def prefill(self, steps: int) -> Any:
            return 2 * np.ones((steps, len(model.ops) + 2))

        def close(self) -> None:
            closed.append(self.kind)

    monkeypatch.setattr(costs, "StandIn", Fake)
    monkeypatch.setattr(costs, "_LEAST_ROUNDS", 4)
    monkeypatch.setattr(costs, "_MOST_ROUNDS", 4)
    told: list[tuple[int, int]] = []
    for room, closes in ((1 << 20, ["p2", "bf16"]), (1, ["bf16"] * 4 + ["p2"]), (0, ["p2", "bf16"] * 4)):
        turns.clear(), closed.clear(), told.clear()
        monkeypatch.setattr(costs, "_HELD_BYTES", room)
        known = Costs(model, of_kind(model, "p4"), SETTING, "x", None)
        known.measure(["p2", "bf16"], lambda done, total: told.append((done, total)))
        assert turns == ["p2", "bf16"] * 4 and sorted(closed) == sorted(closes)
        assert told == [(done, 8) for done in range(8)]
        assert {known.seconds(name, "p2") for name in products} == {(2.0, 2.0)}
        assert {known.seconds(name, "bf16") for name in products} == {(4.0, 2.0)}


def test_doubles_are_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("llama2")
    open_now: list[StandIn] = []
    close = StandIn.close

    def made(*args: Any) -> StandIn:
        open_now.append(StandIn(*args))
        return open_now[-1]

    monkeypatch.setattr(costs, "StandIn", made)
    monkeypatch.setattr(StandIn, "close", lambda self: (close(self), open_now.remove(self))[0])

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    for room in (0, 1 << 20):
        monkeypatch.setattr(costs, "_HELD_BYTES", room)
        with pytest.raises(KeyboardInterrupt):
            Costs(model, of_kind(model, "p4"), SETTING, "x", None).measure(["p2", "p4"], stop)
        assert not open_now


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sequence[str]]]:
    """Notes what is measured, which is made up."""
    runs: list[Sequence[str]] = []

    def measured(self: Costs, kinds: Sequence[str], progress: Any) -> costs.Times:
        runs.append(kinds)
        return made_up_times(self, kinds, progress)

    monkeypatch.setattr(Costs, "_measured", measured)
    return runs


def test_times_are_kept_for_what_they_were_measured_for(tmp_path: Path, counted: list[Sequence[str]]) -> None:
    model, kinds = graph("llama2"), ["p2", "bf16"]
    now = of_kind(model, "p4")

    def known(of: Graph = model, setting: Setting = SETTING, machine: str = "here") -> Costs:
        found = Costs(of, now if of is model else of_kind(of, "p4"), setting, machine, tmp_path)
        found.measure(kinds)
        return found

    for _ in range(2):
        assert known().seconds("layers.0.ffn.down", "p2") == made_up(
            next(op.weight.shape for op in model.linears() if op.name == "layers.0.ffn.down"), "p2"
        )
    assert len(counted) == 1
    (file,) = tmp_path.iterdir()
    known(graph("llama-wide"))
    known(setting=dataclasses.replace(SETTING, prefill_threads=2))
    known(machine="elsewhere")
    assert len(counted) == 4 and len(names(tmp_path)) == 4
    kinds.append("p3")  # all of them anew: times of other moments are not compared
    known()
    assert counted[-1] == kinds and len(counted) == 5
    kept = file.read_text()
    nested = '{"p2": ' * 10_000
    for damage in ("", "[]", '{"p2": 1}', kept.replace(" 1", ' "x"', 1), kept.replace("[", "[0, "), nested):
        file.write_text(damage)
        known()
        assert file.read_text() == kept
    assert len(counted) == 11


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, counted: list[Sequence[str]]) -> None:
    model = graph("llama2")
    Costs(model, of_kind(model, "p4"), SETTING, "here", tmp_path).measure(["p2"])
    before = content(tmp_path)
    with full_disk(10):  # what was kept before stays, and nothing else
        Costs(model, of_kind(model, "p4"), SETTING, "here", tmp_path).measure(["p2", "p3"])
        Costs(model, of_kind(model, "p4"), SETTING, "new", tmp_path).measure(["p2"])
    assert content(tmp_path) == before
    (file,) = tmp_path.iterdir()
    Costs(model, of_kind(model, "p4"), SETTING, "here", file / "below").measure(["p2"])
    Costs(model, of_kind(model, "p4"), SETTING, "here", None).measure(["p2"])
    assert len(counted) == 5


def test_adapters_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = llama()
    path = write_checkpoint(tmp_path / "m", config)
    adapters.write(path, adapters.pairs(config))
    measuring = Costs._measured
    quick(monkeypatch)
    monkeypatch.setattr(Costs, "_measured", measuring)
    made: list[dict[str, str]] = []

    def stand_in(_: Graph, kinds: dict[str, str], __: Setting) -> Any:
        made.append(kinds)
        raise InterruptedError

    monkeypatch.setattr(costs, "StandIn", stand_in)
    found = measured(path)
    with pytest.raises(InterruptedError):
        found.measure_kinds()
    (kinds,) = made
    terms = {name: kind for name, kind in kinds.items() if "lora" in name}
    assert set(terms.values()) == {"f16"} and set(kinds.values()) == {"f16", PALETTES[0]}
    assert len(terms) == 2 * len(adapters.pairs(config))


def test_a_precise_model_is_profiled_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, path = models(tmp_path)
    made: list[bool] = []

    def noted(self: Costs, kinds: Sequence[str], progress: Any) -> costs.Times:
        made.append(self._setting.precise)
        return made_up_times(self, kinds, progress)

    monkeypatch.setattr(Costs, "_measured", noted)
    plain = measured(path, cache=True)
    assert plain.what_if({"ffn.*": "p2"}).changed
    precise = measured(path, cache=True, precise=True)
    with pocketlm.load(path, precise=True) as lm:
        assert lm.precise and profile(lm, prompt=40, context=9, repeats=1).precise
    assert precise.precise and precise.what_if({"ffn.*": "p2"}).changed
    # Nothing of the other's times was taken, and each has a file of its own.
    assert made == [False, True] and len(names(tmp_path / "cache" / "pocketlm")) == 2
    # The head's activations are in one term there, and so are its products.
    for one, terms in ((plain, 2), (precise, 1)):
        (head,) = (row for row in one.table if row.name == "head")
        assert head.shape is not None and head.decode.macs == terms * head.shape[0] * head.shape[1]


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert costs.cache_directory() == tmp_path / "pocketlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "beside")  # counts only if it is absolute
    monkeypatch.setenv("HOME", str(tmp_path))
    assert costs.cache_directory() == tmp_path / ".cache" / "pocketlm"

    def nowhere(*_: Any) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert costs.cache_directory() is None
