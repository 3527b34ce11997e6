"""Logits from mlx-lm, an implementation that is not ours (PyPI: ``mlx[cpu]`` and ``mlx-lm``)."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def available() -> bool:
    """Whether mlx-lm is installed."""
    return importlib.util.find_spec("mlx_lm") is not None and importlib.util.find_spec("mlx") is not None


def version() -> str:
    """What made the logits."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx-lm", "mlx"))


def logits(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits [tokens, vocabulary] in float32. Fails unless names and shapes are exactly mlx-lm's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that mlx-lm imports
        import mlx.core as mx

        module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    # Its models neither look at the activation nor, for Llama, at the newer form of the rotary parameters;
    # and its OpenELM knows the lists of multipliers only.
    assert config.get("hidden_act", config.get("activation_fn_name")) in ("silu", "swish")
    assert "rope_parameters" not in config
    mx.set_default_device(mx.cpu)
    mx.disable_compile()
    model = module.Model(module.ModelArgs.from_dict(dict(config)))
    model.load_weights([(name, mx.array(value)) for name, value in weights.items()], strict=True)
    return np.array(model(mx.array(ids[None].astype(np.int32)))[0])
