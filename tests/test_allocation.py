"""Damages and plans: what is chosen keeps to what was asked for, and is what it says it is."""

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

from checkpoints import write_checkpoint
from independent.cases import openelm
from palettizing import QUIET, UP, content, full_disk, interrupted, names
from pocketlm._core import compensate_tensor, palettize_tensor
from pocketlm.errors import BudgetError, FileFormatError, MissingFileError, ParameterError, StorageError
from pocketlm.kinds import BEST, BITS
from pocketlm.loading import open_model
from pocketlm.palettize import compensate, damage, palettize, plan, run, speed
from pocketlm.palettize.damage import measure_damages, products, sample
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.recipe import KEEP, KINDS, Candidate, candidates, read_recipe
from pocketlm.palettize.speed import Speeds
from pocketlm.palettize.text import Head, read_windows
from pocketlm.profile.sensitivity import read_sensitivities
from profiles import quick

TEXT = " ".join(f"w{i * i % 97}" for i in range(900))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short sequences: the tests are quick."""
    monkeypatch.setattr("pocketlm.palettize.held_out.TOKENS", 48)
    monkeypatch.setattr("pocketlm.palettize.held_out.LENGTH", 24)


def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Times of products made up, and few steps."""
    quick(monkeypatch)
    monkeypatch.setattr("pocketlm.palettize.speed._REPEATS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_end_of_the_text_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for texts in (["one two three " * 40], ["a b c " * 5, "d e " * 50, "f g " * 9], ["x" * 50]):
        head, tail = hold_out(texts, None)
        assert isinstance(head, list)
        assert "".join(head + tail) == "".join(texts)
        assert 0 < sum(map(len, tail)) <= sum(map(len, texts)) // 5
    (tmp_path / "text").write_text("é" * 1000)
    head, (tail_text,) = hold_out(tmp_path / "text", None)
    assert head == ["é" * 800] and tail_text == "é" * 200
    assert hold_out(tmp_path / "text", ["v"]) == (tmp_path / "text", ["v"])
    # Of a large file only the end is read, even where a character begins before it.
    monkeypatch.setattr("pocketlm.palettize.held_out._WHOLE_BYTES", 100)
    monkeypatch.setattr("pocketlm.palettize.held_out._END_CHARACTERS", 101)
    assert hold_out(tmp_path / "text", None) == (Head(tmp_path / "text", 1900), ["é" * 50])
    assert hold_out(tmp_path, None) == (tmp_path, [])  # a directory has no text
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(FileFormatError, match=r"latin: not UTF-8.*byte 3"):
        hold_out(None, tmp_path / "latin")
    with pytest.raises(MissingFileError, match="nothing"):
        hold_out(None, tmp_path / "nothing")
    for bad in ([], [" "], [7]):
        with pytest.raises(ParameterError, match="validation"):
            hold_out(None, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("whole", [1 << 20, 1000])  # read whole, and in pieces
def test_no_window_of_a_large_file_has_text_that_judges(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    model, path = open_model(source), tmp_path / "text"
    path.write_text("w1 " * 40_000 + "w2 " * 10_000)
    monkeypatch.setattr("pocketlm.palettize.held_out._WHOLE_BYTES", 1000)
    monkeypatch.setattr("pocketlm.palettize.held_out._END_CHARACTERS", 30_000)
    monkeypatch.setattr("pocketlm.palettize.text._WHOLE_BYTES", whole)
    left, (judging,) = hold_out(path, None)
    assert judging == "w2 " * 10_000 and left is not None
    windows = read_windows(left, model, window=8, tokens=2000)
    assert len(windows) == 250
    calibrating, judges = (model.read_tokenizer().inner.encode(text).ids[-1] for text in ("w1", "w2"))
    assert calibrating in windows and judges not in windows


def test_long_runs_take_fewer_tokens(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = open_model(source), [" ".join(f"w{i % 97}" for i in range(5000))]
    assert [len(ids) for ids in sequences(model, text)] == [256] * 8
    monkeypatch.setattr("pocketlm.palettize.held_out.MOST_WORK", 32 * products(model.graph) * 1100)
    assert sum(map(len, sequences(model, text))) == 1024
    monkeypatch.setattr("pocketlm.palettize.held_out.MOST_WORK", 1)
    few = sequences(model, text)
    assert sum(map(len, few)) == 512 and few[1] == sequences(model, text)[1]
    short = "w1 w2 w3 w4 " * 64
    assert sequences(model, [short]) == [model.read_tokenizer().inner.encode(short).ids]


def test_sizes_that_cannot_be_met_are_told_before_the_calibration(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("calibrated for nothing")

    monkeypatch.setattr("pocketlm.palettize.importance.Importance.prepare", never)
    for budget in ({"size": 1000}, {"bits_all": 2.0}, {"bits": 2, "kinds": "4"}):
        with pytest.raises(BudgetError, match="the nearest that can"):
            plan(source, calibration=["w1 w2 " * 700], **budget, **QUIET)


def test_few_tokens_cannot_judge(source: Path, tmp_path: Path) -> None:
    model = open_model(source)
    for text, count in (("", 0), ("w1 w2 w3", 3), ("w1 " * 255, 255)):
        with pytest.raises(ParameterError, match=f"^validation: the text has {count} tokens; at least 256"):
            sequences(model, [text])
    (tmp_path / "few").write_text("w1 w2")
    with pytest.raises(ParameterError, match=r"^validation: .*few has 2 tokens; at least 256 can judge$"):
        plan(source, validation=tmp_path / "few", **QUIET)
    (tmp_path / "text").write_text("w1 w2 " * 500)
    with pytest.raises(ParameterError, match=r"^calibration: the end of .*text, which.*--validation"):
        plan(source, calibration=tmp_path / "text", **QUIET)
    assert plan(source, calibration=["w1 w2 " * 700], kinds="4", **QUIET).measured["tokens"] >= 256


def test_texts_that_judge_are_encoded_like_any_other(source: Path, tmp_path: Path) -> None:
    text, file = " ".join(f"w{i % 89}" for i in range(300)), source / "tokenizer.json"
    plain = sequences(open_model(source), [text])
    facts = json.loads(file.read_text())
    cut = {"max_length": 5, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    padded = {
        "strategy": {"Fixed": 700},
        "direction": "Right",
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "w0",
    }
    for settings in ({"truncation": cut}, {"padding": {**padded, "pad_to_multiple_of": None}}):
        file.write_text(json.dumps({**facts, **settings}))
        assert sequences(open_model(source), [text]) == plain
    file.write_text(json.dumps(facts))
    # What cannot judge is refused as what cannot calibrate is.
    model = open_model(source)
    with pytest.raises(ParameterError, match=r"^validation: .*surrogate"):
        sequences(model, ["w1 \ud800 w2"])
    with pytest.raises(ParameterError, match=r"^validation: \d+ % of the text's tokens are unknown"):
        plan(source, validation=["x y z " * 90], **QUIET)
    for end, words in (("x y z ", "unknown"), ("w\ud800 ", "surrogate")):
        with pytest.raises(ParameterError, match=rf"^calibration: .*{words}"):
            plan(source, calibration=["w1 w2 " * 1500, end * 200], **QUIET)


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


def test_a_plan_is_a_recipe_that_makes_the_model(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    fast(monkeypatch, tmp_path)
    file = tmp_path / "r.json"
    settings: dict[str, Any] = {"bits_all": 4.5, "calibration": [TEXT], **QUIET}
    found = plan(source, recipe_out=file, **settings)
    assert names(tmp_path) == ["cache", "r.json", "src"]  # nothing else is left
    value = json.loads(file.read_text())
    assert value["budgets"]["bits_all"] == 4.5
    assert value["predicted"] == pytest.approx(found.predicted, rel=1e-3)
    assert value["measured"] == pytest.approx({"kl": found.measured_kl, "tokens": 48}, rel=1e-3)
    for name, entry in value["tensors"].items():
        assert entry["kind"] == found.recipe[name] and entry["bytes"] > 0
        assert (entry["microseconds"] > 0) == (entry["sites"] != ["embed"])
        assert entry["kl"] == pytest.approx(found.sensitivity[name][entry["kind"]], rel=1e-3)
    before = file.read_bytes()
    with full_disk(), pytest.raises(StorageError, match=r"r\.json: File too large"):
        found.save(file)
    assert file.read_bytes() == before and names(tmp_path) == ["cache", "r.json", "src"]
    report = palettize(source, tmp_path / "dst", recipe=file, **QUIET)
    assert report.recipe == found.recipe and report.bytes == found.bytes
    # Edited by hand.
    value["tensors"][UP]["kind"] = "p8"
    value["tensors"]["attn.*"] = "p2"
    file.write_text(json.dumps(value))
    known = candidates(open_model(source).graph, open_model(source).store)
    edited = read_recipe(file, known)
    assert edited[UP] == "p8"
    assert {kind for name, kind in edited.items() if "self_attn" in name} == {"p2"}


def test_a_recipe_of_everything_needs_no_budget(source: Path, tmp_path: Path) -> None:
    report = palettize(source, tmp_path / "p8", recipe={"*": "p8"}, **QUIET)
    assert set(report.recipe.values()) == {"p8"}
    # By default the others have 4 bits; an average that is asked for is kept, or refused.
    mixed = palettize(source, tmp_path / "mixed", recipe={"layers.0.*": "p8"}, **QUIET)
    assert {k for name, k in mixed.recipe.items() if ".layers.1." in name} == {"p4"}
    asked = palettize(source, tmp_path / "asked", recipe={"layers.0.attn.*": "p8"}, bits=4, **QUIET)
    projections = [tensor for tensor in asked.tensors if tensor.is_projection]
    assert sum(BITS[t.kind] * t.elements for t in projections) <= 4 * sum(t.elements for t in projections)
    with pytest.raises(BudgetError, match=r"bits 3 cannot.*nearest that can is 8"):
        palettize(source, tmp_path / "x", recipe={"*": "p8"}, bits=3, **QUIET)
    assert names(tmp_path) == ["asked", "mixed", "p8", "src"]


def test_recipes_name_what_they_do_not_know(source: Path) -> None:
    model = open_model(source)
    known = candidates(model.graph, model.store)
    assert read_recipe({"layers.*.ffn.up": "p2", UP: "p3"}, known)[UP] == "p3"
    assert set(read_recipe({"*": "p4"}, known)) == {tensor.name for tensor in known}
    assert read_recipe({"head": "p8"}, known) == {"lm_head.weight": "p8"}
    assert read_recipe({"head": 8, "layers.*": "2"}, known) == read_recipe(
        {"head": "p8", "layers.*": "p2v"}, known
    )
    entry = {"kind": "p4"}
    good = {"pocketlm_recipe": 1, "tensors": {UP: entry}}
    assert read_recipe(good, known) == {UP: "p4"}
    for bad, words in (
        ({UP.replace("up", "upp"): "p4"}, ["upp_proj", f"nearest is '{UP}'"]),
        ({"ffn.dwon": "p4"}, ["'ffn.dwon'", "nearest is 'ffn.down'"]),
        ({"fnn.*": "p3"}, ["'fnn.*'", "nearest is 'ffn.*'"]),
        ({"layer.*.ffn.down": "p3"}, ["nearest is 'layers.*.ffn.down'"]),
        ({UP: "p44"}, ["'p44'", "nearest is p4"]),
        ({5: "p4"}, ["recipe: 5 is not a name"]),
        ({None: {"kind": "p4"}}, ["recipe: None is not a name"]),
        ({UP: 5}, ["5", ", ".join(KINDS), "bits: 2, 3, 4, 8"]),
        ({UP: True}, ["True"]),
        ({UP: None}, ["None"]),
        ({**good, "tensors": {UP: {}}}, [UP, "None"]),
        ({**good, "tensors": {UP: {**entry, "bitz": 3}}}, [UP, "'bitz'"]),
        ({**good, "tensors": {"x": entry}}, ["'x'"]),
        ({**good, "tensors": [UP]}, ["'tensors'"]),
        ({"pocketlm_recipe": 1}, ["'tensors'"]),
        ({**good, "pocketlm_recipe": 2}, ["version 2"]),
        ({**good, "pocketlm_recipe": True}, ["version True"]),
        ({**good, "extra": 1}, ["'extra'"]),
    ):
        with pytest.raises(ParameterError) as error:
            read_recipe(bad, known)
        assert all(word in str(error.value) for word in words), error.value


def test_the_command_reports_and_writes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, few: None
) -> None:
    from pocketlm.cli import run as call

    fast(monkeypatch, tmp_path)
    (tmp_path / "text").write_text(TEXT)
    text = ["--calibration", str(tmp_path / "text")]
    recipe, target = tmp_path / "r.json", tmp_path / "dst"
    common = ["palettize", str(source), "--recipe-out", str(recipe), *text]
    assert call([*common, "--bits", "3", "--kinds", "2,4", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    # Not a terminal: a line for each stage.
    stages = ("calibrating: ", " tokens, once for each part", "measuring damage: ", " models")
    assert all(stage in err for stage in (*stages, "measuring times: ")) and len(err.splitlines()) == 3
    assert "would take" in out and "nats a token, predicted" in out and "tokens per second" in out
    assert "(judged by 48 tokens)" in out
    assert set(read_json_kinds(recipe)) == {BEST[2], "p4", "p8"} and not target.exists()
    assert call([*common, "--size", "1MB", "--max-kl", "0.5", "--json", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert err == "" and value["measured"]["kl"] <= 0.5 and value["budgets"]["size"] == 1_000_000
    assert value["predicted"]["bytes"] == value["bytes"] and len(value["recipe"]) > 10
    assert call([common[0], str(source), str(target), "--recipe", str(recipe), *text, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["measured"] == value["measured"] and made["bytes"] == value["bytes"]
    # A stored calibration has no text to judge by, which is said with the option that gives one.
    stored = ["--calibration", str(tmp_path / "stored")]
    assert call([common[0], str(source), str(tmp_path / "y"), *text, "--calibration-out", stored[1]]) == 0
    capsys.readouterr()
    assert call([common[0], str(source), *stored, "--bits", "2.5", "--dry-run"]) == 0
    assert "a stored calibration holds no text (--validation)" in capsys.readouterr().out
    for bad, status, word in (
        (["--size", "1kB"], 1, "nearest"),
        (["--kinds", "5"], 2, "kinds"),
        (["--size", "much"], 2, "size"),
        ([], 2, "DST"),
    ):
        assert call(["palettize", str(source), *([str(tmp_path / "x")] if bad else []), *bad]) == status
        assert word in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def read_json_kinds(path: Path) -> list[str]:
    return [entry["kind"] for entry in json.loads(path.read_text())["tensors"].values()]
