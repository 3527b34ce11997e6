"""Whether the tensors of a checkpoint are those that a graph wants."""

from __future__ import annotations

import re

from pocketlm._core import TensorInfo, WeightStore
from pocketlm.errors import WeightError
from pocketlm.graph import Embed, Graph, Linear, Weight
from pocketlm.kinds import PALETTES

DENSE = ("f32", "f16", "bf16")

# Buffers that published checkpoints carry along: tables and masks that follow from the configuration. Not
# compiled here, which would take as long as all else in this module, since most have none.
_BUFFERS = (
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(bias|masked_bias)|position_ids)$"
)
_HEADS = (".lm_head.weight", ".output.weight", ".embed_out.weight")


def stored_name(store: WeightStore, weight: Weight) -> str:
    """The tensor that holds ``weight``: its own, or the one that it repeats where the copy is left out."""
    if weight.shared_with is not None and weight.name not in store:
        return weight.shared_with
    return weight.name


def check_weights(graph: Graph, store: WeightStore, source: str) -> None:
    """Checks names, shapes and types of every tensor against the graph; reads no values.

    Raises:
        WeightError: a tensor is missing, has a wrong shape or type, or is there although the graph has no use
        for it.
    """
    matrices = {op.weight.name for op in graph.ops if isinstance(op, Linear | Embed)}
    used = set()
    for weight in graph.weights().values():
        name = stored_name(store, weight)
        if name not in store:
            raise WeightError(f"{source}: tensor {name!r} is missing")
        used.add(name)
        _check(store.info(name), weight, name in matrices)
    tied = not any(map(_is_head, used))
    for name in store.names():
        if name in used or (tied and _is_head(name)) or re.search(_BUFFERS, name):
            continue
        info = store.info(name)
        if info.kind in (*PALETTES, *DENSE):
            raise WeightError(
                f"{info.file or source}: tensor {name!r:.200} {list(info.shape)} has no place in this model: "
                "config.json describes another one"
            )


def _is_head(name: str) -> bool:
    return f".{name}".endswith(_HEADS)


def _check(info: TensorInfo, weight: Weight, is_matrix: bool) -> None:
    palettized = info.kind in PALETTES
    # Palettized matrices are always [outputs, inputs].
    wanted = weight.shape[::-1] if weight.transposed and not palettized else weight.shape
    if not palettized and info.kind not in DENSE:
        problem = f"has type {info.kind}; weights must be {', '.join((*PALETTES, *DENSE))}"
    elif palettized and not is_matrix:
        problem = f"is palettized ({info.kind}); only matrices and embeddings can be"
    elif info.shape != wanted:
        problem = f"has shape {list(info.shape)}, the model wants {list(wanted)}"
    else:
        return
    raise WeightError(f"{info.file or 'memory'}: tensor {info.name!r} {problem}")
