"""Where a model is, and which adapter it gets: what is known before anything of it is opened."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from pocketlm.checks import shown
from pocketlm.errors import ParameterError
from pocketlm.loading.files import as_path, require_directory, storage_errors

TOKENIZER = "tokenizer.json"
ADAPTERS, RECOVERY = "adapters", "recovery"  # a model's directory of adapters, and the one that it attaches


def check_adapter(adapter: object) -> None:
    """Whether this says which adapter to attach.

    Raises:
        ParameterError: it is neither ``"recovery"`` nor ``None``.
    """
    if adapter is not None and (not isinstance(adapter, str) or adapter != RECOVERY):
        raise ParameterError(f"adapter: must be {RECOVERY!r} or None, not {shown(adapter)}")


def locate(path_or_id: str | PathLike[str], revision: str | None = None) -> Path:
    """The directory of a model: a path, or failing that the download of a hub id.

    Raises:
        MissingFileError: there is neither.
        ParameterError: the name is empty or not a path.
    """
    path = as_path(path_or_id, "path_or_id")
    with storage_errors(path):
        if path.exists():
            return require_directory(path)
    if isinstance(path_or_id, str):
        # Imported here, since most models are there.
        from pocketlm.loading import hub

        if hub.is_hub_id(path_or_id):
            return hub.download(path_or_id, revision)
    return require_directory(path)
