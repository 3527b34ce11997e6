"""The report in a real browser: sorting, filtering, selecting, what-if, export. Skipped where there is no
Chromium."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pocketlm.palettize import palettize
from pocketlm.palettize.recipe import recipe_kinds
from pocketlm.profile import Profile
from profiles import measured, models, quick, with_names

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = {"width": 1366, "height": 768}


def chromium(playwright: Any) -> str | None:
    """The browser that ``POCKETLM_BROWSER`` names, or the first that is installed, or playwright's own."""
    own = Path(playwright.chromium.executable_path)
    named = os.environ.get("POCKETLM_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return named or (str(own) if own.is_file() else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    with api.sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip(
                "there is no Chromium to test the report in: install the system's package, or run "
                "`playwright install chromium`, or name one in POCKETLM_BROWSER"
            )
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=300_000)
        yield running
        running.close()


def test_a_browser_is_found_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    playwright: Any = SimpleNamespace(chromium=SimpleNamespace(executable_path=str(own)))
    monkeypatch.delenv("POCKETLM_BROWSER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert chromium(playwright) is None
    own.touch()
    assert chromium(playwright) == str(own)
    (tmp_path / "bin").mkdir()
    installed = tmp_path / "bin" / "chromium"
    installed.touch(0o755)
    assert chromium(playwright) == str(installed)
    monkeypatch.setenv("POCKETLM_BROWSER", "named")
    assert chromium(playwright) == "named"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return models(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def profile(paths: tuple[Path, Path]) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        names = json.loads((paths[1] / "recipe.json").read_text())
        losses = {name: {"p2": 0.4, "p3": 0.1, "p4": 0.02, "p8": 0.001} for name in names}
        found = measured(paths[1], sensitivities=losses)
        found.measure_kinds()
    return found


@pytest.fixture(scope="module")
def page_of_profile(
    browser: Any, profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    yield from show(browser, profile, tmp_path_factory.mktemp("page"), color_scheme="light")


@pytest.fixture
def opened(page_of_profile: Any) -> Any:
    """The page as it opens. It is one for all tests: a busy machine takes long to read plotly."""
    page = page_of_profile
    page.fill("#filter", "")
    page.click("#steps button:has-text('decode')")
    page.click("[data-tab=graph]")
    page.click("#clear")
    page.evaluate("report.reset()")
    return page


def show(browser: Any, profile: Profile, folder: Path, **settings: Any) -> Iterator[Any]:
    """The page of a profile; whatever it complains about fails the test."""
    context = browser.new_context(viewport=SIZE, accept_downloads=True, **settings)
    context.set_default_timeout(300_000)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
    page.goto(profile.to_html(folder / "report.html").as_uri())
    page.wait_for_selector("#ops tbody tr")
    yield page
    context.close()
    assert problems == []


def rows(page: Any) -> list[str]:
    found: list[str] = page.eval_on_selector_all("#ops tbody tr", "all => all.map(r => r.dataset.name)")
    return found


def figure(page: Any, key: str) -> str:
    text: str = page.inner_text(f"#figures tr[data-figure={key}] td:nth-child(3)")
    return text


def test_sorting(opened: Any, profile: Profile) -> None:
    found = rows(opened)
    used = [row for row in profile.table if row.decode.share or row.prefill.share]
    assert found == [row.name for row in sorted(used, key=lambda row: -row.decode.seconds)]
    opened.click("#ops th[data-column=name]")
    assert rows(opened) == [row.name for row in used]
    opened.click("#ops th[data-column=bits]")
    assert rows(opened)[0] in [row.name for row in used if row.kind == "p8"]
    assert opened.get_attribute("#ops th[data-column=bits]", "aria-sort") == "descending"
    opened.click("#steps button:has-text('prefill')")
    opened.click("#ops th[data-column=time]")
    assert rows(opened) == [row.name for row in sorted(used, key=lambda row: -row.prefill.seconds)]


def test_filtering_and_selecting(opened: Any, profile: Profile) -> None:
    opened.fill("#filter", "ffn.*")
    shown = rows(opened)
    assert shown and all(".ffn." in name for name in shown)
    opened.click("#select-all")
    chosen = opened.eval_on_selector_all("#graph .node.chosen", "all => all.map(n => n.dataset.name)")
    assert set(chosen) == set(shown)
    opened.fill("#filter", "layers.1.* p4")
    assert set(rows(opened)) == {r.name for r in profile.table if r.layer == 1 and r.kind == "p4"}
    for text in ("[", "*[", "nothing at all", "\\"):
        opened.fill("#filter", text)
        assert rows(opened) == []
    opened.fill("#filter", "")
    # From the graph to the table, and a second one with the key held.
    opened.click("#graph .node[data-name='layers.0.attn.out']")
    opened.click("#graph .node[data-name='layers.0.ffn.down']", modifiers=["Shift"])
    marked = opened.eval_on_selector_all("#ops tr.chosen", "all => all.map(r => r.dataset.name)")
    assert set(marked) == {"layers.0.attn.out", "layers.0.ffn.down"}
    assert opened.inner_text("#selected") == "2 selected"
    opened.click("#graph .lane:has-text('layer 1') text")
    assert all(
        name.startswith("layers.1.")
        for name in opened.eval_on_selector_all("#ops tr.chosen", "all => all.map(r => r.dataset.name)")
    )


def test_what_if_and_export(opened: Any, profile: Profile, paths: tuple[Path, Path], tmp_path: Path) -> None:
    opened.fill("#filter", "ffn.*")
    opened.click("#select-all")
    opened.click("#kinds button[data-kind=p2]")
    what = profile.what_if({"ffn.*": "p2"})
    seen = opened.evaluate("() => report.predict(report.state.recipe)")
    assert seen["bytes"] == what.bytes
    assert seen["decode"] == pytest.approx(what.decode_tokens_per_second, rel=1e-9)
    assert seen["prefill"] == pytest.approx(what.prefill_tokens_per_second, rel=1e-9)
    assert seen["joules"] == pytest.approx(what.joules_per_token, rel=1e-9)
    assert seen["bits"] == pytest.approx(what.bits_per_weight_projections, rel=1e-9)
    assert seen["bitsAll"] == pytest.approx(what.bits_per_weight_all, rel=1e-9)
    assert seen["kl"] == pytest.approx(what.kl, rel=1e-9)
    assert figure(opened, "bits") == f"{what.bits_per_weight_projections:.2f}"
    # One more by its own menu, one back.
    opened.fill("#filter", "")
    opened.select_option("#ops tr[data-name='layers.0.attn.out'] select", "p8")
    opened.select_option("#ops tr[data-name='layers.1.ffn.down'] select", "p3")
    what = profile.what_if({"ffn.*": "p2", "layers.0.attn.out": "p8", "layers.1.ffn.down": "p3"})
    with opened.expect_download() as download:
        opened.click("#export")
    path = tmp_path / "recipe.json"
    download.value.save_as(path)
    exported = json.loads(path.read_text())
    assert recipe_kinds(exported, "x") == what.recipe
    written = json.loads(what.save(tmp_path / "same.json").read_text())
    assert exported["predicted"] == pytest.approx(written["predicted"], rel=1e-9)
    for name, entry in written["tensors"].items():
        microseconds = entry.pop("microseconds")
        assert exported["tensors"][name].pop("microseconds") == pytest.approx(microseconds, abs=0.011)
        assert exported["tensors"][name] == entry
    report = palettize(paths[0], tmp_path / "new", recipe=path, progress=False)
    assert report.bytes == what.bytes
    opened.click("#reset")
    assert opened.evaluate("() => report.predict(report.state.recipe).bytes") == profile.what_if().bytes


def cells(page: Any, name: str) -> dict[str, str]:
    """The texts of a row, by column; of a menu what is chosen."""
    found: dict[str, str] = page.evaluate(
        """(name) => {
          const columns = [...document.querySelectorAll('#ops th')].map((one) => one.dataset.column);
          const lines = [...document.querySelectorAll('#ops tbody tr')];
          const line = lines.find((one) => one.dataset.name === name);
          const part = (node) => (node.tagName === 'SELECT' ? node.value : node.textContent);
          const text = (cell) => [...cell.childNodes].map(part).join('');
          return Object.fromEntries([...line.cells].map((cell, at) => [columns[at], text(cell)]));
        }""",
        name,
    )
    return found


def test_the_table_shows_what_would_be(opened: Any, profile: Profile) -> None:
    """Of a row that is changed every figure that depends on the kind is the predicted one, beside the old."""
    name = "layers.0.ffn.down"
    (matrix,) = (one for one in profile.matrices if name in one.ops)
    new = "p2" if matrix.current != "p2" else "p8"
    before = cells(opened, name)
    assert before["kind"] == matrix.current and "orange" not in opened.inner_text("#remarks")
    opened.select_option(f"#ops tr[data-name='{name}'] select", new)
    after, line = cells(opened, name), f"#ops tr[data-name='{name}'] td"
    assert after["kind"] == f"{matrix.current} → {new}" and "orange" in opened.inner_text("#remarks")
    assert after["bits"] == f"{8 * matrix.bytes[new] / matrix.elements:.2f}"
    changed = opened.eval_on_selector_all(f"{line}.then", "all => all.map((one) => one.title)")
    assert f"predicted; now {before['bits']}" in changed and f"predicted; now {before['time']}" in changed
    assert f"predicted; now {before['bytes']}" in changed and f"predicted; now {before['kl']}" in changed
    orange = opened.eval_on_selector_all(f"{line}.then", "all => all.map((one) => one.classList[0])")
    assert {"bits", "bytes", "time", "rate", "memory", "roof", "energy", "kl"} <= {*orange}
    assert after["spread"] == before["spread"] and after["macs"] == before["macs"]
    assert "not predicted" in opened.get_attribute(f"{line}.stays", "title")
    # The rows add up to the step that is predicted.
    seen = opened.evaluate(
        "() => { const rows = then(); return rows.reduce((sum, r) => sum + r.decode.seconds, 0); }"
    )
    what = profile.what_if({name: new})
    assert seen == pytest.approx(what.decode_seconds, rel=1e-6)
    read = opened.evaluate(f"() => then().find((row) => row.name === '{name}').decode.bytes")
    (row,) = (row for row in profile.table if row.name == name)
    assert read == row.decode.bytes + matrix.bytes[new] - matrix.bytes[matrix.current]
    opened.evaluate("report.reset()")
    assert cells(opened, name) == before
    # What has no tensor has no divergence that could be unknown.
    assert cells(opened, "layers.0.attn")["kl"] == ""


def test_the_head_reads_its_activations_twice(opened: Any, profile: Profile) -> None:
    (head,) = (row for row in profile.table if row.name == "head")
    assert "MACs of head count twice" in opened.inner_text("#remarks")
    macs = "() => then().find((row) => row.name === 'head').decode.macs"
    outputs, inputs = head.shape or (0, 0)
    for kind, times in (("p2", 2), ("keep", 1), ("p8", 2)):
        opened.evaluate(f"report.setKind([report.matrixOf.get('head')], '{kind}')")
        assert opened.evaluate(macs) == times * outputs * inputs


def test_the_panel_stays_where_it_is(opened: Any) -> None:
    place = "JSON.stringify(document.querySelector('#kinds').getBoundingClientRect())"
    tops = set()
    for pattern in ("", "layers.0.ffn.down", "ffn.*"):
        opened.click("#clear")
        if pattern:
            opened.fill("#filter", pattern)
            opened.click("#select-all")
        tops.add(json.loads(opened.evaluate(place))["top"])
    assert len(tops) == 1
    assert opened.evaluate("(n => n.scrollWidth <= n.clientWidth)(document.querySelector('.set'))")
    # Nothing is cut: neither the remark on the power nor the last line of the changes.
    opened.evaluate("report.setKind(report.data.matrices, 'p3')")
    assert opened.evaluate("(n => n.scrollWidth <= n.clientWidth)(document.getElementById('notes'))")
    assert opened.evaluate("document.getElementById('changes').clientHeight % 18") == 0
    told = "other processes took" in opened.evaluate("document.getElementById('machine').title")
    assert told == opened.evaluate("report.data.others_cpu !== null")
    panel, note = (opened.locator(one).bounding_box() for one in (".whatif", "#notes"))
    assert note["y"] + note["height"] <= panel["y"] + panel["height"]


def test_every_view_draws(opened: Any) -> None:
    page = opened
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_selector(f":root[data-theme={scheme}]", state="attached")
        for tab, drawn in (
            ("bars", ".barlayer .point"),
            ("treemap", ".treemaplayer .slice"),
            ("roofline", ".scatterlayer .point"),
            ("tradeoff", ".scatterlayer .point"),
            ("graph", "#graph .node"),
        ):
            page.click(f"[data-tab={tab}]")
            page.wait_for_selector(drawn, state="attached")
            keep(page, f"{scheme}-{tab}")
    # Nothing sticks out of a laptop's screen.
    wide, tall = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollHeight]")
    assert wide <= SIZE["width"] and tall <= SIZE["height"]
    assert page.evaluate("(b => b.scrollWidth <= b.clientWidth)(document.querySelector('.ops .scroll'))")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.click("#theme")


def test_a_chart_selects(opened: Any) -> None:
    opened.click("[data-tab=bars]")
    opened.wait_for_selector(".barlayer .point", state="attached")
    opened.evaluate(
        """() => document.getElementById('chart').emit('plotly_click',
          {points: [{data: document.getElementById('chart').data[1], pointNumber: 1}]})"""
    )
    assert opened.eval_on_selector_all("#ops tr.chosen", "all => all.length") > 0


def test_charts_show_what_is_selected(opened: Any) -> None:
    """By what plotly draws: bars that fade or have a rim, and parts of the treemap, zoomed in or not."""
    page, down = opened, "layers.1.ffn.down"
    page.click("[data-tab=bars]")
    page.wait_for_selector(".barlayer .point", state="attached")
    style = "(all, name) => all.map((one) => one.style[name])"
    opacities = ".barlayer .point path", "all => all.map((path) => path.style.opacity)"
    assert {*page.eval_on_selector_all(*opacities)} == {"1"}
    page.click(f"#ops tr[data-name='{down}'] td")
    faded = page.eval_on_selector_all(*opacities)
    assert faded.count("1") == 1 and {*faded} == {"1", "0.35"}
    assert page.eval_on_selector_all(".barlayer .point path", style, "stroke-width").count("2px") == 1
    keep(page, "selected-bars")
    page.click("[data-tab=treemap]")
    page.wait_for_selector(".treemaplayer .slice", state="attached")
    rims = ".treemaplayer .slice path.surface", style, "stroke"
    ink = page.evaluate("getComputedStyle(document.body).color")
    assert page.eval_on_selector_all(*rims).count(ink) == 1
    keep(page, "selected-treemap")
    # A click on a layer takes all of it and zooms in; a choice in the table does not zoom out.
    page.locator(".treemaplayer .slice", has_text="layer 1").first.click(position={"x": 8, "y": 8})
    page.wait_for_function("!document.getElementById('chart')._transitioning")
    names = page.eval_on_selector_all("#ops tr.chosen", "all => all.map(r => r.dataset.name)")
    assert names and all(name.startswith("layers.1.") for name in names)
    level = "document.getElementById('chart')._fullData[0].level"
    page.wait_for_function(f"{level} === 'at layer 1'")
    page.click(f"#ops tr[data-name='{down}'] td")
    page.wait_for_timeout(300)
    assert page.evaluate(level) == "at layer 1"
    assert page.eval_on_selector_all(*rims).count(ink) == 1
    # The way back is above it.
    back = page.locator(".treemaplayer .pathbar", has_text="step").bounding_box()
    assert back["y"] >= page.locator("#chart").bounding_box()["y"] and back["height"] > 10
    keep(page, "selected-treemap-zoomed")


def test_a_loss_that_is_not_known_is_told(browser: Any, profile: Profile, tmp_path: Path) -> None:
    partly = dataclasses.replace(profile)
    partly.__dict__["matrices"] = tuple(
        dataclasses.replace(matrix, kl={kind: kl for kind, kl in matrix.kl.items() if kind != "p2"})
        for matrix in profile.matrices
    )
    for page in show(browser, partly, tmp_path):
        page.click("[data-tab=tradeoff]")
        page.wait_for_selector(".scatterlayer .point", state="attached")
        legend = page.eval_on_selector_all(".legendtext", "all => all.map(one => one.textContent)")
        assert legend == ["one site changed", "all projections", "loss unknown", "now", "what if"]
        keep(page, "loss-unknown")


def test_names_are_text(browser: Any, profile: Profile, tmp_path: Path) -> None:
    evil = "<img src=x onerror='window.hacked=1'><a href='javascript:window.hacked=1'>x</a><b>"
    for page in show(browser, with_names(profile, evil, evil), tmp_path):
        assert page.inner_text("#model") == evil and page.title().startswith(evil)
        for tab in ("bars", "treemap", "roofline", "tradeoff"):
            page.click(f"[data-tab={tab}]")
            page.wait_for_selector("#chart .main-svg", state="attached")
        assert page.evaluate("window.hacked") is None
        assert page.eval_on_selector_all("img, a", "all => all.length") == 0


def keep(page: Any, name: str) -> None:
    """Saves a picture for people to look at, where ``POCKETLM_SCREENSHOTS`` says."""
    folder = os.environ.get("POCKETLM_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(300)
        page.screenshot(path=Path(folder) / f"{name}.png")
