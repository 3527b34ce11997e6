"""Whole models give the same bits on every instruction set that this machine has: logits and text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import write_checkpoint
from independent.cases import llama
from pocketlm import _core
from tokenizer_files import byte_level, save

LEVELS = [name for name, available in _core.isa_levels() if available]
PROGRAM = """
import hashlib, json, sys
import numpy as np
import pocketlm
from pocketlm import _core

found = {"level": _core.current_isa()}
for kv in ("f16", "int8"):
    with pocketlm.load(sys.argv[1] or None, kv_dtype=kv, threads=2, cache_tokens=512) as lm:
        ids = np.random.default_rng(5).integers(3, 250, 150).tolist()
        # One row, a few, and panels of many.
        for count in (1, 2, 7, 16, 17, 150):
            found[f"{kv} {count}"] = hashlib.sha256(lm.logits(ids[:count]).tobytes()).hexdigest()
        options = {"max_tokens": 40, "temperature": 0.8, "seed": 3, "ignore_eos": True}
        batch = lm.generate([ids[:9], ids[:30], ids[:9] * 4], **options)
        found[f"{kv} text"] = [list(one.tokens) for one in batch]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 16-bit weights."""
    tokenizer = byte_level()
    directory = tmp_path_factory.mktemp("levels") / "tiny"
    write_checkpoint(directory, llama(vocab_size=tokenizer.get_vocab_size()))
    return save(directory, tokenizer)


def run(level: str, model: str) -> dict[str, object]:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, model],
        env={**os.environ, "POCKETLM_ISA": level},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, object] = json.loads(found.stdout)
    assert result.pop("level") == level
    return result


@pytest.mark.parametrize("form", ["bundled", "16 bits"])
def test_all_levels_give_the_same_bits(form: str, dense: Path) -> None:
    model = "" if form == "bundled" else str(dense)
    first, *others = (run(level, model) for level in LEVELS)
    print(f"compared: {', '.join(LEVELS)}")
    for level, other in zip(LEVELS[1:], others, strict=True):
        assert other == first, level


def test_a_level_that_is_not_here_is_refused_by_name() -> None:
    missing = [name for name, available in _core.isa_levels() if not available]
    for level in [*missing[:1], "avx1024"]:
        found = subprocess.run(
            [sys.executable, "-c", "import pocketlm; pocketlm.load()"],
            env={**os.environ, "POCKETLM_ISA": level},
            capture_output=True,
            text=True,
        )
        assert found.returncode == 1
        assert f'UnsupportedError: POCKETLM_ISA="{level}"' in found.stderr, found.stderr
