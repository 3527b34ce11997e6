"""Where results are to be written: what would get into each other's way is refused before the work."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from pocketlm.errors import MissingFileError, ParameterError
from pocketlm.loading.files import as_path, storage_errors

Place = str | PathLike[str] | None


def check_places(source: Path, target: Path | None, calibration_out: Place, recipe_out: Place) -> None:
    """Checks where the model (``target``), the calibration and the recipe go, as far as they are written.

    Raises:
        ParameterError: a place is not outside of the source and of the other results; names its argument.
        MissingFileError: the directory that is to hold the recipe does not exist, and nothing makes it.
        StorageError: a place cannot be looked at.
    """
    taken = {"src": _resolved(source)}
    if target is not None:
        place = _resolved(target)
        if not target.name:
            raise ParameterError(f"dst: {target} exists already; name a new directory")
        if _overlap(place, taken["src"]):
            raise ParameterError(f"dst: {target} must be a new directory outside of {source}")
        taken["dst"] = place
    if calibration_out is not None:
        taken["calibration_out"] = _outside("calibration_out", calibration_out, taken)
    if recipe_out is None:
        return
    place = _outside("recipe_out", recipe_out, taken)
    with storage_errors(place):
        if place.is_dir():
            raise ParameterError(f"recipe_out: {place} is a directory, and must be a file")
        # Directories around the other results are made.
        made = {parent for name, other in taken.items() if name != "src" for parent in other.parents}
        if target is not None and not place.parent.is_dir() and place.parent not in made:
            raise MissingFileError(f"recipe_out: {place.parent}: no such directory")


def _outside(argument: str, given: str | PathLike[str], taken: dict[str, Path]) -> Path:
    """A place, resolved, that none of the others holds or is held by."""
    path = as_path(given, argument)
    place = _resolved(path)
    for name, other in taken.items():
        if _overlap(place, other):
            raise ParameterError(f"{argument}: {path} must be outside of {other} ({name})")
    return place


def _resolved(path: Path) -> Path:
    with storage_errors(path):
        try:
            return path.resolve()
        except RuntimeError as error:  # links that lead around in a circle
            raise ParameterError(f"{path}: {error}") from error


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents
