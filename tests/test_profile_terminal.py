"""The tables in the terminal: they fit it, show what was asked for, and say what their figures are."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pocketlm.abbreviated import abbreviated, least_width
from pocketlm.cli import run
from pocketlm.cli.common import wrapped
from pocketlm.cli.profile import command
from pocketlm.clock import Clock
from pocketlm.errors import ParameterError
from pocketlm.profile import Profile, Table, WhatIf
from pocketlm.profile.columns import COLUMNS, chosen, digits, figure
from pocketlm.profile.lines import SORTS, lines, ordered, total
from pocketlm.profile.terminal import heading, notes, prediction, tables
from profiles import measured, models, quick

STEPS = ("decode", "prefill")
FAMILIES = ("llama", "tied", "openelm")
TITLES = {"spread": "±", "macs": "MACs", "rate": "GB/s", "memory": "of mem", "kl": "KL"}


@pytest.fixture(scope="module", params=FAMILIES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """With every sensitivity known: 0.5 for each tensor."""
    path = models(tmp_path_factory.mktemp(request.param), request.param)[1]
    names = json.loads((path / "recipe.json").read_text())
    losses = {name: dict.fromkeys(("p2", "p2v", "p3", "p4", "p8"), 0.5) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        return measured(path, sensitivities=losses)


def printed(found: Profile, width: int, **settings: Any) -> tuple[list[list[str]], tuple[str, ...]]:
    """The lines of each table, and the columns."""
    made, columns = tables(found, found.table, width=width, **settings)
    texts = []
    for one in made:
        out = io.StringIO()
        Console(file=out, width=10_000).print(one)
        texts.append(out.getvalue().splitlines())
    return texts, columns


@pytest.mark.parametrize("by", ["site", "layer", "op"])
def test_tables_fit_80_columns(found: Profile, by: str) -> None:
    texts, columns = printed(found, 80, by=by, top=3)
    assert {"kind", "bits", "bytes", "time", "spread", "rate", "memory", "share", "bound"} <= {*columns}
    for step, text in zip(STEPS, texts, strict=True):
        groups = lines(found.table, by, step)
        assert sum(line.seconds for line in groups) == pytest.approx(found.total(step).seconds)
        assert all(len(line) <= 80 for line in text) and "…" not in text[0]
        assert all("…" not in line[26:] for line in text), text  # only names give way
        assert text[0].rstrip().endswith("bound")
        assert "100.0%" in text[-1] and text[-1].startswith("sum")  # of all, so it comes last
        assert text[-2].strip() == f"and {len(groups) - 3} more"


@pytest.mark.parametrize("by", ["site", "op"])
def test_no_column_goes_where_there_is_more_room(found: Profile, by: str) -> None:
    shown: set[str] = set()
    for width in range(30, 200):
        columns = {*tables(found, found.table, width=width, by=by)[1]}
        assert shown <= columns, width
        shown = columns


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_as_many_columns_are_shown_as_there_is_room_for(found: Profile, width: int) -> None:
    for by in ("site", "op"):
        texts, columns = printed(found, width, by=by)
        assert all(len(line) <= width for text in texts for line in text)
        assert [*columns] == [name for name in COLUMNS if name in columns]
        assert len(columns) == len(COLUMNS) or width < 120


@pytest.mark.parametrize("width", [30, 40, 50, 60, 70])
@pytest.mark.parametrize("by", ["site", "layer", "op"])
def test_names_stay_apart_in_a_narrow_terminal(found: Profile, by: str, width: int) -> None:
    texts, columns = printed(found, width, by=by, sort="order")
    assert width < 60 or {"kind", "bits", "bytes", "time", "share"} <= {*columns}
    for step, text in zip(STEPS, texts, strict=True):
        whole = [*(line.name for line in lines(found.table, by, step)), "sum"]
        names = [line.split("  ")[0].split()[0] for line in text[1:]]
        assert len({*names}) == len(names) == len(whole)
        for name, full in zip(names, whole, strict=True):
            head, gap, tail = name.partition("…")
            assert name == full or (gap and full.startswith(head) and full.endswith(tail) and tail)


def test_names_are_shortened_by_whole_parts() -> None:
    sites = ["layers.*.attn.q.norm", "layers.*.attn.k.norm", "layers.*.ffn.norm", "head"]
    assert [*abbreviated(sites, 16).values()][:3] == ["lay…attn.q.norm", "lay…attn.k.norm", "lay…*.ffn.norm"]
    assert [*abbreviated(sites, 12).values()] == ["lay…q.norm", "lay…k.norm", "lay…ffn.norm", "head"]
    layers = [f"layers.{layer}.{site}" for layer in (1, 6, 16, 61) for site in ("attn.q.norm", "ffn.norm")]
    for width in range(5, 30):
        for name, short in abbreviated(layers, width).items():
            layer, site = name.split(".", 2)[1:]
            assert short == name or re.fullmatch(rf"(l|la|lay)?…{layer}\.{site}", short)
    assert least_width(layers) == len("…16.attn.q.norm") and least_width([]) == 12
    tensors = ["transformer.token_embeddings.weight", "transformer.norm.weight"]
    assert [*abbreviated(tensors, 26).values()] == ["tra…oken_embeddings.weight", tensors[1]]
    alike = ["a" * 30 + "b", "a" * 31]  # nothing but the end tells them apart
    assert len({*abbreviated(alike, 12).values()}) == 2


def header(text: list[str]) -> list[str]:
    words = text[0].replace("of mem", "of_mem").replace("roof ", "roof_").split()
    return [word.replace("_", " ") for word in words]


def test_columns_that_are_asked_for_are_shown(found: Profile) -> None:
    texts, columns = printed(found, 30, columns=chosen("KL, energy,shape,roof,kl"))
    assert columns == ("kl", "energy", "shape", "roof")
    for step, text in zip(STEPS, texts, strict=True):
        assert header(text)[0] == step and header(text)[1] == "KL" and header(text)[3] == "shape"
        assert all(len(line) > 30 for line in text)  # whole, however narrow the terminal
    every, columns = printed(found, 10_000, columns=tuple(COLUMNS))
    assert columns == tuple(COLUMNS) and len(header(every[0])) == len(COLUMNS) + 1
    for name, title in TITLES.items():
        assert header(every[0])[1 + [*COLUMNS].index(name)] == title
    with pytest.raises(ParameterError, match=r"'tiem' is no column; .*; the nearest is 'time'$"):
        chosen("bytes,tiem")
    assert chosen("read,GB/s,of mem,±") == ("bytes", "rate", "memory", "spread")  # as tables call them
    for odd in ("colour", "kind,colour", ""):
        with pytest.raises(ParameterError, match=r"^columns: .*there are kind, shape, .*bound"):
            chosen(odd)
    assert all(name in next(p.help for p in command.params if p.name == "columns") for name in COLUMNS)  # type: ignore[attr-defined]


def test_lines_are_sums(found: Profile) -> None:
    for step in STEPS:
        for by in ("site", "layer", "op"):
            groups, whole = lines(found.table, by, step), total(found.table, step)
            assert whole.joules == pytest.approx(found.total(step).joules)
            for name in ("joules", "macs", "bytes", "roof_seconds", "seconds"):
                parts = [getattr(line, name) for line in groups]
                assert sum(parts) == pytest.approx(getattr(whole, name))
        tensors = {row.tensor for row in found.table if row.tensor}
        assert whole.kl == pytest.approx(0.5 * len(tensors))  # a tied one once
        (down,) = (line for line in lines(found.table, "site", step) if line.name == "layers.*.ffn.down")
        rows = [row for row in found.table if row.site == "ffn.down"]
        assert down.kl == 0.5 * len(rows) and {*down.shapes} == {row.shape for row in rows}
        norm = next(line for line in lines(found.table, "op", step) if line.name == "norm")
        assert norm.kl == 0 and not norm.has_kinds


@pytest.mark.parametrize("sort", [*SORTS, "name", "order"])
def test_lines_are_sorted_by_what_a_column_shows(found: Profile, sort: str) -> None:
    line = lines(found.table, "op", "decode")
    names = [one.name for one in ordered(line, sort)]
    assert sorted(names) == sorted(one.name for one in line)
    if sort == "energy":
        assert names[0] == max(line, key=lambda one: one.joules).name
    if sort == "macs":
        assert names[0] == max(line, key=lambda one: one.macs).name


def test_losses_that_are_not_known_are_said_to_be(found: Profile) -> None:
    rows = Table(
        dataclasses.replace(row, sensitivity=None if row.site == "ffn.down" else row.sensitivity)
        for row in found.table
    )
    (down,) = (line for line in lines(rows, "site", "decode") if line.name == "layers.*.ffn.down")
    text = COLUMNS["kl"].text
    assert text(down, None) == text(total(rows, "decode"), None) == "–"  # type: ignore[arg-type]
    unknown = Table(dataclasses.replace(row, sensitivity=None) for row in found.table)
    columns = tables(found, unknown, width=200)[1]
    assert "kl" not in columns and len(columns) == len(COLUMNS) - 1
    assert any("KL" in line for line in notes(found, unknown, STEPS, chosen("kl")))


def test_figures_take_few_characters() -> None:
    for value in (0.0, 1e-5, 0.0123, 1.234, 99.95, 999.4, 999.6, 1003.2, 54321.0, math.pi):
        for most in (2, 3):
            text = figure(value, most)
            assert "e" not in text and len(text) <= 6
            if text != "<0.01":
                assert float(text) == pytest.approx(value, rel=0.5 * 10 ** (1 - most), abs=1e-12)


def test_a_figure_has_no_more_digits_than_its_spread_leaves() -> None:
    assert [digits(1.0, spread) for spread in (0.0, 0.04, 0.1, 0.6, 3.0)] == [3, 3, 2, 1, 1]
    assert figure(0.0618, digits(0.0618, 0.051)) == "0.06"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_are_wrapped_between_words(found: Profile, width: int) -> None:
    for line in heading(found):
        lines = wrapped([line], width)
        assert max(map(len, lines)) <= width and " ".join(lines).split() == line.split()
        begin = 9 if line.startswith(("decode", "prefill", "power", "others")) else 2
        assert all(one.startswith(" " * begin) and one[begin] != " " for one in lines[1:])
    assert wrapped(["wrote        " + "x" * 100], 80)[-1].strip() == "x" * 100  # nothing breaks a word


def test_nothing_is_said_of_a_step_that_is_not_asked_for(found: Profile) -> None:
    assert not any("prefill" in line for line in heading(found, ["decode"]))
    now, then = known(found, 0.0051), known(found, 0.0241)
    assert not any("prefill" in line for line in prediction(now, then, ["x"], ["decode"]))
    assert any("prefill" in line for line in prediction(now, then, ["x"]))


def known(found: Profile, kl: float | None) -> WhatIf:
    """A prediction of that divergence."""
    unknown = () if kl is not None else ("w",)
    return WhatIf({"w": "p2"}, {}, {"w": ("p4", "p2")}, 10, 2.0, 2.0, 1e-3, 1e-3, 1e3, 1e3, 1e-3, kl, unknown)


def test_a_divergence_is_told_beside_that_of_now(found: Profile) -> None:
    def told(before: float | None, then: float | None) -> str:
        said = prediction(known(found, before), known(found, then), ["x"])
        return next(line for line in said if line.startswith("divergence")).split(maxsplit=1)[1]

    assert told(0.0051, 0.0241) == "0.0051 → 0.0241 nats a token"
    assert told(None, 0.0241) == "not known → 0.0241 nats a token"
    assert told(0.0051, None) == "0.0051 → not known: no sensitivity to p2 of 1 tensor"
    assert told(None, None) == "not known: no sensitivity to p2 of 1 tensor"


def test_a_profile_prints_short(found: Profile) -> None:
    assert "decode" in repr(found) and f"{len(found.table)} rows" in repr(found) and len(repr(found)) < 300
    what = known(found, 0.0241)
    assert repr(what).startswith("WhatIf(1 of 1 tensors changed: 10 bytes") and "0.0241" in repr(what)
    assert "KL not known" in repr(known(found, None))


def test_it_is_said_what_others_took(found: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(share: float | None) -> list[str]:
        return [one for one in heading(dataclasses.replace(found, others_cpu=share)) if "other proc" in one]

    assert said(0.374) == ["others   other processes took 37% of the machine meanwhile"] and not said(None)
    assert found.to_dict()["others_cpu"] == found.others_cpu
    assert (found.others_cpu is None) == (Clock.started() is None) and 0 <= (found.others_cpu or 0) <= 1
    monkeypatch.setattr(Clock, "now", no_clock)
    assert Clock.started() is None


def no_clock() -> Clock:
    raise FileNotFoundError("/proc/stat")


def test_it_is_said_what_figures_are(found: Profile) -> None:
    # One prefill has no quartiles, many decode steps have.
    assert found.decode.steps == 20 and found.prefill.steps == 1
    decode, prefill = [line for line in heading(found) if line.startswith(("decode", "prefill"))]
    assert "±" in decode and "±" not in prefill

    def said(rows: Table, steps: Sequence[str], columns: str = "spread,memory") -> str:
        return "\n".join(notes(found, rows, steps, chosen(columns)))

    assert "quartiles" in said(found.table, ["decode"])
    assert "quartiles" not in said(found.table, ["prefill"]) + said(found.table, ["decode"], "memory")
    assert "cache" in said(found.table, ["decode"], "bytes") and not said(found.table, ["decode"], "kind")
    assert "–" not in said(found.table, ["decode"], "kl")
    unknown = Table(dataclasses.replace(row, sensitivity=None) for row in found.table)
    assert "–" in said(unknown, ["decode"], "kl")
    same = len({row.tensor for row in found.table if row.name in ("embed", "head")}) == 1
    assert ("embed and head are one tensor" in said(found.table, ["decode"], "kl")) == same
    heads = [row for row in found.table if row.name == "head"]
    twice = bool(heads) and heads[0].decode.macs == 2 * math.prod(heads[0].shape or ())
    assert ("MACs of the head count twice" in said(found.table, ["decode"], "macs")) == twice
    assert not heads or twice
    assert "roofs" in said(found.table, ["decode"], "roof") and "nats" in said(found.table, ["decode"], "kl")
    for share in (0.9, 1.1):
        cost = dataclasses.replace(found.table[0].decode, bandwidth_share=share)
        rows = Table([dataclasses.replace(found.table[0], decode=cost)])
        assert ("caches" in said(rows, ["decode"])) == (share > 1)


def test_the_command_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    path = models(tmp_path)[1]
    few = ["profile", str(path), "--prompt", "40", "--context", "9", "--repeats", "1", "--no-cache"]

    def table(*args: str) -> list[str]:
        assert run([*few, "--step", "decode", *args]) == 0
        return capsys.readouterr().out.split("\n\n")[1].splitlines()

    assert "MACs" not in table()[0] and max(map(len, table())) <= 80
    assert [len(header(table("--wide"))), len(header(table("--columns", "energy,MACs")))] == [15, 3]
    monkeypatch.setenv("COLUMNS", "200")
    assert "MACs" in table()[0] and "shape" in table()[0]
    for args, words in (
        (["--columns", "x"], "--columns: 'x' is no"),
        (["--wide", "--columns", "kl"], "--wide"),
    ):
        assert run([*few, *args]) == 2 and words in capsys.readouterr().err
