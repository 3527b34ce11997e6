"""Damages of single tensors: measured, estimated where a model is large, and never measured twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocating import TEXT
from palettizing import QUIET, UP, content, interrupted, names
from pocketlm._core import compensate_tensor, palettize_tensor
from pocketlm.loading import open_model
from pocketlm.palettize import compensate, damage, palettize, run
from pocketlm.palettize.damage import measure_damages, products, sample
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.held_out import sequences
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.recipe import KEEP, Candidate, candidates, read_recipe
from pocketlm.profile.sensitivity import read_sensitivities


def parts(source: Path) -> tuple[Any, list[Candidate], Forms, Divergence]:
    model = open_model(source)
    known = candidates(model.graph, model.store)
    forms = Forms(model, Importance(model, Statistics()), 1, palettize_tensor)
    return model, known, forms, Divergence(model, sequences(model, [TEXT]), 1)


class Notes(dict[str, Any]):
    """Measurements that are kept in memory."""

    def note(self, name: str) -> Any:
        return self.get(name)

    def record(self, name: str, facts: Any) -> None:
        assert name not in self
        self[name] = json.loads(json.dumps(facts))


def test_damages_are_divergences_of_single_tensors(source: Path, few: None) -> None:
    model, known, forms, divergence = parts(source)
    wanted = {tensor: ["p2", "p4", KEEP] for tensor in known}

    def never() -> Any:
        raise AssertionError

    notes = Notes()
    found = measure_damages(model, wanted, forms, divergence, never, notes, progress=False).damages
    assert divergence.of(model.store) == 0
    for tensor in known:
        assert set(found[tensor.name]) == {"p2", "p4", KEEP} and found[tensor.name][KEEP] == 0
        assert found[tensor.name]["p2"] > found[tensor.name]["p4"] > 0
    one = known[3]
    made = palettize_tensor(model.store, one.name, "p2")
    from pocketlm._core import WeightStore

    top = WeightStore()
    top.add_palette(one.name, "p2", one.shape, made.codes, made.codebook, made.scale)
    assert divergence.of(model.store.overlay(top)) == found[one.name]["p2"]
    # What is noted is not measured again.
    divergence.of = None  # type: ignore[assignment,method-assign]
    again = measure_damages(model, wanted, forms, divergence, never, notes, progress=False)
    assert (again.damages, again.estimated) == (found, {})


def test_damages_of_large_models_are_estimated(
    source: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, known, forms, divergence = parts(source)
    wanted = {tensor: ["p2", "p3", "p4"] for tensor in known}
    errors = {
        tensor.name: {
            kind: forms.error(tensor, kind) / palettize_tensor(model.store, tensor.name, kind).energy
            for kind in ("p2", "p3", "p4")
        }
        for tensor in known
    }
    exact = measure_damages(model, wanted, forms, divergence, lambda: errors, Notes(), progress=False).damages
    sites = {tensor.sites[0].split(".", 2)[-1] for tensor in known}
    # One kind of every tensor, or of one tensor of every site.
    for runs, correlation in ((len(known), 0.98), (1, 0.7)):
        monkeypatch.setattr(damage, "MOST_WORK", runs * products(model.graph) * divergence.tokens)
        notes = Notes()
        both = measure_damages(model, wanted, forms, divergence, lambda: errors, notes, progress=False)
        found = both.damages
        missing = {(t.name, kind) for t in known for kind in ("p2", "p3", "p4")}
        missing -= {tuple(key.split()[1:]) for key in notes}
        assert {(name, kind) for name, kinds in both.estimated.items() for kind in kinds} == missing
        assert len(notes) == max(runs, len(sites))
        for key, note in notes.items():
            _, name, kind = key.split()
            assert kind == "p3" and found[name]["p3"] == note["kl"] == exact[name]["p3"]
        logs = [
            [np.log(values[t.name][kind]) for t in known for kind in ("p2", "p3", "p4")]
            for values in (exact, found)
        ]
        assert np.corrcoef(logs)[0, 1] > correlation


def test_what_was_estimated_is_marked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    settings: dict[str, Any] = {"bits": 3, "validation": [TEXT], **QUIET}
    whole = palettize(source, tmp_path / "whole", **settings).plan
    assert whole.estimated == {} and "estimated" not in whole.text()
    assert "estimated" not in json.loads((tmp_path / "whole" / "sensitivity.json").read_text())
    monkeypatch.setattr(damage, "MOST_WORK", 1)
    monkeypatch.setattr("pocketlm.palettize.held_out._FEWEST", 48)
    found = palettize(source, tmp_path / "dst", **settings).plan
    file = tmp_path / "dst" / "sensitivity.json"
    stored = json.loads(file.read_text())
    marks = stored.pop("estimated")
    assert stored == found.sensitivity and marks == {n: list(kinds) for n, kinds in found.estimated.items()}
    assert {UP} < set(marks) and all(set(kinds) <= set(stored[name]) for name, kinds in marks.items())
    marked = [p.tensor.name for p in found.tensors if p.kind in found.estimated.get(p.tensor.name, ())]
    entries = json.loads(found.text())["tensors"]
    assert marked and [name for name, entry in entries.items() if entry.get("estimated")] == marked
    # Who reads either needs not know the mark.
    assert read_sensitivities(None, tmp_path / "dst", stored) == stored
    (tmp_path / "r.json").write_text(found.text())
    model = open_model(source)
    assert read_recipe(tmp_path / "r.json", candidates(model.graph, model.store)) == found.recipe


def test_what_is_kept_is_no_sample(source: Path, few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, known, forms, divergence = parts(source)
    # Of each site but one, the tensor that would stand for all of them is kept; of that one, both are.
    wanted = {
        tensor: [KEEP] if ".layers.1." in tensor.name or "down" in tensor.name else ["p2", "p4"]
        for tensor in known
    }
    errors = {tensor.name: {"p2": 0.1, "p4": 0.01} for tensor in known}
    monkeypatch.setattr(damage, "MOST_WORK", products(model.graph) * divergence.tokens)
    notes = Notes()
    found = measure_damages(model, wanted, forms, divergence, lambda: errors, notes, progress=False).damages
    open_ones = {tensor.name for tensor, kinds in wanted.items() if kinds != [KEEP]}
    assert {key.split()[1] for key in notes} == open_ones
    for tensor in known:
        assert set(found[tensor.name]) == {KEEP, *wanted[tensor]}
        assert found[tensor.name][KEEP] == 0
    assert all(found[name]["p4"] > 0 for name in open_ones)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 40))
def test_samples_hold_every_site_and_both_ends(layers: list[int], most: int) -> None:
    tensors = [
        Candidate(f"{site} {at}", (1, 1), False, False, (f"layers.{at}.s{site}",))
        for site, count in enumerate(layers)
        for at in range(count)
    ]
    found = sample(tensors, most)
    assert len(found) <= max(most, len(layers))
    assert found == [tensor for tensor in tensors if tensor in found]
    for site, count in enumerate(layers):
        chosen = [tensor for tensor in found if tensor.name.startswith(f"{site} ")]
        assert chosen
        if len(chosen) > 1:
            assert {f"{site} 0", f"{site} {count - 1}"} <= {tensor.name for tensor in chosen}
    if most >= len(tensors):
        assert found == tensors


def test_interrupted_measurements_are_resumed_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    settings: dict[str, Any] = {"max_kl": 0.2, "calibration": [TEXT]}
    whole = palettize(source, tmp_path / "whole", **settings, **QUIET)
    for after in (1, 9, 30):  # while damages are measured
        partial = interrupted(source, tmp_path / "dst", monkeypatch, after, **settings)
    lines = (partial / "journal.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["name"].startswith("damage ") for line in lines) >= 30
    report = palettize(source, tmp_path / "dst", **settings, **QUIET)
    assert content(tmp_path / "dst") == content(tmp_path / "whole")
    assert dataclasses.asdict(report.plan) == dataclasses.asdict(whole.plan)
    assert names(tmp_path) == ["dst", "src", "whole"]


def test_what_was_made_to_measure_is_not_made_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    made: list[tuple[str, str]] = []

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def count(store: Any, name: str, kind: str, *args: Any, **options: Any) -> Any:
            made.append((name, kind))
            return work(store, name, kind, *args, **options)

        return count

    monkeypatch.setattr(run, "palettize_tensor", counted(palettize_tensor))
    monkeypatch.setattr(compensate, "compensate_tensor", counted(compensate_tensor))
    report = palettize(source, tmp_path / "dst", kinds="4", calibration=[TEXT], **QUIET)
    assert sorted(made) == sorted(report.recipe.items())
