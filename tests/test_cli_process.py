"""The command line and the package as a user's shell sees them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from test_packaging import OPTIONAL, PACKAGE

PYTHON = [sys.executable, "-W", "error"]


def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, *args], capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["generate", "--nonsense"], 2),
        (["inspect", "/nowhere"], 1),
        ([], 0),
        (["fly"], 2),
    ],
)
def test_exit_status(args: list[str], status: int) -> None:
    found = run("-m", "pocketlm", *args)
    assert found.returncode == status and "Traceback" not in found.stderr
    if status:
        assert found.stderr.count("\n") == 1 and found.stderr.startswith("pocketlm: error: ")
    else:
        assert not found.stderr


def test_a_closed_pipe_is_no_failure() -> None:
    script = f"{sys.executable} -m pocketlm --help | true; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() in ("0", "141") and not found.stderr


def test_importing_the_package_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import pocketlm; "
        "heavy = {'numpy', 'jax', 'tokenizers', 'jinja2', 'click', 'rich', 'torch', 'transformers'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "assert len(set(sys.modules) - before) < 60, sorted(set(sys.modules) - before)"
    )
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


def test_token_ids_to_token_ids_need_no_slow_imports() -> None:
    code = (
        "import sys, pocketlm; lm = pocketlm.load(); [*lm.stream([5, 6, 7], max_tokens=2)]; "
        "slow = {'numpy', 'tokenizers', 'jinja2', 'dataclasses', 'inspect', 'asyncio', 'huggingface_hub'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


def test_every_module_can_be_imported_first() -> None:
    # Many are imported late, in whatever order a program asks for them.
    files = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    plain = [
        file for file in files if file not in OPTIONAL and file.name not in ("__init__.py", "__main__.py")
    ]
    names = [".".join(["pocketlm", *file.with_suffix("").parts]) for file in plain]
    code = """
import importlib, sys
for name in sys.argv[1:]:
    for known in list(sys.modules):
        if known.startswith("pocketlm.") and known != "pocketlm._core":
            del sys.modules[known]
    importlib.import_module(name)
"""
    found = run("-c", code, *names)
    assert found.returncode == 0, found.stderr


def test_names_of_a_package_come_when_asked_for() -> None:
    code = """
import pocketlm.loading
assert dir(pocketlm.loading) == ["LoadedModel", "open_model"] and not hasattr(pocketlm.loading, "nothing")
from pocketlm.loading import *
assert open_model is pocketlm.loading.model.open_model and LoadedModel is pocketlm.loading.model.LoadedModel
"""
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


def test_kinds_of_errors_are_there_without_another_import() -> None:
    code = "import pocketlm; assert issubclass(pocketlm.errors.ContextLengthError, pocketlm.PocketlmError)"
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


def test_using_the_package_imports_no_extras() -> None:
    code = (
        "import sys, pocketlm; [getattr(pocketlm, name) for name in pocketlm.__all__]; "
        "extras = {'jax', 'optax', 'torch', 'transformers', 'plotly', 'starlette', 'ray', 'scipy'}; "
        "assert not extras & set(sys.modules), extras & set(sys.modules)"
    )
    found = run("-c", code)
    assert found.returncode == 0, found.stderr


def test_every_public_name_is_there() -> None:
    import pocketlm

    assert sorted(pocketlm.__all__) == sorted(set(pocketlm.__all__)) == sorted(dir(pocketlm))
    assert callable(pocketlm.load) and callable(pocketlm.palettize)
    with pytest.raises(AttributeError, match="nothing"):
        _ = pocketlm.nothing
