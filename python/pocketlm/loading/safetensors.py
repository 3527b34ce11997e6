"""Safetensors checkpoints: ``model.safetensors``, or shards that ``model.safetensors.index.json`` lists."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from pocketlm._core import WeightStore
from pocketlm.errors import FileFormatError, MissingFileError, UnsupportedError
from pocketlm.loading.files import read_json, storage_errors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHER_FORMS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.npz")


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of a model directory, in the index's order.

    Raises:
        MissingFileError: there are no weights, or a shard is missing.
        UnsupportedError: the weights have another form.
        FileFormatError: the index is damaged or names files outside of the directory.
    """
    single, index = directory / SINGLE, directory / INDEX
    with storage_errors(directory):
        if single.exists():
            return [single]
        if index.exists():
            return [*dict.fromkeys(_weight_map(index).values())]
        others = [path for pattern in _OTHER_FORMS for path in sorted(directory.glob(pattern))]
    if others:
        raise UnsupportedError(
            f"{others[0]}: weights of this form are not supported; convert them to safetensors"
        )
    raise MissingFileError(f"{directory}: holds neither {SINGLE} nor {INDEX}")


def open_weights(directory: Path) -> WeightStore:
    """Maps the weights of a model directory.

    Raises:
        As :func:`weight_files`; FileFormatError also where file and index disagree or a file is damaged, with
        its name.
    """
    store = WeightStore()
    for path in weight_files(directory):
        store.open(path)
    index = directory / INDEX
    if (directory / SINGLE).exists() or not index.exists():
        return store
    for name, path in _weight_map(index).items():
        if name not in store:
            raise FileFormatError(f"{path}: tensor {name!r:.200} is missing, though {index} places it here")
    return store


def _weight_map(index: Path) -> dict[str, Path]:
    """Tensor name to shard; every shard exists."""
    entries = read_json(index).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise FileFormatError(f"{index}: 'weight_map' must be an object that maps tensors to files")
    checked: dict[str, Path] = {}
    result = {}
    for name, file in entries.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise FileFormatError(
                f"{index}: tensor {name!r:.200} is placed in {file!r:.200}, which is no file name"
            )
        if file not in checked:
            checked[file] = index.parent / file
            if not checked[file].exists():
                raise MissingFileError(f"{checked[file]}: this shard is missing; {index} lists it")
        result[name] = checked[file]
    return result


def _is_plain(file: str) -> bool:
    """Whether ``file`` names an entry of a directory and nothing outside of it."""
    return (
        bool(file)
        and "\0" not in file
        and file not in (".", "..")
        and all(kind(file).name == file for kind in (PurePosixPath, PureWindowsPath))
    )
