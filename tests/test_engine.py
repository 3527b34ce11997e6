"""The engine against the float64 interpreter, and its manners at the boundary."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pocketlm import _core, errors
from pocketlm.builder import GraphBuilder
from pocketlm.graph import Embed, Graph, Positions, Rotary, Weight
from pocketlm.interpret.reference import Reference


class Model:
    """A graph under construction with random weights in a store."""

    def __init__(self, kind: str, vocab: int, context: int = 512, seed: int = 1) -> None:
        self.kind, self.vocab = kind, vocab
        self.g = GraphBuilder("test", vocab, context)
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def build(self) -> tuple[Graph, _core.WeightStore, dict[str, np.ndarray]]:
        graph = self.g.build()
        store, dense = _core.WeightStore(), {}
        for index, (name, weight) in enumerate(graph.weights().items()):
            values = self.rng.normal(size=weight.shape)
            values = values / np.sqrt(weight.shape[-1]) if len(weight.shape) == 2 else 1 + 0.1 * values
            values = values.astype(np.float32)
            stored = values.T.copy() if weight.transposed else values
            kinds = ["p8", "p4", "f16", "p2", "p2v"] if self.kind == "mixed" else [self.kind]
            kind = kinds[index % len(kinds)] if len(weight.shape) == 2 and not weight.transposed else "f32"
            if kind.startswith("p"):
                plain = _core.WeightStore()
                plain.add(name, stored)
                part = _core.palettize_tensor(plain, name, kind)
                store.add_palette(name, kind, weight.shape, part.codes, part.codebook, part.scale)
            else:
                store.add(name, stored.astype(np.float16) if kind == "f16" else stored)
            dense[name] = store.dense(name)
        return graph, store, dense


def everything(kind: str) -> Model:
    """Most operations in one graph; the engine's own tests hold stranger company."""
    m, width, dim = Model(kind, 97), 64, 16
    g = m.g
    rotary = Rotary(tuple(0.3**i for i in range(dim // 2)))
    partial = Rotary((1.0, 0.25, 0.1), scale=1.1, interleaved=True)
    x = g.embed("embed", Weight("table", (97, width)), scale=1.5)
    x = g.add(x, g.positions("places", Weight("places", (512, width))), "sum")
    with g.layer(0):
        h = g.norm(x, "norm", "n0", 1e-5)
        q, k, v = (g.linear(h, n, f"w.{n}", w) for n, w in (("q", 4 * dim), ("k", 2 * dim), ("v", 2 * dim)))
        q, k = g.norm(q, "qn", "qn", 1e-6, group=dim), g.norm(k, "kn", "kn", 1e-6, group=dim)
        q, k = g.rope(q, "qr", dim, rotary), g.rope(k, "kr", dim, rotary)
        a = g.attention(q, k, v, "attn", heads=4, kv_heads=2, head_dim=dim, scale=0.25, cache=0)
        x = g.add(x, g.linear(a, "o", "w.o", width), "res1")
        h = g.norm(x, "norm2", "n1", 1e-5, offset=0.5)
        x = g.add(
            x,
            g.linear(
                g.gated(g.linear(h, "gate", "w.gate", 300), g.linear(h, "up", "w.up", 300), "act", "silu"),
                "down", "w.down", width,
            ),
            "res2",
        )  # fmt: skip
    with g.layer(1):
        h = g.norm(x, "norm", "n2", 1e-5, norm="layer", bias="n2b")
        q, k, v = g.split(
            g.linear(h, "qkv", "w.qkv", 6 * dim, bias="b.qkv"), ("q", 4 * dim), ("k", dim), ("v", dim)
        )
        q, k = g.rope(q, "qr", dim, partial), g.rope(g.clip(k, "clip", 1.0), "kr", dim, partial)
        a = g.attention(
            q, k, v, "attn", heads=4, kv_heads=1, head_dim=dim, scale=0.3, cache=1, window=13, softcap=2.0
        )
        o = g.linear(a, "o", "w.o2", width, bias="b.o2")
        f = g.activation(g.linear(h, "fc1", "w.fc1", 200, bias="b.fc1", transposed=True), "act", "gelu_tanh")
        x = g.add(g.add(x, o, "res1"), g.linear(f, "fc2", "w.fc2", width, bias="b.fc2"), "res2")
        a = g.attention(q, None, None, "again", heads=4, kv_heads=1, head_dim=dim, scale=0.3, cache=1)
        x = g.add(x, g.scale(g.linear(a, "o3", "w.o3", width), "scale", 0.7), "res3")
    h = g.norm(x, "norm", None, 1e-5, norm="layer")
    g.softcap(g.head(h, "table", 97), "cap", 10.0)
    return m


def make(kind: str, **options: object) -> tuple[_core.Engine, Graph, dict[str, np.ndarray]]:
    graph, store, dense = everything(kind).build()
    return _core.Engine(graph.to_json(), store, cache_tokens=1024, max_rows=64, **options), graph, dense  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "precise", "limit"),
    [
        ("f32", False, 3e-6),
        ("f16", False, 1e-5),
        ("p8", True, 1e-5),
        ("p4", True, 1e-5),
        ("p8", False, 0.1),
        ("mixed", False, 0.1),
    ],
)
def test_every_operation_agrees_with_the_interpreter(kind: str, precise: bool, limit: float) -> None:
    # Float32 sums of up to 300 terms, f16 keys and values (2^-11 relative, diluted by averaging), or int8
    # activations (1/254 of a block's maximum each, or up to twice that): errors relative to the largest value
    # of the result.
    engine, graph, dense = make(kind, precise=precise)
    ids = np.random.default_rng(2).integers(0, 97, 100)
    traced = engine.trace(ids)
    expected = Reference(graph, dense).trace(ids)
    assert list(traced) == [op.name for op in graph.ops]
    seen_attention = False
    for op in graph.ops:
        seen_attention |= op.kind == "attention"
        error = np.abs(traced[op.name] - expected[op.name]).max() / np.abs(expected[op.name]).max()
        assert error < limit + 2e-3 * seen_attention, (op.name, error)


def all_logits(engine: _core.Engine, ids: np.ndarray) -> np.ndarray:
    sequence = engine.sequence()
    parts = [
        engine.step([(sequence, part, None, "all")])[0].logits
        for part in np.array_split(ids, 1 + len(ids) // 60)
    ]
    return np.concatenate([part for part in parts if part is not None])


def test_steps_give_the_last_value_of_the_trace() -> None:
    for kind in ("f32", "mixed"):
        for kv_dtype in ("f16", "int8"):
            engine, graph, _ = make(kind, threads=2, kv_dtype=kv_dtype)
            assert engine.kv_dtype == kv_dtype
            ids = np.random.default_rng(3).integers(0, 97, 130)
            assert np.array_equal(all_logits(engine, ids), engine.trace(ids)[graph.ops[-1].name])


def test_sampling_is_greedy_or_seeded() -> None:
    engine, _, _ = make("mixed")
    sequence = engine.sequence()
    greedy = _core.Sampler(temperature=0, logprobs=3)
    (result,) = engine.step([(sequence, [1, 2, 3], greedy, "last")])
    assert result.logits is not None and result.logits.shape == (1, 97)
    assert result.token == result.logits[0].argmax() == result.top[0][0]
    shifted = result.logits[0].astype(np.float64) - result.logits.max()
    assert result.logprob == pytest.approx(-np.log(np.exp(shifted).sum()), abs=1e-5)

    def sampled(seed: int) -> list[int]:
        sampler, sequence, found, ids = _core.Sampler(seed=seed), engine.sequence(), [], [5]
        for _ in range(12):
            token = engine.step([(sequence, ids, sampler, "none")])[0].token
            assert token is not None
            found.append(token)
            ids = [token]
        return found

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e, s: e.step([(s, [97], None, "none")]), errors.ParameterError, "97"),
        (lambda e, s: e.step([(s, [-1], None, "none")]), errors.ParameterError, "-1"),
        (lambda e, s: e.step([(s, [], None, "none")]), errors.ParameterError, "empty"),
        (lambda e, s: e.step([(s, ["a"], None, "none")]), errors.ParameterError, "ids"),
        (lambda e, s: e.step([(s, [1], None, "some")]), errors.ParameterError, "logits"),
        (lambda e, s: e.step([(s, [1], None, "none")] * 2), errors.ParameterError, "twice"),
        (lambda e, s: e.step([(s, [1] * 65, None, "none")]), errors.ParameterError, "65"),
        (lambda e, s: e.step([(make("f32")[0].sequence(), [1], None, "none")]), errors.ParameterError, "oth"),
        (lambda e, s: s.truncate(4), errors.ParameterError, "length"),
        (lambda e, s: (s.free(), s.fork()), errors.ParameterError, "freed"),
        (lambda e, s: (e.close(), e.sequence()), errors.ParameterError, "closed"),
        (lambda e, s: (e.close(), e.read_bandwidth(0.0)), errors.ParameterError, "closed"),
        (lambda e, s: e.read_bandwidth(-1.0), errors.ParameterError, "seconds"),
        (lambda e, s: e.trace([1] * 513), errors.ContextLengthError, "512"),
        (lambda e, s: _core.Sampler(temperature=float("nan")), errors.ParameterError, "temperature"),
        (lambda e, s: _core.Sampler(top_k=-5), errors.ParameterError, "top_k"),
    ],
)  # fmt: skip
def test_bad_calls_are_typed_errors_that_change_nothing(
    call: object, error: type[Exception], words: str
) -> None:
    engine, _, _ = make("f32")
    sequence = engine.sequence()
    engine.step([(sequence, [1, 2, 3], None, "none")])
    free = engine.cache_tokens_free
    with pytest.raises(error, match=words):
        call(engine, sequence)  # type: ignore[operator]
    if words not in ("closed", "freed"):
        assert sequence.length == 3 and engine.cache_tokens_free == free


