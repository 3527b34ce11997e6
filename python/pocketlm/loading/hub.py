"""Models of the Hugging Face hub: downloads what a model needs into the hub's own cache."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from pocketlm.errors import MissingFileError, StorageError
from pocketlm.loading.files import forget_pages

# Safetensors and the small files beside them; never pickles, never code.
PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "adapters/*")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/model``."""
    return _ID.fullmatch(name) is not None and not name.endswith(".git") and ".." not in name


def download(name: str, revision: str | None = None) -> Path:
    """The local directory of a hub model, downloaded unless it is cached. Shows a progress bar.

    Raises:
        MissingFileError: there is no such model or revision, or the hub cannot be reached and nothing is
        cached. StorageError: the cache cannot be written.
    """
    # Imported here: importing the client takes longer than opening a local model.
    from huggingface_hub import errors, snapshot_download

    began = time.time()
    at = f"{name}@{revision}" if revision else name
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
        _forget_new(path, began)
        return path
    except errors.GatedRepoError as error:
        raise MissingFileError(
            f"{at}: the hub asks for an account that has accepted this model's terms"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(f"{at}: no such model on the hub (or it is private)") from error
    except (errors.RevisionNotFoundError, UnicodeEncodeError) as error:
        raise MissingFileError(f"{at}: no such revision on the hub") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise MissingFileError(
            f"{at}: no such directory, not in the hub's cache, and the hub cannot be reached"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise MissingFileError(f"{at}: the hub refused: {str(error).splitlines()[0]:.300}") from error
    except OSError as error:
        raise StorageError(f"{at}: download failed: {error}") from error


def _forget_new(path: Path, began: float) -> None:
    """What was downloaded just now is read in again in large pages (see :func:`forget_pages`)."""
    for file in path.glob("*.safetensors"):
        if file.stat().st_mtime >= began:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                forget_pages(opened.fileno())
