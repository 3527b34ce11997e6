"""Times of products with other kinds of weights: doubles that are like their model, times that are kept for
what they were measured for, and steps that were disturbed do not count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
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
from pocketlm._core import Engine, WeightStore
from pocketlm.builder import GraphBuilder
from pocketlm.families import build_graph
from pocketlm.graph import Embed, Graph, Weight
from pocketlm.kinds import PALETTES
from pocketlm.loading import open_model
from pocketlm.profile import costs, profile
from pocketlm.profile.costs import Costs, _elements
from pocketlm.profile.double import double_of, random_store, token_ids
from pocketlm.profile.html import report_data
from pocketlm.profile.names import place
from pocketlm.profile.shorter import linear_sites, shorter, without
from pocketlm.profile.stand_in import Setting, StandIn
from pocketlm.profile.terminal import notes
from pocketlm.profile.whatif import stored_bytes
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
    g.linear(x, "head", "head", 30, transposed=True)
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
        for op, old in zip(new.ops, model.ops, strict=True):
            if isinstance(op, Embed) and isinstance(old, Embed):
                assert op.weight.shape[0] == old.weight.shape[0] or op.weight.shape[0] == 64
        engine = Engine(new.to_json(), store, threads=2, cache_tokens=tokens, max_rows=tokens)
        (result,) = engine.step([(engine.sequence(), token_ids(new, tokens), None, "all")])
        assert result.logits is not None and np.isfinite(result.logits).all() and np.ptp(result.logits) > 0


@pytest.mark.parametrize("case", ["llama-biases", "openelm-groups", "llama-tied"])
def test_layers_are_left_out_as_if_they_added_nothing(case: str, tmp_path: Path) -> None:
    config = dict(CASES[case])
    if case != "openelm-groups":
        config["num_hidden_layers"] = 5
    config = {**config, **({"attention_bias": False, "mlp_bias": False} if case == "llama-biases" else {})}
    path = write_checkpoint(tmp_path / "m", config)
    found = adapters.pairs(config)
    adapters.write(path, found)
    loaded = open_model(path)  # an adapter on every projection, so that its terms go as well
    model, layers = loaded.graph, sum(op.kind == "attention" for op in loaded.graph.ops)
    for left_out in ({1}, {0}, {layers - 1}, {*range(1, layers)}, {*range(layers)}):
        new = without(model, left_out)
        assert new is not None
        kept = [place(op.name)[0] for op in new.ops if op.kind == "attention"]
        assert kept == [layer for layer in range(layers) if layer not in left_out]
        zeros = WeightStore()
        for op in model.linears():
            layer, site = place(op.name)
            if layer in left_out and site.startswith(("attn.out", "ffn.down")):
                zeros.add(op.weight.name, np.zeros(op.weight.shape, np.float32))
        ids = list(range(3, 20))
        logits = [
            Engine(graph.to_json(), store, threads=1, cache_tokens=64, precise=True)
            for graph, store in ((model, loaded.store.overlay(zeros)), (new, loaded.store))
        ]
        results = [e.step([(e.sequence(), ids, None, "all")])[0].logits for e in logits]
        np.testing.assert_array_equal(results[0], results[1])


def test_what_something_else_reads_is_not_left_out() -> None:
    def built(skip: bool, shared: bool) -> Graph:
        g = GraphBuilder("x", 30, 64)
        x = first = g.embed("embed", Weight("t", (30, 16)))
        for layer in range(4):
            place = f"layers.{layer}"
            attends: Any = {"heads": 1, "kv_heads": 1, "head_dim": 16, "scale": 1.0}
            # The last layer attends to what the third one left in the cache.
            k, cache = (None, 2) if shared and layer == 3 else (x, layer)
            a = g.attention(x, k, k, f"{place}.attn", cache=cache, **attends)
            y = g.linear(a, f"{place}.attn.out", f"w{layer}", 16)
            x = g.add(first if skip and layer == 2 else x, y, f"{place}.attn.add")
        g.linear(x, "head", "h", 30)
        return g.build()

    plain = built(False, False)
    assert without(plain, {2}) is not None and len(shorter(plain, 16 * 16).ops) < len(plain.ops)
    assert without(built(True, False), {2}) is None and without(built(True, False), {1}) is not None
    assert shorter(built(True, False), 16 * 16) == built(True, False)
    assert without(built(False, True), {2}) is None and without(built(False, True), {3}) is not None


@settings(deadline=None, max_examples=60)
@given(layers=st.integers(1, 40), most=st.integers(1, 1 << 17))
def test_a_shorter_model_has_layers_from_all_over(layers: int, most: int) -> None:
    model = build_graph(llama(num_hidden_layers=layers))
    each = sum(_elements(op) for op in model.linears() if op.name.startswith("layers.0."))
    new = shorter(model, most)
    kept = [place(op.name)[0] or 0 for op in new.ops if op.kind == "attention"]
    assert len(kept) == min(layers, max(2, round(most / each)))
    assert kept[0] == 0 and kept[-1] == layers - 1
    gaps = {b - a for a, b in pairwise(kept)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert (new == model) == (len(kept) == layers)


def test_layers_left_out_are_like_those_of_their_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_MOST_WEIGHTS", 1)
    monkeypatch.setattr(Costs, "_measured", made_up_times)
    for model in (build_graph(llama(num_hidden_layers=7)), graph("openelm-groups")):
        known = Costs(model, of_kind(model, "p4"), dataclasses.replace(SETTING, context=700), "x", None)
        assert known._setting.context < 700 and len(known._graph.ops) < len(model.ops)
        known.measure(["p2", "bf16"])
        for op in model.linears():
            for kind in ("p2", "bf16"):
                sizes = [_elements(o) for o in linear_sites(known._graph)[place(op.name)[1]]]
                # What is made up is linear in the size; beyond what was measured it stays.
                size = min(max(_elements(op), min(sizes)), max(sizes))
                assert known.seconds(op.name, kind) == pytest.approx(made_up((size, 1), kind))
    monkeypatch.setattr(costs, "_MOST_WEIGHTS", 1 << 30)
    whole = Costs(model, of_kind(model, "p4"), dataclasses.replace(SETTING, context=700), "x", None)
    assert whole._setting.context == 700 and whole._graph is model


@pytest.mark.parametrize("tied", [False, True])
def test_few_tokens_are_enough(tied: bool) -> None:
    model = build_graph(llama(vocab_size=7, tie_word_embeddings=tied))
    one = StandIn(model, of_kind(model, "p4"), SETTING)
    assert one.decode(1).sum() > 0 < one.prefill(1).sum()
    one.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precise", [False, True])
def test_every_kind_can_be_measured(kind: str, precise: bool) -> None:
    model = graph("llama-tied")
    setting = dataclasses.replace(SETTING, precise=precise, kv_dtype="int8")
    shapes = {op.weight: (op.weight.shape[0], op.weight.shape[1]) for op in model.linears()}.values()
    one = StandIn(model, of_kind(model, kind), setting)
    assert one.bytes >= sum(stored_bytes(shape, kind, kind) for shape in shapes)
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
        assert told == [(done, 8) for done in range(9)]
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
    huge = kept.replace("[", "[1" + 400 * "0" + ", ", 1)
    for damage in (
        "",
        "[]",
        '{"p2": 1}',
        kept.replace(" 1", ' "x"', 1),
        kept.replace("[", "[0, "),
        nested,
        huge,
    ):
        file.write_text(damage)
        known()
        assert file.read_text() == kept
    assert len(counted) == 12


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
        assert any("two terms" in line for line in notes(one, one.table, ["decode"], ["macs"])) == (
            terms == 2
        )
        assert report_data(one)["two_terms"] == ("head" if terms == 2 else None)


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
