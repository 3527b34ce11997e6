"""What the report's charts are given to draw: by its own scripts, with plotly and the page stood in for.
Skipped where there is no Node.js."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pocketlm.profile import Profile
from pocketlm.profile.html import _web, report_data
from profiles import measured, models, quick

NODE = shutil.which("node") or shutil.which("nodejs")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="Node.js (node), which runs the charts' scripts, is not installed"
)

# The page as far as the scripts ask: its data, and a box that notes what is drawn and who listens to clicks.
PAGE = """
const drawn = [];
const clicks = {};
const box = { on: (name, listener) => { clicks[name] = listener; }, removeAllListeners: () => {} };
const places = { data: { textContent: DATA }, chart: box };
globalThis.document = { getElementById: (id) => places[id], documentElement: {} };
globalThis.getComputedStyle = () => ({ getPropertyValue: (name) => name });
globalThis.Plotly = { react: (_, traces, layout) => { drawn.push({ traces, layout }); } };
"""
END = """
run().then((value) => console.log(JSON.stringify(value)));
"""


def run(found: Profile, script: str) -> Any:
    """What ``script``, the body of an async function, returns in the page of a profile."""
    source = PAGE.replace("DATA", json.dumps(json.dumps(report_data(found))))
    source += "\n".join(_web(name).replace('"use strict";', "") for name in ("model.js", "charts.js"))
    source += f"\nconst last = () => drawn[drawn.length - 1];\nasync function run() {{ {script} }}\n{END}"
    assert NODE is not None
    done = subprocess.run([NODE, "-"], input=source, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models(tmp_path_factory.mktemp("charts"))[1]


@pytest.fixture(scope="module")
def found(path: Path) -> Profile:
    """With losses as palettize leaves them: 2 bits were not measured."""
    names = json.loads((path / "recipe.json").read_text())
    losses = {name: {"p2v": 0.2, "p3": 0.1, "p4": 0.02, "p8": 0.001} for name in names}
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        profile = measured(path, sensitivities=losses)
        profile.measure_kinds()
    return profile


def test_a_loss_that_is_not_known_is_not_shown_as_none(found: Profile) -> None:
    traces = run(found, "report.set('tab', 'tradeoff'); return last().traces;")
    names = [trace["name"] for trace in traces if trace.get("showlegend", True)]
    assert names == ["one site changed", "all projections", "loss unknown", "now", "what if"]
    by_name = {trace["name"]: trace for trace in traces}
    for name in ("one site changed", "all projections"):
        trace = by_name[name]
        points, marker = trace["customdata"], trace["marker"]
        assert marker["color"] == [point["kl"] for point in points] and marker["cmin"] == 0
        assert points and all(0 < point["kl"] <= marker["cmax"] for point in points)
    unknown = by_name["loss unknown"]
    assert {point["kind"] for point in unknown["customdata"]} == {"p2"}
    assert all(point["kl"] is None for point in unknown["customdata"])
    assert all("loss unknown" in text for text in unknown["text"])
    # One colour that is none of the scale's, and symbols that the others do not have.
    assert unknown["marker"]["color"] == "--muted" and "colorscale" not in unknown["marker"]
    assert {*unknown["marker"]["symbol"]} == {"square-x-open", "x-thin-open"}
    # Nothing is lost: every recipe is drawn once, and the line goes through all of those for everything.
    sites = len({row.site for row in found.table if row.op == "linear"})
    assert sum(len(by_name[name]["x"]) for name in names[:3]) == (sites + 1) * 5
    assert by_name[""]["texttemplate"] == ["p2", "p2v", "p3", "p4", "p8"]


def test_losses_are_all_known_or_none_is(found: Profile, path: Path) -> None:
    show = "report.set('tab', 'tradeoff'); return last().traces;"
    values = {name: {**kinds, "p2": 0.4} for name, kinds in found.sensitivities.items()}
    for losses in (values, {}):
        matrices = tuple(
            dataclasses.replace(matrix, kl={**losses[matrix.name], "keep": 0.0} if losses else {})
            for matrix in found.matrices
        )
        changed = dataclasses.replace(found)
        changed.__dict__["matrices"] = matrices
        traces = run(changed, show)
        assert "loss unknown" not in [trace["name"] for trace in traces]
        assert any("colorbar" in trace.get("marker", {}) for trace in traces) == bool(losses)


def test_a_click_takes_the_recipe_of_its_point(found: Profile) -> None:
    script = """
        report.set("tab", "tradeoff");
        const found = [];
        for (const name of ["one site changed", "all projections", "loss unknown", "now"]) {
          const data = last().traces.find((trace) => trace.name === name);
          clicks.plotly_click({ points: [{ data, pointNumber: 0 }] });
          found.push([...new Set(report.state.recipe.values())].sort());
        }
        return found;
    """
    site, whole, unknown, now = run(found, script)
    assert "p2v" in site and "p2v" in whole and "p2" in unknown and now == unknown


def test_an_exported_recipe_is_as_python_writes_it(found: Profile, tmp_path: Path) -> None:
    script = """
        report.setKind(report.data.matrices.filter((matrix) => matrix.ops[0].includes("ffn")), "p3");
        return report.recipeText();
    """
    exported = json.loads(run(found, script))
    written = json.loads(found.what_if({"ffn.*": "p3"}).save(tmp_path / "recipe.json").read_text())
    assert exported["predicted"] == written["predicted"]
    for entries in (exported["tensors"], written["tensors"]):
        for entry in entries.values():
            del entry["microseconds"]  # halves are rounded otherwise
    assert exported == written


@pytest.mark.parametrize("measure", ["time", "bytes"])
def test_bars_show_what_is_selected(found: Profile, measure: str) -> None:
    script = f"""
        report.set("measure", "{measure}");
        report.set("tab", "bars");
        const before = last().traces;
        report.choose(["layers.1.ffn.down", "head"]);
        return [before, last().traces, (report.choose([]), last().traces)];
    """
    before, chosen, after = run(found, script)
    for traces, names in ((before, []), (chosen, ["layers.1.ffn.down", "head"]), (after, [])):
        seen = []
        for trace in traces:
            marker = trace["marker"]
            assert len(marker["opacity"]) == len(marker["line"]["width"]) == len(trace["x"])
            for rows, opacity, width in zip(
                trace["customdata"], marker["opacity"], marker["line"]["width"], strict=True
            ):
                selected = bool({*rows} & {*names})
                assert (width > 0) == selected and (opacity == 1) == (selected or not names)
                seen += [name for name in names if name in rows]
        assert sorted(seen) == sorted(names)


def test_the_treemap_shows_what_is_selected(found: Profile) -> None:
    script = """
        report.set("tab", "treemap");
        const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
        const names = report.rows.filter((row) => row.layer === 1).map((row) => row.name);
        const count = drawn.length;
        box._transitioning = true;  // a click zooms as well
        report.choose(["layers.0.ffn.down", ...names]);
        await wait(120);
        const during = drawn.length - count;
        box._transitioning = false;
        await wait(120);
        return [during, drawn.length - count, last().traces[0], drawn[count - 1].traces[0]];
    """
    during, after, tree, before = run(found, script)
    assert (during, after) == (0, 1)
    assert tree["uirevision"] == before["uirevision"]  # so that it stays zoomed in
    assert {*before["marker"]["line"]["color"]} == {"--panel"}
    colors = zip(tree["ids"], tree["marker"]["line"]["color"], strict=True)
    outlined = {name for name, color in colors if color == "--ink"}
    used = {f"op {row.name}" for row in found.table if row.layer == 1 and row.decode.seconds}
    assert outlined == {"op layers.0.ffn.down", "at layer 1", *used}


def test_the_other_charts_stay_as_they_are(found: Profile) -> None:
    script = """
        const counts = {};
        for (const tab of ["graph", "tradeoff", "roofline", "bars"]) {
          report.set("tab", tab);
          const count = drawn.length;
          report.choose(["layers.0.ffn.down"]);
          counts[tab] = drawn.length - count;
        }
        return counts;
    """
    assert run(found, script) == {"graph": 0, "tradeoff": 0, "roofline": 1, "bars": 1}


def test_kinds_are_told_apart_in_the_roofline(found: Profile) -> None:
    """In one order, each with a colour and a shape of its own; why dots lie above the roof is said."""
    drawn = run(found, "report.set('tab', 'roofline'); return last();")
    kinds = [trace for trace in drawn["traces"] if trace["name"] != "roof"]
    order = ["p2", "p2v", "p3", "p4", "p8", "bf16", "attention"]
    names = [trace["name"] for trace in kinds]
    assert names == [name for name in order if name in names] and len(names) > 2
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in kinds}
    assert (
        len(looks) == len({color for color, _ in looks}) == len({symbol for _, symbol in looks}) == len(kinds)
    )
    for factor, above in ((1e9, False), (1e-9, True)):
        script = f"""
          report.data.machine.read_bandwidth *= {factor}; report.data.machine.int8_peak *= {factor};
          for (const row of report.rows) row.decode.roof_seconds /= {factor};
          report.set('tab', 'roofline'); return last().layout.annotations.map((one) => one.text);"""
        assert any("caches" in text for text in run(found, script)) == above


def test_labels_of_kinds_of_two_bits_do_not_overlap(found: Profile) -> None:
    traces = run(found, "report.set('tab', 'tradeoff'); return last().traces;")
    (line,) = (trace for trace in traces if trace["mode"] == "lines+markers+text")
    sides = dict(zip(line["texttemplate"], line["textposition"], strict=True))
    assert sides["p2"] == "middle left" and sides["p2v"] == "middle right" and sides["p4"] == "top center"
