"""The files of an adapter, opened beside a model's weights."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pocketlm._core import WeightStore
from pocketlm.adapters.attach import LowRank
from pocketlm.adapters.config import CONFIG, WEIGHTS, WEIGHTS_INT8, read_config
from pocketlm.adapters.targets import covered
from pocketlm.errors import AdapterError, UnsupportedError
from pocketlm.graph import Embed, Graph, Linear
from pocketlm.loading.check import DENSE

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model: where it is, and its terms by the names of the weights they belong to."""

    path: Path
    terms: dict[str, LowRank]

    @property
    def tensors(self) -> set[str]:
        """Names of its tensors."""
        return {name for term in self.terms.values() for name in (term.a, term.b)}


def open_adapter(directory: Path, graph: Graph, store: WeightStore) -> Adapter:
    """Maps an adapter's weights into ``store`` and checks them against the graph; reads no values.

    Raises:
        MissingFileError, StorageError: a file is missing or cannot be read.
        FileFormatError: the file of weights is damaged.
        AdapterError: it does not fit the model: a target that the model has not, a module that is no target,
            a wrong shape or rank, half of a pair.
        UnsupportedError: it asks for what is not supported; names the option or tensor.
    """
    config = read_config(directory)
    path = directory / (WEIGHTS_INT8 if config.int8 else WEIGHTS)
    products = {op.weight.name: op.weight for op in graph.ops if isinstance(op, Linear)}
    modules = [name.removesuffix(".weight") for name in products]
    head = graph.head()
    last = None if head is None else head.weight.name.removesuffix(".weight")
    targets = covered(config.targets, modules, last, directory / CONFIG)
    before = set(store.names())
    store.open(path)
    tables = {op.weight.name for op in graph.ops if isinstance(op, Embed)}
    pairs: dict[str, dict[str, str]] = {}
    for name in sorted(set(store.names()) - before):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsupportedError(f"{path}: tensor {name!r:.200} is none of LoRA's on projections")
        pairs.setdefault(match[1], {})[match[2]] = name
    if not pairs:
        raise AdapterError(f"{path}: holds no weights")
    terms = {}
    for module, pair in pairs.items():
        weight = products.get(f"{module}.weight")
        if weight is None or weight.name in tables:
            what = "is an embedding" if weight is not None else "has no place in this model"
            raise AdapterError(f"{path}: target {module!r:.200} {what}")
        if module not in targets:
            raise AdapterError(f"{path}: target {module!r:.200} is none of the 'target_modules' of {CONFIG}")
        if len(pair) < 2:
            raise AdapterError(f"{path}: target {module!r:.200} has lora_{next(iter(pair))} alone")
        rank = config.rank_of(module)
        outputs, inputs = weight.shape
        for name, shape in ((pair["A"], (rank, inputs)), (pair["B"], (outputs, rank))):
            info = store.info(name)
            if info.kind not in (*DENSE, "p8"):
                raise AdapterError(f"{path}: tensor {name!r:.200} has type {info.kind}")
            if info.shape != shape:
                raise AdapterError(
                    f"{path}: tensor {name!r:.200} has shape {list(info.shape)}; with rank {rank} this model "
                    f"wants {list(shape)}"
                )
        terms[weight.name] = LowRank(pair["A"], pair["B"], rank, config.scale_of(module))
    return Adapter(directory, terms)
