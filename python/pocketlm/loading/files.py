"""Small files of a model directory, read with every failure typed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.checks import shown
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, PocketlmError, StorageError

# A config.json has kilobytes, the largest tokenizer_config.json (Gemma's) a little over one megabyte. Parsed
# JSON takes some twenty times its text, so this is also a bound on memory and time.
MAX_TEXT_BYTES = 4 << 20


def as_path(value: str | PathLike[str], name: str) -> Path:
    """An argument as a path, ``~`` expanded.

    Raises:
        ParameterError: it is empty, not a path of text, not one that the system can spell, or names an
            unknown user's home. ``name`` is the parameter's.
    """
    try:
        text = os.fspath(value)
        # Bytes are a path too, but not to all that is done with it.
        if not isinstance(text, str) or not text or "\0" in text:
            raise TypeError
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError) as error:
        raise ParameterError(f"{name}: must be a path, not {shown(value)}") from error
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ParameterError(f"{name}: {shown(text)}: {error}") from error


@contextmanager
def storage_errors(path: Path, *, beside: bool = False) -> Iterator[None]:
    """Turns the system's errors into :class:`StorageError` or :class:`MissingFileError`, naming the file that
    the system names, or ``path``. With ``beside`` always ``path``: it is written in files beside it, of which
    the caller knows nothing."""
    try:
        yield
    except PocketlmError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path if beside else error.filename or path}: no such file or directory"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{path if beside else error.filename or path}: {error.strerror or error}"
        ) from error


def require_directory(path: Path) -> Path:
    """``path``, if it is a directory.

    Raises:
        MissingFileError: it does not exist or is something else.
        StorageError: it cannot be looked at.
    """
    with storage_errors(path):
        if not path.exists():
            hint = "" if len(path.parts) > 1 else " (and a Hugging Face id has the form OWNER/NAME)"
            raise MissingFileError(f"{path}: no such directory{hint}")
        if not path.is_dir():
            hint = "; give the directory that holds it" if path.suffix == ".safetensors" else ""
            if path.suffix == ".gguf":
                hint = "; GGUF is not read: give a directory with config.json and safetensors"
            raise MissingFileError(f"{path}: is not a directory{hint}")
    return path


def require_file(path: Path) -> Path:
    """``path``, if it is a regular file: what else can be opened may have no end.

    Raises:
        MissingFileError: it does not exist or is something else (a directory, a device, a pipe).
        StorageError: it cannot be looked at.
    """
    with storage_errors(path):
        if not path.is_file():
            reason = "is not a regular file" if path.exists() else "no such file"
            raise MissingFileError(f"{path}: {reason}")
    return path


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a regular file that has no reason to be large.

    Raises:
        MissingFileError, StorageError: it cannot be read.
        FileFormatError: it has more than ``most`` bytes; no more than those are read.
    """
    require_file(path)
    with storage_errors(path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > most or len(data := file.read(most + 1)) > most:
            raise FileFormatError(f"{path}: larger than {most >> 20} MiB, so not what it should be")
    return data


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file.

    Raises:
        MissingFileError, StorageError: it cannot be read.
        FileFormatError: it is not UTF-8, or far too large.
    """
    data = read_small(path, MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


def read_json(
    path: Path, error: type[PocketlmError] = FileFormatError, *, unique: bool = False
) -> dict[str, Any]:
    """The object in a JSON file. What is wrong with its text raises ``error``; with ``unique`` also a key
    that an object in it has twice, of which JSON readers else keep the last in the place of the first."""
    try:
        value = json.loads(read_text(path), object_pairs_hook=_once if unique else None)
    except FileFormatError as failure:
        raise error(str(failure)) from failure
    except (ValueError, RecursionError) as failure:
        raise error(f"{path}: not JSON ({failure})"[:500]) from failure
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose keys is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.200} is there twice")
        found[key] = value
    return found


def read_optional_json(path: Path, error: type[PocketlmError] = FileFormatError) -> dict[str, Any]:
    """As :func:`read_json`; a file that does not exist is an empty object."""
    with storage_errors(path):
        if not path.exists():
            return {}
    return read_json(path, error)


def resolved(path: Path) -> Path:
    """Where ``path`` leads, through every link.

    Raises:
        StorageError: it cannot be looked at, or its links lead around in a circle.
    """
    with storage_errors(path):
        try:
            return path.resolve()
        except RuntimeError as error:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def write_whole(path: Path, *parts: str | bytes) -> None:
    """Writes a file of ``parts``, one behind the other, text as UTF-8. If that fails, what was there before
    is still there, and nothing else.

    Raises:
        StorageError, MissingFileError: it cannot be written; names ``path``.
    """
    data = [part.encode("utf-8") if isinstance(part, str) else part for part in parts]
    target = resolved(path)  # a link stays one
    with storage_errors(path, beside=True):
        if target.exists() and not target.is_file():  # a pipe, a terminal
            with target.open("wb") as file:
                file.writelines(data)
        elif target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            _replace(target, data)


def _replace(target: Path, data: Iterable[bytes]) -> None:
    """Puts a file with ``data`` in the place of ``target``."""
    part = target.with_name(f".{os.urandom(8).hex()}.part")
    try:
        with part.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())  # else the new name might reach the disk before what it names
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def forget_pages(handle: int) -> None:
    """Takes an open file, which is on the disk, out of the system's memory.

    There it lies in the small pages of the many writes that made it. Whoever maps it next has it read in
    anew, in pages of 2 MiB where the file system has them: a fraction of a second once, and reading all
    weights for each token is faster ever after (docs/decisions/0012-large-pages.md).
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a file system that does not know it
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
