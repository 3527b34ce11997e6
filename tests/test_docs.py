"""The documentation points at files and commands that exist, and its Python examples compile."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

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
