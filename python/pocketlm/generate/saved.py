"""A session on disk: its transcript, and the keys and values that the model has computed of it.

The file is a safetensors file with two tensors: ``tokens`` (I32 [tokens]) and ``cache`` (F16 [blocks, half
the bytes of a block]: the engine's blocks as they are, the same on every instruction set; an int8 cache's
bytes are merely held so). Its metadata holds the
transcript, what identifies the model, and a checksum over all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketlm._core import WeightStore, __version__
from pocketlm.errors import FileFormatError, ParameterError, WeightError
from pocketlm.generate.batch import BLOCK
from pocketlm.loading.files import storage_errors, write_whole
from pocketlm.loading.layout import Part, plan_layout

_FORMAT = "2"
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        messages: (role, content) of each turn.
        tokens: ids whose keys and values are kept; none if memory had no room for them.
        cache: those keys and values (see :meth:`pocketlm.generate.engine.Engine.export`).
    """

    messages: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...]
    cache: bytes


def write(path: Path, saved: Saved, model: str) -> None:
    """Writes a file as :func:`write_whole` does; one that is there is replaced. ``model`` identifies the
    model.

    Raises:
        StorageError, MissingFileError: it cannot be written.
    """
    transcript = json.dumps(saved.messages)
    tokens = np.asarray(saved.tokens, "<i4").tobytes()
    blocks = -(-len(saved.tokens) // BLOCK)
    metadata = {
        "pocketlm_session": _FORMAT,
        "version": __version__,
        "model": model,
        "transcript": transcript,
        "checksum": _checksum(__version__, model, transcript, tokens, saved.cache),
    }
    parts = [Part("tokens", "I32", (len(saved.tokens),))]
    parts.append(Part("cache", "F16", (blocks, len(saved.cache) // 2 // max(blocks, 1))))
    layout = plan_layout(parts, metadata)
    write_whole(path, layout.header, tokens, saved.cache)


def read(path: Path, model: str) -> Saved:
    """Reads a file. Keys and values that another version computed are left out, since numbers may differ
    between versions.

    Raises:
        MissingFileError, StorageError: it cannot be read.
        FileFormatError: it is damaged, cut short, or not a session's.
        ParameterError: it is of another model, or of other weights.
    """
    store = WeightStore()
    try:
        store.open(path)
    except (FileFormatError, WeightError) as problem:
        # Of a file of another kind, what the reader stumbles over first says nothing.
        reason = f": {str(problem).removeprefix(f'{path}: ')}" if _has_header(path) else ""
        raise FileFormatError(f"{path}: not a saved session, as session.save() writes{reason}") from problem
    facts = store.metadata()
    if facts.get("pocketlm_session") != _FORMAT:
        found = facts.get("pocketlm_session")
        reason = (
            "not a saved session, as session.save() writes"
            if found is None
            else f"format {found!r:.20} of another version"
        )
        raise FileFormatError(f"{path}: {reason}")
    missing = {"version", "model", "transcript", "checksum"} - facts.keys()
    if missing or store.names() != ["cache", "tokens"]:
        raise FileFormatError(f"{path}: damaged: parts are missing")
    cache, tokens = (store.raw(name).tobytes() for name in ("cache", "tokens"))
    version, transcript = facts["version"], facts["transcript"]
    if facts["checksum"] != _checksum(version, facts["model"], transcript, tokens, cache):
        raise FileFormatError(f"{path}: damaged: the checksum does not match")
    if facts["model"] != model:
        raise ParameterError(
            f"restore: {path} was saved from another model or other weights, with another kv_dtype, or by an "
            "earlier version that kept its cache otherwise"
        )
    messages = _messages(path, transcript)
    if version != __version__ or len(tokens) % 4:
        return Saved(messages, (), b"")
    return Saved(messages, tuple(np.frombuffer(tokens, "<i4").tolist()), cache)


def _has_header(path: Path) -> bool:
    """Whether a file begins as safetensors files do: with the length of a JSON object, and that."""
    with storage_errors(path), path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _messages(path: Path, text: str) -> tuple[tuple[str, str], ...]:
    try:
        turns = json.loads(text)
        messages = tuple((role, content) for role, content in turns)
    except (ValueError, TypeError, RecursionError) as problem:
        raise FileFormatError(f"{path}: damaged transcript") from problem
    if not all(role in _ROLES and isinstance(content, str) for role, content in messages):
        raise FileFormatError(f"{path}: damaged transcript")
    return messages


def _checksum(version: str, model: str, transcript: str, tokens: bytes, cache: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    parts: Sequence[bytes] = (version.encode(), model.encode(), transcript.encode(), tokens, cache)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