def test_full_cache_and_context() -> None:
    graph, store, _ = everything("f32").build()
    engine = _core.Engine(graph.to_json(), store, cache_tokens=100, max_rows=64)
    assert engine.cache_tokens == 128
    first, second = engine.sequence(), engine.sequence()
    engine.step([(first, [1] * 64, None, "none")])
    with pytest.raises(errors.MemoryLimitError):
        engine.step([(first, [1], None, "none"), (second, [1] * 63, None, "none")])
    assert (first.length, second.length, engine.cache_tokens_free) == (64, 0, 64)
    engine.step([(second, [1] * 63, None, "none")])
    del first
    assert engine.cache_tokens_free == 64
    engine = _core.Engine(graph.to_json(), store, cache_tokens=1024, max_rows=512)
    sequence = engine.sequence()
    engine.step([(sequence, [1] * 512, None, "none")])
    with pytest.raises(errors.ContextLengthError):
        engine.step([(sequence, [1], None, "none")])


def test_constructor_refuses() -> None:
    graph, store, _ = everything("f32").build()
    text = graph.to_json()

    def changed(index: int, **fields: object) -> str:
        data = json.loads(text)
        data["ops"][index].update(fields)
        return json.dumps(data)

    rotation = next(i for i, op in enumerate(graph.ops) if op.kind == "rope")

    def turned(**fields: object) -> str:
        data = json.loads(text)
        data["rotaries"][0].update(fields)
        return json.dumps(data)

    cases = [
        ("{", {}, errors.ConfigError, "json"),
        (changed(rotation, rotary=2), {}, errors.ConfigError, "no rotary 2"),
        (changed(rotation, rotary=-1), {}, errors.ConfigError, "json"),
        (turned(frequencies=[1.0] * 9), {}, errors.ConfigError, "9 rotated pairs"),
        (turned(scale=1e400), {}, errors.ConfigError, "json|finite"),
        (changed(2, a=5), {}, errors.ConfigError, "sum"),
        (changed(2, kind="mul"), {}, errors.ConfigError, "mul"),
        (changed(0, width=63), {}, errors.ConfigError, "embed"),
        (changed(0, weight={"name": "none", "shape": [97, 64]}), {}, errors.WeightError, "none"),
        (changed(0, weight={"name": "table", "shape": [98, 64]}), {}, errors.WeightError, "table"),
        (
            text,
            {"cache_tokens": 10**15},
            errors.MemoryLimitError,
            r"needs 1\d{11,}\.\d MB, [1-9]\d*\.\d MB are",
        ),
        (text, {"cache_tokens": 2**63}, errors.MemoryLimitError, "cache"),
        (text, {"cache_tokens": 0}, errors.ParameterError, "cache_tokens"),
        (text, {"max_rows": 0}, errors.ParameterError, "max_rows"),
        (text, {"max_rows": 10**9}, errors.ParameterError, "max_rows"),
        (text, {"threads": 0}, errors.ParameterError, "threads"),
        (text, {"kv_dtype": "int4"}, errors.ParameterError, "kv_dtype"),
        (
            text,
            {"max_memory": 100_000},
            errors.MemoryLimitError,
            r"^max_memory: the model needs \d+\.\d MB, 0\.1 MB are",
        ),
    ]
    for graph_json, options, error, words in cases:
        with pytest.raises(error, match=words):
            _core.Engine(graph_json, store, **{"cache_tokens": 64, **options})  # type: ignore[arg-type]


