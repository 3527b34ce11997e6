"""Plans: what is chosen keeps to what was asked for, and is what it says it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from allocating import TEXT, fast
from checkpoints import write_checkpoint
from independent.cases import openelm
from palettizing import QUIET, content, names
from pocketlm.errors import BudgetError, ParameterError
from pocketlm.kinds import BEST, BITS
from pocketlm.loading import open_model
from pocketlm.palettize import palettize, plan, speed
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.speed import Speeds


def test_sizes_that_cannot_be_met_are_told_before_the_calibration(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("calibrated for nothing")

    monkeypatch.setattr("pocketlm.palettize.importance.Importance.prepare", never)
    for budget in ({"size": 1000}, {"bits_all": 2.0}, {"bits": 2, "kinds": "4"}):
        with pytest.raises(BudgetError, match="the nearest that can"):
            plan(source, calibration=["w1 w2 " * 700], **budget, **QUIET)


@pytest.mark.parametrize("family", ["llama", "openelm"])
def test_a_palettized_model_is_what_its_plan_says(family: str, tmp_path: Path, few: None) -> None:
    config = openelm() if family == "openelm" else None
    source = write_checkpoint(tmp_path / "src", *([config] if config else []))
    settings: dict[str, Any] = {"bits": 3, "calibration": [TEXT], **QUIET}
    report = palettize(source, tmp_path / "dst", **settings)
    found = report.plan
    assert found.recipe == report.recipe and found.bytes == report.bytes
    assert found.bits_per_weight_all == pytest.approx(report.bits_per_weight_all, rel=1e-12)
    assert found.bits_per_weight_projections == pytest.approx(report.bits_per_weight_projections, rel=1e-12)
    # The divergence is that of the very weights that were written.
    model, made = open_model(source), open_model(tmp_path / "dst")
    _, held_out = hold_out([TEXT], None)
    assert Divergence(model, sequences(model, held_out), 1).of(made.store) == found.measured_kl
    assert found.kl == pytest.approx(sum(planned.kl or 0 for planned in found.tensors))
    stored = json.loads((tmp_path / "dst" / "sensitivity.json").read_text())
    assert stored == found.sensitivity and set(stored) == set(report.recipe)
    assert all(planned.kl == stored[planned.tensor.name][planned.kind] for planned in found.tensors)
    # At least as good, by what was measured of each tensor, as all at 3 bits.
    even = sum(stored[p.tensor.name]["p8" if p.tensor.is_embedding else "p3"] for p in found.tensors)
    assert found.kl is not None and found.kl <= even
    again = palettize(source, tmp_path / "again", threads=1, **settings)
    assert again.plan == found and content(tmp_path / "again") == content(tmp_path / "dst")


@pytest.mark.parametrize("kl", [0.05, 0.5])
def test_the_divergence_keeps_to_its_bound(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None, kl: float
) -> None:
    fast(monkeypatch, tmp_path)
    report = palettize(source, tmp_path / "dst", max_kl=kl, validation=[TEXT], **QUIET)
    assert report.plan.measured_kl is not None and report.plan.measured_kl <= kl
    tight = plan(source, max_kl=kl / 4, validation=[TEXT], **QUIET, recipe=None)
    assert tight.bytes > report.bytes
    with pytest.raises(BudgetError, match=r"max_kl 1e-07 cannot.*nearest that can is") as nearest:
        plan(source, max_kl=1e-7, validation=[TEXT], **QUIET)
    reachable = float(str(nearest.value).split("nearest that can is ")[1].split(",")[0])
    assert plan(source, max_kl=reachable, validation=[TEXT], **QUIET).measured_kl is not None
    for kind in "38":
        with pytest.raises(BudgetError, match=f"kinds p{kind}; the nearest that can is") as nearest:
            plan(source, max_kl=1e-7, kinds=kind, validation=[TEXT], **QUIET)
        reachable = float(str(nearest.value).split("nearest that can is ")[1].split(",")[0])
        assert plan(source, max_kl=reachable, kinds=kind, validation=[TEXT], **QUIET).measured_kl is not None
    with pytest.raises(ParameterError, match=r"max_kl.*validation"):
        palettize(source, tmp_path / "x", max_kl=kl, **QUIET)
    # Within another budget it is that which binds, as far as it does.
    size = (tmp_path / "dst" / "model.safetensors").stat().st_size + 1000
    both: dict[str, Any] = {"size": size, "max_kl": kl / 4, "validation": [TEXT], **QUIET}
    with pytest.raises(BudgetError) as nearest:
        plan(source, **both)
    told = f"max_kl {kl / 4:g} cannot be met together with size {size}, with the kinds"
    assert told in str(nearest.value)
    reachable = float(str(nearest.value).split("nearest that can is ")[1].split(",")[0])
    assert plan(source, **{**both, "max_kl": reachable}).measured_kl is not None
    with pytest.raises(BudgetError, match=r"max_kl 1e-07 cannot be met with the kinds"):
        plan(source, size=10**9, max_kl=1e-7, validation=[TEXT], **QUIET)
    assert names(tmp_path) == ["cache", "dst", "src"]


@pytest.mark.parametrize("text", [None, [TEXT]])
def test_files_keep_to_their_size(source: Path, tmp_path: Path, few: None, text: Any) -> None:
    smallest = palettize(source, tmp_path / "p2", bits=2, embedding_bits=2, **QUIET)
    size = int((tmp_path / "p2" / "model.safetensors").stat().st_size * 1.4)
    palettize(source, tmp_path / "dst", size=size, calibration=text, **QUIET)
    there = (tmp_path / "dst" / "model.safetensors").stat().st_size
    assert there <= size and there > 0.9 * size
    bits = smallest.bits_per_weight_all * 1.3
    all_bits = palettize(source, tmp_path / "all", bits_all=bits, calibration=text, **QUIET)
    assert 0.9 * bits < all_bits.bits_per_weight_all <= bits
    both = palettize(source, tmp_path / "both", size=size, bits=3, kinds="2,4,8", calibration=text, **QUIET)
    assert set(both.recipe.values()) <= {BEST[2], "p4", "p8"}
    projections = [tensor for tensor in both.tensors if tensor.is_projection]
    assert sum(BITS[t.kind] * t.elements for t in projections) <= 3 * sum(t.elements for t in projections)
    with pytest.raises(BudgetError, match="size 1000"):
        palettize(source, tmp_path / "x", size=1000, calibration=text, **QUIET)


def test_speed_is_a_budget_too(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    fast(monkeypatch, tmp_path)
    report = palettize(source, tmp_path / "dst", tokens_per_second=0.1, bits=3, **QUIET)
    assert report.plan.tokens_per_second is not None and report.plan.tokens_per_second > 0.1
    assert all(planned.seconds is not None for planned in report.plan.tensors)
    with pytest.raises(BudgetError, match=r"tokens_per_second 1e\+09.*nearest that can is"):
        palettize(source, tmp_path / "x", tokens_per_second=1e9, **QUIET)


def test_the_nearest_speed_can_be_asked_for(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    fast(monkeypatch, tmp_path)
    real = speed._measured
    measured: list[float] = []

    def slower(*args: Any) -> Speeds:  # from time to time
        found = real(*args)
        measured.append(found.rest)
        return dataclasses.replace(found, rest=found.rest * len(measured) ** 2)

    monkeypatch.setattr(speed, "_measured", slower)
    with pytest.raises(BudgetError) as error:
        plan(source, tokens_per_second=1e9, **QUIET)
    nearest = float(str(error.value).split("nearest that can is ")[1])
    found = plan(source, tokens_per_second=nearest, **QUIET)
    assert found.tokens_per_second is not None and found.tokens_per_second >= nearest
    assert len(measured) == 1
    with pytest.raises(BudgetError, match="nearest"):
        plan(source, tokens_per_second=1.01 * nearest, **QUIET)
    # Not for ever, and not if damaged.
    (file,) = (tmp_path / "cache" / "pocketlm").glob("steps-*.json")
    kept = json.loads(file.read_text())
    for bad in ({**kept, "at": kept["at"] - 7200}, {**kept, "rest": -1}, {**kept, "seconds": []}, [], {}):
        file.write_text(json.dumps(bad))
        plan(source, tokens_per_second=0.1, **QUIET)
    assert len(measured) == 6
    file.write_text("{")
    plan(source, tokens_per_second=0.1, **QUIET)
    assert len(measured) == 7
