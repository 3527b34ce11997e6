"""The documentation points at files and commands that exist, and its Python examples compile."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click
import pytest

import pocketlm
from pocketlm.cli.group import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "benches", ROOT / "training", ROOT / "models")
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if ".venv" not in page.parts and "out" not in page.parts
)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_examples_compile(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_decisions_are_called_by_their_number(page: Path) -> None:
    for label, number in re.findall(r"\[decision (\d+)\]\([^)]*?(\d{4})-", page.read_text(encoding="utf-8")):
        assert int(label) == int(number), f"{page}: decision {label}"


def test_commands_of_the_readme_exist() -> None:
    commands = re.findall(r"^pocketlm (\w+)", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert commands and set(commands) <= set(cli.list_commands(click.Context(cli)))


def test_the_page_on_python_names_the_whole_interface() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").replace("```", "")
    named = {word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[A-Za-z_]+", code)}
    kinds = (pocketlm.LM, pocketlm.Session, pocketlm.Stream, pocketlm.Completion, pocketlm.Chunk)
    methods = {name for kind in kinds for name in vars(kind) if not name.startswith("_")}
    fields = {name for kind in (*kinds[3:], pocketlm.SamplingParams) for name in kind.__match_args__}
    arguments = set(inspect.signature(pocketlm.load).parameters)
    errors = {name for name in vars(pocketlm.errors) if name.endswith("Error")}
    missing = (methods | fields | arguments | errors) - named
    assert not missing, sorted(missing)
