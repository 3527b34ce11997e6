"""Which modules ``target_modules`` of an adapter cover: what PEFT writes is taken, misfits are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
from checkpoints import write_checkpoint
from independent.cases import llama, openelm
from pocketlm import errors
from pocketlm.loading import open_model

SMALL = ["q_proj", "v_proj"]
REGEX = r".*\.(?:self_attn|mlp)\.(?:q|v)_proj$"


def only(config: dict[str, Any], endings: list[str]) -> dict[str, adapters.Pair]:
    found = adapters.pairs(config)
    return {name: pair for name, pair in found.items() if name.split(".")[-2] in endings}


@pytest.mark.parametrize(
    "targets",
    [
        SMALL,
        ["self_attn.q_proj", "v_proj", "model.layers.0.self_attn.v_proj"],
        REGEX,
        "ALL-linear",
        "all-linear",
        None,
        r"(?:.*?(?:text|layers).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bother\.[\d]{1,}\.x)",
        "(a+)+$",  # not run: the tensors say what they are for
    ],
)
def test_targets_as_peft_writes_them(tmp_path: Path, targets: Any) -> None:
    found = only(llama(), SMALL)
    path = write_checkpoint(tmp_path / "m", llama())
    adapters.write(path, found, target_modules=targets)
    model = open_model(path)
    assert model.adapter is not None and set(model.adapter.terms) == set(found)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (SMALL, errors.AdapterError, "adapter_config.json: target 'q_proj' has no place"),
        (["qkv_proj", "proj"], errors.AdapterError, "adapter_config.json: target 'proj' has no place"),
        (["qkv_proj", "layers.0.attn.v_proj"], errors.AdapterError, "target 'layers.0.attn.v_proj'"),
        (["qkv_proj", ""], errors.AdapterError, "target ''"),
        (["proj_1"], errors.AdapterError, "adapter_model.*qkv_proj' is none of the 'target_modules'"),
        (["layers.0.attn.qkv_proj"], errors.AdapterError, "layers.1.attn.qkv_proj' is none"),
        ([], errors.AdapterError, "qkv_proj' is none"),
        (7, errors.AdapterError, "'target_modules' must be"),
        (["qkv_proj", 7], errors.AdapterError, "'target_modules' must be"),
    ],
)
def test_targets_that_are_refused(tmp_path: Path, targets: Any, error: type[Exception], message: str) -> None:
    path = write_checkpoint(tmp_path / "m", openelm())
    adapters.write(path, only(openelm(), ["qkv_proj"]), target_modules=targets)
    with pytest.raises(error, match=message):
        open_model(path)


def test_all_linear_leaves_out_the_head(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", llama())
    found = {"lm_head.weight": (np.zeros((5, 72), np.float32), np.zeros((97, 5), np.float32))}
    adapters.write(path, found, target_modules="all-linear")
    with pytest.raises(errors.AdapterError, match="'lm_head' is none of the 'target_modules'"):
        open_model(path)
    adapters.write(path, found, target_modules=["lm_head"])
    assert open_model(path).adapter is not None
