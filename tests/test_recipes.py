"""Recipes: plans that are written and read again, by name, by pattern, by the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from allocating import TEXT, fast
from palettizing import QUIET, UP, full_disk, names
from pocketlm.errors import BudgetError, MissingFileError, ParameterError, StorageError
from pocketlm.kinds import BEST, BITS
from pocketlm.loading import open_model
from pocketlm.palettize import palettize, plan
from pocketlm.palettize.recipe import KINDS, candidates, read_recipe


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
    # The model's own account of bits says what was asked for, not what nobody asked for.
    sections = {
        n: json.loads((tmp_path / n / "config.json").read_text())["pocketlm"] for n in ("p8", "asked")
    }
    assert "bits" not in sections["p8"] and sections["p8"]["bits_per_weight_projections"] > 8
    assert sections["asked"]["bits"] == 4
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


def test_places_that_cannot_be_written_are_named_as_given(source: Path, tmp_path: Path, few: None) -> None:
    (tmp_path / "file").write_text("x")
    for name, place in (("recipe_out", tmp_path / "file" / "r.json"), ("calibration_out", Path("/proc/c"))):
        with pytest.raises((StorageError, MissingFileError), match=f"^{place}: "):
            plan(source, calibration=[TEXT], **{name: place}, **QUIET)


def test_one_kind_everywhere_takes_no_measuring(source: Path, tmp_path: Path, few: None, capsys: Any) -> None:
    from pocketlm.cli import run as call
    from pocketlm.cli.palettize import command

    told = next(option.help for option in command.params if option.name == "bits")  # type: ignore[attr-defined]
    assert "--kinds 3 --bits 3 measures none of that" in told
    (tmp_path / "text").write_text(TEXT)
    args = ["palettize", str(source), str(tmp_path / "dst"), "--calibration", str(tmp_path / "text")]
    assert call([*args, "--kinds", "3", "--bits", "3"]) == 0
    out, err = capsys.readouterr()
    assert "calibrating: " in err and "measuring damage" not in err
    assert re.search(r"kinds +\d+ p3, 2 p8\n", out)


def test_it_is_said_what_a_text_would_do(source: Path, tmp_path: Path, capsys: Any) -> None:
    from pocketlm.cli import run as call

    args = ["palettize", str(source), str(tmp_path / "dst"), "--bits", "3.5"]
    for more in ([], ["--dry-run"]):
        assert call([*args, *more]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("A calibration text lets codes and bits follow") and "(--calibration)" in last
    assert call([*args, "--dry-run", "--json"]) == 0 and json.loads(capsys.readouterr().out)


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
    stages = ("calibrating: ", " tokens, once for each of ", " parts", "measuring damage: ", " models")
    assert all(stage in err for stage in (*stages, "measuring times: ")) and len(err.splitlines()) == 3
    found = re.search(r"calibrating: ([\d,]+) tokens, once for each of (\d+) parts", err)
    assert found is not None and int(found[1].replace(",", "")) <= len(TEXT) and int(found[2]) > 1
    assert " models, one matrix palettized in each, over 48 tokens" in err
    assert "would take" in out and "nats a token, predicted" in out and "tokens per second" in out
    assert "(judged by 48 tokens)" in out
    assert "loses far less" not in out
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
