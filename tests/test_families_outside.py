"""Families that are not pocketlm's own: found by entry points, and told what is wrong with them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from checkpoints import write_checkpoint
from independent.cases import llama
from pocketlm._core import Engine, WeightStore
from pocketlm.builder import GraphBuilder
from pocketlm.errors import ConfigError
from pocketlm.families import build_graph, family
from pocketlm.graph import Graph, Weight


def test_a_family_that_returns_no_graph(name: str = "test-forgetful") -> None:
    @family(name)
    def build(config: Any) -> Any:
        for key in llama():
            config.raw(key)

    with pytest.raises(ConfigError, match=rf"my.json: 'model_type' is '{name}', whose family returned None"):
        build_graph(llama(model_type=name), "my.json")


def test_operations_of_one_name_are_refused() -> None:
    def graph(first: str, second: str) -> Graph:
        g = GraphBuilder("twins", 8, 16)
        x = g.embed("embed", Weight("e", (8, 6)))
        with g.layer(0):
            x = g.linear(x, first, "a", 6)
            x = g.linear(x, second, "b", 6)
        g.head(x, "e", 8)
        return g.build()

    assert len(graph("ffn.up", "ffn.down").ops) == 4
    with pytest.raises(ConfigError, match=r"'twins': two operations are called 'layers.0.ffn.up'"):
        graph("ffn.up", "ffn.up")


MODULE = """
from pocketlm.families import build_graph, family

@family({registered!r})
def build(config):
    return build_graph({{key: config.raw(key) for key in config._values}} | {{"model_type": "llama"}})
{more}
"""


def install(folder: Path, name: str, points: str, registered: str = "", more: str = "") -> None:
    """A distribution of one module, as an installer leaves it in a directory of ``sys.path``."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(MODULE.format(registered=registered or name, more=more))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pocketlm.families]\n{points}\n")


def test_families_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "outside-a", "outside-a = outside_a\noutside-a2 = outside_a:build")
    install(tmp_path, "outside-b", "outside-b = outside_b:build")
    monkeypatch.syspath_prepend(tmp_path)
    assert build_graph(llama(model_type="outside-a")) == build_graph(llama())
    assert "outside_b" not in sys.modules
    assert build_graph(llama(model_type="outside-b")) == build_graph(llama())
    with pytest.raises(ConfigError, match=r"'outside-c' is not supported; .*llama, openelm, outside-a, outs"):
        build_graph(llama(model_type="outside-c"))


@pytest.mark.parametrize(
    ("points", "registered", "more", "message"),
    [
        ("{0} = {0}_not", "", "", r"{0} = {0}_not of pocketlm.families failed: ModuleNotFoundError"),
        ("{0} = {0}:other", "", "", r"{0} = {0}:other of pocketlm.families failed: AttributeError"),
        ("{0} = {0}", "", "1 / 0", r"{0} = {0} of pocketlm.families failed: ZeroDivisionError"),
        ("{0} = {0}", "", "def", r"{0} = {0} of pocketlm.families failed: SyntaxError"),
        ("{0} = no module", "", "", r"{0} = no module of pocketlm.families failed"),
        ("{0} = {0}", "another", "", r"{0} = {0} of pocketlm.families registers no such family"),
        ("{0} = {0}\n{0} = {0}:build", "", "", r"{0} = {0} and {0} = {0}:build .*only one"),
    ],
)
def test_entry_points_that_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    points: str,
    registered: str,
    more: str,
    message: str,
) -> None:
    name = f"broken{abs(hash(request.node.name))}"
    install(tmp_path, name, points.format(name), registered, more)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"some.json: 'model_type' '{name}': .*" + message.format(name)):
            build_graph(llama(model_type=name), "some.json")


def test_known_models_look_for_no_other_packages() -> None:
    code = "from importlib import metadata; metadata.entry_points = None; import pocketlm; pocketlm.load()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_explains_the_builder() -> None:
    for name, method in inspect.getmembers(GraphBuilder, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name


def test_what_does_not_fit_together_is_refused_by_the_engine() -> None:
    g = GraphBuilder("misfit", 8, 16)
    x = g.embed("embed", Weight("e", (8, 6)))
    with g.layer(3):
        x = g.add(x, g.slice(x, "half", 0, 3), "sum")
    g.head(x, "e", 8)
    with pytest.raises(ConfigError, match=r"layers\.3\.sum.*width"):
        Engine(g.build().to_json(), WeightStore(), cache_tokens=64)


def test_the_page_about_families_says_how_to_check_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "adding" / "family.md").read_text(encoding="utf-8")
    keys, check = re.findall(r"^ *```python\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(keys), names)

    @family("test-qwen2")
    def build(config: Any) -> Graph:
        names["keys_without_a_part"](config)
        return build_graph({key: config.raw(key) for key in llama()} | {"model_type": "llama"})

    config = llama(model_type="test-qwen2", sliding_window=64, max_window_layers=2)
    write_checkpoint(tmp_path / "path" / "to" / "checkpoint", config)
    monkeypatch.chdir(tmp_path)
    exec(check, names)
    assert names["difference"] > 0
    with pytest.raises(ConfigError, match="'use_sliding_window' is True; only False is supported"):
        build_graph(config | {"use_sliding_window": True})