def test_threads_share_an_engine() -> None:
    engine, _, _ = make("mixed", threads=2)
    ids = np.random.default_rng(4).integers(0, 97, 200)
    expected = all_logits(engine, ids)
    found: list[bool] = []
    workers = [
        threading.Thread(target=lambda: found.append(np.array_equal(all_logits(engine, ids), expected)))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 4


def check_forked_child() -> None:
    """A forked child computes what its parent does. Runs in a process of its own, without others' threads."""
    engine, _, _ = make("mixed", threads=3)
    ids = np.random.default_rng(5).integers(0, 97, 50)
    expected = all_logits(engine, ids)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(all_logits(engine, ids), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert np.array_equal(all_logits(engine, ids), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_workers() -> None:
    script = "import test_engine; test_engine.check_forked_child()"
    found = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, timeout=120)
    assert found.returncode == 0


def test_an_idle_engine_uses_no_processor_time() -> None:
    engine, _, _ = make("mixed", threads=4)
    all_logits(engine, np.arange(60))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.1


def test_machine() -> None:
    assert _core.current_isa() in [name for name, available in _core.isa_levels() if available]
    choices = _core.prompt_kernels()
    assert sorted(kind for kind, *_ in choices) == sorted(kind for kind, *_ in _core.palette_kinds())
    assert all(name in ("panels", "registers") for _, *names in choices for name in names)
    rows = _core.kernel_registry()
    assert {"matmul_palette", "attention_split"} <= {row["op"] for row in rows}
    assert all(row["available"] for row in rows if row["chosen"])
    assert _core.read_bandwidth(1, 0.05) > 1e8
    for seconds in (-1.0, 61.0, float("nan"), float("inf")):
        with pytest.raises(errors.ParameterError, match="seconds"):
            _core.read_bandwidth(1, seconds)
    assert _core.cpu_count() >= 1


def test_the_speed_of_reading_weights() -> None:
    engine = make("f32")[0]
    assert engine.read_bandwidth(0.01) > 1e6
    sequence = engine.sequence()
    before = engine.step([(sequence, [1, 2, 3], None, "last")])[0].logits
    assert engine.read_bandwidth(0.0) > 1e6
    again = engine.step([(engine.sequence(), [1, 2, 3], None, "last")])[0].logits
    np.testing.assert_array_equal(before, again)  # reading changed nothing


def test_embeddings_alone_make_a_model() -> None:
    g = GraphBuilder("test", 24, 16)
    g.add(g.embed("e", Weight("t", (30, 24))), g.positions("p", Weight("s", (16, 24))), "sum")
    store = _core.WeightStore()
    rng = np.random.default_rng(6)
    table, places = rng.normal(size=(30, 24)).astype(np.float32), rng.normal(size=(16, 24)).astype(np.float32)
    store.add("t", table)
    store.add("s", places)
    graph = g.build()
    assert {type(op) for op in graph.ops[:2]} == {Embed, Positions}
    engine = _core.Engine(graph.to_json(), store, cache_tokens=64)
    ids = [29, 3, 3]
    assert np.array_equal(all_logits(engine, np.array(ids)), table[ids] + places[:3])
