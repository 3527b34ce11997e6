"""What the package asks for and brings along."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "pocketlm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
# Modules that only some need, and only they import.
OPTIONAL = {
    Path("interpret/jax.py"): {"jax"},
    Path("lm_eval.py"): {"lm_eval"},
    Path("palettize/blockwise.py"): {"jax", "optax"},
    Path("palettize/distil.py"): {"jax", "optax"},
    Path("palettize/extra.py"): {"jax", "optax"},  # looks whether they are there
    Path("palettize/fisher.py"): {"jax"},
    Path("palettize/recover_train.py"): {"jax"},
    Path("palettize/student.py"): {"jax"},
    Path("profile/html.py"): {"plotly"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_the_base_install_is_small() -> None:
    assert {"numpy", "tokenizers", "jinja2", "huggingface-hub", "click", "rich", "tqdm"} == BASE
    closure, waiting = set(), set(BASE)
    while waiting:
        name = waiting.pop()
        closure.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(requirement.name)} - closure
    assert not closure & {"torch", "jax", "jaxlib", "transformers", "tensorflow", "scipy", "pandas"}
    assert len(closure) < 40, sorted(closure)


def test_the_package_imports_only_what_it_asks_for() -> None:
    for path in PACKAGE.rglob("*.py"):
        optional = OPTIONAL.get(path.relative_to(PACKAGE), set())
        foreign = imported(path) - sys.stdlib_module_names - {"pocketlm"} - optional
        assert {canonicalize_name(name) for name in foreign} <= BASE, f"{path}: {sorted(foreign)}"


def test_the_bundled_model_is_small_and_whole() -> None:
    files = [file for file in (PACKAGE / "assets").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    names = {file.name for file in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert (PACKAGE / "py.typed").exists() and (PACKAGE / "_core.pyi").exists()
    source = ROOT / "models" / "pocketlm-stories" / "model.safetensors"
    assert source.stat().st_size <= 32_000_000
