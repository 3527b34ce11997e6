"""The compiled part of pocketlm. Arrays are C-contiguous copies unless said otherwise."""

from collections.abc import Callable
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

@final
class TensorInfo:
    """What a tensor is, without its values."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """``p2`` to ``p8``, ``f32``, ``f16``, ``bf16``, or the file's own name of another type."""
    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, however the tensor is stored."""
    @property
    def elements(self) -> int: ...
    @property
    def bits(self) -> float:
        """Stored bits per element, codebooks and scales included."""
    @property
    def bytes(self) -> int:
        """Stored bytes of all parts."""
    @property
    def file(self) -> str | None:
        """The file that holds it; none for tensors added from memory."""

@final
class WeightStore:
    """Weights by name, mapped from safetensors files or added from memory.

    Files must be replaced, not changed, while they are mapped: one cut short ends the process.
    """

    def __new__(cls) -> WeightStore: ...
    def open(self, path: str | PathLike[str]) -> None:
        """Maps one safetensors file and adds its tensors: all of them, or none if it raises.

        Raises:
            MissingFileError: there is no such file, or it is not a file.
            StorageError: the system does not let it be read.
            FileFormatError: it is damaged, or of another format version; names file and tensor.
            WeightError: a scale is not finite.
        """
    def add(self, name: str, array: Any, dtype: str | None = None) -> None:
        """Adds a copy of an array of float32, float16, bfloat16, or uint16 bits of the type ``dtype``."""
    def add_palette(
        self,
        name: str,
        kind: str,
        shape: tuple[int, int],
        codes: NDArray[np.uint8],
        codebook: NDArray[np.int8],
        scale: NDArray[np.float16],
    ) -> None:
        """Adds a palettized weight of ``shape`` [rows, columns] from its parts."""
    def names(self) -> list[str]:
        """Names of all tensors, ascending."""
    def __contains__(self, key: str, /) -> bool: ...
    def __len__(self) -> int: ...
    def info(self, name: str) -> TensorInfo: ...
    def dense(self, name: str, start: int | None = None, stop: int | None = None) -> NDArray[np.float32]:
        """Values as float32, rows ``start`` to ``stop`` of the first dimension."""
    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Stored bytes ``start`` to ``stop`` of a tensor that is not palettized."""
    def release(self, name: str) -> None:
        """Gives back the memory of the tensor's pages in a mapped file; they are read again when needed."""
    def metadata(self) -> dict[str, str]:
        """The files' metadata; where files disagree, the value of the first."""
    def check_finite(self, name: str | None = None, *, threads: int | None = None) -> None:
        """Raises WeightError, with tensor and index, if a value of the tensor (of any) is not finite."""

@final
class Palettized:
    """The parts of a palettized weight, its weighted squared error Σh(w - ŵ)² and its energy Σhw²."""

    @property
    def kind(self) -> str: ...
    @property
    def codes(self) -> NDArray[np.uint8]:
        """[tiles, bytes of a tile]."""
    @property
    def codebook(self) -> NDArray[np.int8]:
        """[tiles, 2^bits], ascending; [tiles, 0] for p8."""
    @property
    def scale(self) -> NDArray[np.float16]:
        """[rows]."""
    @property
    def error(self) -> float: ...
    @property
    def energy(self) -> float: ...

def palettize_tensor(
    store: WeightStore,
    name: str,
    kind: str,
    *,
    importance: NDArray[np.float32] | None = None,
    transposed: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Palettized:
    """Palettizes a dense matrix of the store, on all cores, without the interpreter lock.

    ``importance`` weighs the squared errors: [inputs], or [outputs * inputs] for each weight by itself. A
    ``transposed`` matrix is stored as [inputs, outputs]. ``progress`` is called with the number of rows done;
    what it raises ends the work. Results depend neither on ``threads`` nor on the machine.

    Raises:
        WeightError: not a matrix, a value not finite or too large for half-precision scales, or importance
        that
            does not fit.
    """

def measure_tensor(
    store: WeightStore,
    name: str,
    kind: str,
    *,
    tiles: int = 64,
    importance: NDArray[np.float32] | None = None,
    transposed: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, float]:
    """Error and energy of :func:`palettize_tensor` on at most ``tiles`` tiles of 16 rows, spread evenly."""
