"""Opens a model: configuration to graph, weights mapped and checked against it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm._core import WeightStore
from pocketlm.errors import ConfigError, MissingFileError, TemplateError
from pocketlm.families import build_graph
from pocketlm.graph import Graph
from pocketlm.loading.check import check_weights
from pocketlm.loading.files import read_json, read_optional_json, read_text, require_directory, storage_errors
from pocketlm.loading.place import ADAPTERS, RECOVERY, TOKENIZER, check_adapter, locate
from pocketlm.loading.safetensors import open_weights
from pocketlm.loading.tokenizer import ReadTokenizer, check_tokenizer, read_tokenizer
from pocketlm.records import dataclass

if TYPE_CHECKING:
    from pocketlm.adapters.files import Adapter


@dataclass(frozen=True)
class LoadedModel:
    """A model whose files are open and whose weights fit its graph.

    ``graph`` and ``store`` include the recovery adapter, if one is attached.
    """

    path: Path
    config: dict[str, Any]
    graph: Graph
    store: WeightStore
    generation_config: dict[str, Any]
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    adapter: Adapter | None = None

    @property
    def tokenizer_path(self) -> Path:
        """Where the tokenizer is; it may not exist."""
        return self.path / TOKENIZER

    def read_tokenizer(self, found: ReadTokenizer | None = None) -> ReadTokenizer:
        """The tokenizer, read anew unless it is ``found`` already. Not kept: the vocabulary of a large one
        takes megabytes.

        Raises:
            TokenizerError: it is missing, damaged or not this model's.
        """
        path = self.tokenizer_path
        found = read_tokenizer(path) if found is None else found
        check_tokenizer(path, found.size, self.graph.vocab_size)
        return found


def open_model(
    path_or_id: str | PathLike[str],
    *,
    revision: str | None = None,
    check_values: bool = True,
    adapter: str | None = RECOVERY,
) -> LoadedModel:
    """Opens a model directory (Hugging Face's form, dense or palettized by pocketlm) or a hub id.

    The adapter in ``adapters/recovery``, if there is one, is attached, unless ``adapter`` is ``None``.

    Weights are mapped, not read, but for one scan for NaN and infinity (all of a dense tensor, the scales of
    a palettized one), which ``check_values=False`` leaves out.

    Raises:
        MissingFileError: the directory, its config.json, its weights or a shard does not exist.
        StorageError: a file cannot be read.
        ConfigError: config.json is damaged or describes a model that is not supported.
        FileFormatError: a file of weights or its index is damaged.
        WeightError: a tensor is missing, left over, of wrong shape or type, or not finite.
        AdapterError: the recovery adapter does not fit the model.
        UnsupportedError: the weights are not safetensors, or the adapter asks for what is not supported.
        TemplateError: the chat template cannot be read.
        ParameterError: ``adapter`` is neither ``"recovery"`` nor ``None``.
    """
    check_adapter(adapter)
    path = locate(path_or_id, revision)
    config_path = path / "config.json"
    try:
        config = read_json(config_path, ConfigError)
    except MissingFileError as error:
        raise MissingFileError(f"{error}; a model's directory has one") from error
    graph = build_graph(config, str(config_path))
    generation_config = read_optional_json(path / "generation_config.json", ConfigError)
    tokenizer_config = read_optional_json(path / "tokenizer_config.json", ConfigError)
    chat_template = _chat_template(path, tokenizer_config)
    store = open_weights(path)
    check_weights(graph, store, str(path))
    found = _recovery(path, graph, store) if adapter == RECOVERY else None
    if found is not None:
        from pocketlm.adapters.attach import attach

        graph = attach(graph, found.terms)
    if check_values:
        store.check_finite()
    return LoadedModel(path, config, graph, store, generation_config, tokenizer_config, chat_template, found)


def _recovery(path: Path, graph: Graph, store: WeightStore) -> Adapter | None:
    directory = path / ADAPTERS / RECOVERY
    with storage_errors(directory):
        if not directory.exists():
            return None
    # Imported here, since it reads files with this package's functions, and most models have none.
    from pocketlm.adapters.files import open_adapter

    return open_adapter(require_directory(directory), graph, store)


def _chat_template(path: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The template in ``chat_template.jinja``, else the default one of ``tokenizer_config.json``."""
    file = path / "chat_template.jinja"
    with storage_errors(file):
        if file.exists():
            return read_text(file)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        chosen = next((entry for entry in named if entry.get("name") == "default"), next(iter(named), None))
        template = None if chosen is None else chosen.get("template")
    if template is not None and not isinstance(template, str):
        raise TemplateError(f"{path / 'tokenizer_config.json'}: 'chat_template' must be text")
    return template
