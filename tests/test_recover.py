"""The closed-form correction: optimal, exact at full rank, resumable, and counted."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import pocketlm
from allocating import fast
from checkpoints import write_checkpoint
from independent.cases import llama, openelm
from palettizing import QUIET, names, stopped, tree
from pocketlm.errors import BudgetError, ParameterError
from pocketlm.interpret.reference import Reference
from pocketlm.loading import open_model
from pocketlm.palettize import palettize, recover, speed
from pocketlm.palettize.lowrank import factors, spectrum, weighted_error
from pocketlm.palettize.ranks import Site, allocate_ranks
from pocketlm.palettize.recipe import Candidate
from pocketlm.palettize.sizes import even_ranks

pytestmark = pytest.mark.usefixtures("few")
TEXT = [" ".join(f"w{i}" for i in np.random.default_rng(1).integers(1, 97, 2100))]


def case(outputs: int, inputs: int, seed: int, rank: int | None = None) -> tuple[Any, Any]:
    """An error matrix and a second moment of correlated inputs, of full rank or less."""
    rng = np.random.default_rng(seed)
    error = rng.standard_normal((outputs, inputs)).astype(np.float32)
    samples = rng.standard_normal((rank or 4 * inputs, inputs)) * np.exp(rng.standard_normal(inputs))
    samples = samples + samples[:, :1] * rng.standard_normal(inputs)
    return error, (samples.T @ samples / len(samples)).astype(np.float32)


def left(error: NDArray[np.float32], moment: NDArray[np.float32], rank: int) -> float:
    found = spectrum(error, moment, rank)
    a, b = factors(error, found.directions)
    return weighted_error(error - b @ a, moment)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.data())
def test_the_correction_is_optimal(outputs: int, inputs: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    error, moment = case(outputs, inputs, seed, data.draw(st.sampled_from([None, 1, 5])))
    # Eckart, Young and Mirsky: no matrix of that rank leaves less than the other singular values of E S.
    values, vectors = np.linalg.eigh(moment.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))
    singular = np.linalg.svd(error @ root, compute_uv=False)
    least, total = (singular[rank:] ** 2).sum(), (singular**2).sum()
    # Sums of as many products as inputs, in float32, which may cancel.
    size = float(np.square(error).sum() * values[-1])
    slack = (inputs + outputs) * 2.0**-23 * size + 1e-20
    assert abs(left(error, moment, rank) - least) <= slack
    found = spectrum(error, moment, rank)
    assert (np.abs(found.gains - (singular**2)[:rank]) <= slack).all()
    assert abs(found.total - total) <= slack


def test_plain_svd_leaves_more() -> None:
    for seed in range(5):
        error, moment = case(60, 50, seed)
        u, s, v = np.linalg.svd(error, full_matrices=False)
        plain = weighted_error(error - (u[:, :8] * s[:8]) @ v[:8], moment)
        assert left(error, moment, 8) < 0.9 * plain


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (900, 40)])
def test_full_rank_gives_the_whole_error(shape: tuple[int, int]) -> None:
    error, moment = case(*shape, 1)
    a, b = factors(error, spectrum(error, moment, 10**6).directions)
    assert a.shape[0] == min(shape)
    assert np.abs(b @ a - error).max() < 1e-3


def test_many_outputs_by_subspace_iteration() -> None:
    error, moment = case(2000, 300, 3)
    found = spectrum(error, moment, 16)
    root = np.linalg.cholesky(moment.astype(np.float64))
    exact = np.linalg.svd(error.astype(np.float64) @ root, compute_uv=False) ** 2
    assert found.gains.sum() > 0.999 * exact[:16].sum()
    again = spectrum(error, moment, 16)
    np.testing.assert_array_equal(found.directions, again.directions)
    a, b = factors(error, found.directions)
    assert weighted_error(error - b @ a, moment) == pytest.approx(found.total - found.gains.sum(), rel=1e-3)


def test_ranks_take_the_best_gain_per_byte() -> None:
    def linear(rank: int) -> int:
        return 10 * rank

    steep = Site("steep", np.repeat([8.0, 4.0, 0.1], 16), linear)
    flat = Site("flat", np.full(48, 1.0), linear)
    costly = Site("costly", np.full(48, 1.0), lambda rank: 100 * rank)
    sites = [costly, steep, flat]
    assert allocate_ranks(sites, 0) == {"steep": 0, "flat": 0, "costly": 0}
    assert allocate_ranks(sites, 320) == {"steep": 32, "flat": 0, "costly": 0}
    assert allocate_ranks(sites, 800) == {"steep": 32, "flat": 48, "costly": 0}
    assert allocate_ranks(sites, 10**6) == {"steep": 48, "flat": 48, "costly": 48}


@given(
    st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=20), min_size=1, max_size=5),
    st.integers(0, 2000),
)
def test_ranks_keep_to_the_budget(gains: list[list[float]], budget: int) -> None:
    sites = [
        Site(str(i), np.array(sorted(g, reverse=True)), lambda rank, i=i: (i + 1) * (rank + rank % 3))  # type: ignore[misc]
        for i, g in enumerate(gains)
    ]
    chosen = allocate_ranks(sites, budget)
    assert sum(site.bytes(chosen[site.name]) if chosen[site.name] else 0 for site in sites) <= budget
    assert all(0 <= chosen[site.name] <= len(site.gains) for site in sites)


@pytest.mark.parametrize("config", [llama(), openelm()], ids=["llama", "openelm"])
@pytest.mark.parametrize("dtype", ["int8", "f16"])
def test_recovery_of_a_model(tmp_path: Path, config: dict[str, Any], dtype: Any) -> None:
    source = write_checkpoint(tmp_path / "src", config)
    report = palettize(
        source, tmp_path / "dst", bits=2, calibration=TEXT, recover=24, recover_dtype=dtype, **QUIET
    )
    assert report.recovery is not None
    assert names(tmp_path / "dst") == [
        "adapters", "config.json", "model.safetensors", "recipe.json", "sensitivity.json", "tokenizer.json",
    ]  # fmt: skip
    with pocketlm.load(tmp_path / "dst") as lm, pocketlm.load(tmp_path / "dst", adapter=None) as bare:
        assert lm.info.adapter_bytes == report.recovery.bytes > 0
        assert lm.info.bytes == report.bytes == bare.info.bytes + report.recovery.bytes
        assert lm.info.bits_per_weight_all == pytest.approx(report.bits_per_weight_all)
        assert lm.info.bits_per_weight_projections == pytest.approx(report.bits_per_weight_projections)
        ids = np.random.default_rng(5).integers(1, 97, 100)
        original = open_model(source)
        arrays = {name: original.store.dense(name) for name in original.store.names()}
        exact = Reference(original.graph, arrays).logits(ids)
        errors = [np.square(m.logits(ids) - exact).mean() for m in (lm, bare)]
        assert errors[0] < 0.8 * errors[1]
    section = json.loads((tmp_path / "dst" / "config.json").read_text())["pocketlm"]
    assert section["bits_per_weight_all"] == pytest.approx(report.bits_per_weight_all, abs=1e-4)
    assert all(0 <= share <= 1 for share in report.recovery.remaining.values())


@pytest.mark.parametrize(("dtype", "rank"), [("int8", 24), ("f16", 8)])
def test_budgets_of_the_whole_count_the_adapter(tmp_path: Path, dtype: Any, rank: int) -> None:
    config = llama(hidden_size=160, intermediate_size=320, num_attention_heads=4, num_key_value_heads=4)
    source = write_checkpoint(tmp_path / "src", config)
    options: dict[str, Any] = {"calibration": TEXT, "recover": rank, "recover_dtype": dtype, **QUIET}
    options["compensation"] = False
    with pytest.raises(BudgetError) as error:
        palettize(source, tmp_path / "x", size=1000, **options)
    told = re.search(r"is (\d+) bytes \(with (\d+) bytes of the recovery adapter\)$", str(error.value))
    assert told is not None
    least, share = map(int, told.groups())
    for size in (least, round(1.3 * least)):
        report = palettize(source, tmp_path / f"{size}", size=size, **options)
        files = (tmp_path / f"{size}").rglob("*.safetensors")
        there = sum(file.stat().st_size for file in files)
        assert report.recovery is not None and 0.8 * share < report.recovery.bytes <= share
        assert 0.9 * size < there <= size
        assert report.bytes <= report.plan.bytes < there
        assert report.plan.adapter_bytes == share == report.plan.predicted["adapter_bytes"]
        assert report.plan.bits_per_weight_all >= report.bits_per_weight_all
    bits = 1.2 * report.bits_per_weight_all
    within = palettize(source, tmp_path / "bits", bits_all=bits, **options)
    assert 0.9 * bits < within.bits_per_weight_all <= bits
    # Bits are those of the codes.
    plain = palettize(source, tmp_path / "plain", bits=3, **{**options, "recover": 0})
    assert palettize(source, tmp_path / "codes", bits=3, **options).recipe == plain.recipe
    assert "adapter_bytes" not in plain.plan.predicted


def test_tiny_matrices_have_no_more_than_all_ranks(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "src", llama())
    options: dict[str, Any] = {"calibration": TEXT, "recover": 512, "recover_dtype": "f16", **QUIET}
    made = palettize(source, tmp_path / "dst", bits=2, **options)
    assert made.recovery is not None and made.recovery.bytes == made.plan.adapter_bytes


def test_kept_matrices_have_no_adapter(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "src", llama())
    kept = {"layers.0.*": "keep"}
    made = palettize(source, tmp_path / "dst", bits=2, calibration=TEXT, recover=16, recipe=kept, **QUIET)
    assert made.recovery is not None and made.recovery.ranks
    assert not [name for name in made.recovery.ranks if ".layers.0." in name]
    assert 0.8 * made.plan.adapter_bytes < made.recovery.bytes <= made.plan.adapter_bytes


@given(st.integers(1, 60), st.integers(1, 512))
def test_even_ranks_keep_to_the_average(count: int, rank: int) -> None:
    tensors = [Candidate(f"t{at}", (512, 512), False, False, ()) for at in range(count)]
    ranks = even_ranks(tensors, rank)
    assert all(value % 16 == 0 and value for value in ranks.values())
    assert count * rank - 16 < sum(ranks.values()) <= count * rank


def test_predicted_speed_counts_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch, tmp_path)
    graphs: list[Any] = []
    real = speed._measured

    def seen(*args: Any) -> Any:
        graphs.append(args[4])
        return real(*args)

    monkeypatch.setattr(speed, "_measured", seen)
    source = write_checkpoint(tmp_path / "src", llama())
    options: dict[str, Any] = {"calibration": TEXT, "tokens_per_second": 0.1, "bits": 3, **QUIET}
    for dtype in ("int8", "f16"):
        made = palettize(source, tmp_path / dtype, recover=16, recover_dtype=dtype, **options)
        assert made.plan.tokens_per_second is not None
        assert {planned.tensor.name for planned in made.plan.tensors} == set(made.recipe)
    assert len([op for op in graphs[0].ops if op.name.endswith(".lora_b")]) == 14
    palettize(source, tmp_path / "plain", **options)
    assert len(graphs) == 3 and not [op for op in graphs[2].ops if "lora" in op.name]


def test_full_rank_recovers_the_source(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "src", llama())
    palettize(source, tmp_path / "dst", bits=2, calibration=TEXT, recover=512, recover_dtype="f16", **QUIET)
    model, original = open_model(tmp_path / "dst"), open_model(source)
    assert model.adapter is not None
    for name, term in model.adapter.terms.items():
        whole = model.store.dense(name) + model.store.dense(term.b) @ model.store.dense(term.a)
        assert np.abs(whole - original.store.dense(name)).max() < 2e-3 * np.abs(whole).max()


def test_interrupted_recovery_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "src", llama())
    options: dict[str, Any] = {"bits": 3, "calibration": TEXT, "recover": 8, **QUIET}
    palettize(source, tmp_path / "whole", threads=1, **options)
    real = recover.spectrum
    for after in (0, 3, 9):
        count = itertools.count()

        def limited(*args: Any, after: int = after, count: Any = count) -> Any:
            if next(count) == after:
                raise KeyboardInterrupt
            return real(*args)

        stopped(source, tmp_path / "dst", monkeypatch, recover, "spectrum", limited, **options)
        assert not (tmp_path / "dst").exists()
    (partial,) = tmp_path.glob("dst.partial-*")
    (partial / "recovery-1.npz").write_bytes(b"damaged")
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(recover, "spectrum", lambda *args: (next(calls), real(*args))[1])
        palettize(source, tmp_path / "dst", **options)
    assert next(calls) == 14 - 12 + 1  # what was not done yet, and what was damaged
    assert tree(tmp_path / "dst") == tree(tmp_path / "whole")


@pytest.mark.parametrize("rank", [-1, 513, 1.5, "16", None, True])
def test_ranks_out_of_range(source: Path, tmp_path: Path, rank: Any) -> None:
    with pytest.raises(ParameterError, match="recover"):
        palettize(source, tmp_path / "dst", calibration=TEXT, recover=rank, **QUIET)
    assert names(tmp_path) == ["src"]


def test_recovery_needs_text_and_a_known_form(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="calibration"):
        palettize(source, tmp_path / "dst", recover=8, **QUIET)
    with pytest.raises(ParameterError, match="recover_dtype"):
        palettize(source, tmp_path / "dst", calibration=TEXT, recover=8, recover_dtype="int4", **QUIET)  # type: ignore[arg-type]
    assert names(tmp_path) == ["src"]
