"""Where the results of a profile go: what cannot be written is refused before the measurements."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pocketlm.errors import MissingFileError, ParameterError, StorageError
from pocketlm.loading.files import as_path, storage_errors


def check_places(places: Mapping[str, Path | None]) -> None:
    """Checks the files that are to be written, by the options that name them.

    Raises:
        ParameterError: one is no path, or a directory, or two are the same.
        MissingFileError: the directory that is to hold one does not exist.
        StorageError: one may not be written, or cannot be looked at.
    """
    taken: dict[Path, str] = {}
    for option, given in places.items():
        if given is None:
            continue
        path = as_path(given, option)
        with storage_errors(path):
            try:
                place = path.resolve()
            except RuntimeError as error:  # links that lead around in a circle
                raise ParameterError(f"{option}: {path}: {error}") from error
            if place.is_dir():
                raise ParameterError(f"{option}: {path} is a directory, and must be a file")
            if not place.parent.is_dir():
                raise MissingFileError(f"{option}: {path.parent}: no such directory")
            # A new file is put in the place of an old one, so that the directory must take it as well.
            regular = place.is_file() or not place.exists()
            wanted = [place] if place.exists() else []
            if not all(os.access(p, os.W_OK) for p in [*wanted, *([place.parent] if regular else [])]):
                raise StorageError(f"{option}: {path}: {os.strerror(errno.EACCES)}")
            if regular and place in taken:
                raise ParameterError(f"{option}: {path} is the file of {taken[place]} too")
        taken[place] = option
