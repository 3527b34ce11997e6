"""The compiled part of pocketlm. Arrays are C-contiguous copies unless said otherwise.

Integers of any size and sequences of any length may be given: what is out of range or too long (more than
2**24 token ids, or 2**20 elements of other sequences) is a ParameterError that names the argument, and an
array that does not fit in memory a MemoryLimitError.
"""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BytePairs",
    "BytePairsReading",
    "Continuation",
    "Engine",
    "Hessian",
    "Palettized",
    "Sampler",
    "SecondMoment",
    "Sequence",
    "StepResult",
    "TensorInfo",
    "WeightStore",
    "__version__",
    "byte_level_text",
    "compensate_tensor",
    "cpu_count",
    "current_isa",
    "int8_peak",
    "isa_levels",
    "isa_notes",
    "kernel_registry",
    "machine_memory",
    "measure_tensor",
    "palette_kinds",
    "palettize_tensor",
    "prompt_kernels",
    "read_bandwidth",
    "release_freed_memory",
]

__version__: str

@final
class Engine:
    """A model ready to run: the plan of a graph over its weights, with a cache and all memory of its steps.

    It may be used from any thread, one step at a time. The interpreter lock is released while it works.

    Args:
        graph_json: what ``Graph.to_json()`` gives.
        store: weights, mapped or owned; later additions are not seen.
        threads: of a step; else ``POCKETLM_THREADS``; else at most the physical cores that the process may
            use, and of these as many as are measured to serve each kind of step best.
        cache_tokens: tokens that the cache holds over all sequences, rounded up to blocks of 64. Pages that
            were never used cost nothing.
        max_rows: tokens of a step at most; else 128, and 256 with AMX.
        precise: keep activations in float32 with palettized weights too (slow; for comparison).
        kv_dtype: how the cache stores keys and values: ``"f16"``, or ``"int8"`` with a scale for each token
            and head.
        max_memory: bytes that weights, cache and scratch may take; else what the machine has, or what the
            process's cgroup (a container, a service) allows where that is less. Weights do not count then:
            they are mapped.

    Raises:
        ConfigError: the graph is malformed; names the operation.
        WeightError: a weight is missing or of another shape or type; names it.
        MemoryLimitError: raised before anything large is allocated.
        ParameterError: an argument, or ``POCKETLM_THREADS``, is out of its range.
        UnsupportedError: ``POCKETLM_ISA`` names what this machine cannot run.
    """

    def __new__(
        cls,
        graph_json: str,
        store: WeightStore,
        *,
        threads: int | None = None,
        cache_tokens: int,
        max_rows: int | None = None,
        precise: bool = False,
        max_memory: int | None = None,
        kv_dtype: str = "f16",
    ) -> Engine: ...
    @property
    def threads(self) -> int:
        """Threads of a step at most."""
    def step_threads(self, rows: int) -> int:
        """Threads that a step of so many rows runs on at present: found by trying, unless asked for."""
    def hold_threads(self, held: bool) -> None:
        """Stays with the present numbers of threads, so that steps can be compared, or tries others again."""
    @property
    def isa(self) -> str: ...
    @property
    def kv_dtype(self) -> str:
        """``f16`` or ``int8``."""
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def cache_tokens(self) -> int: ...
    @property
    def cache_tokens_free(self) -> int:
        """Tokens that fit into free blocks. Waits for a running step."""
    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads: matrices once, one row of tables only looked up."""
    def read_bandwidth(self, seconds: float = 0.3) -> float:
        """Bytes per second that its threads read from its matrices where these lie in memory: the best
        pass in about ``seconds``. Waits for a running step and holds others up.

        Raises:
            ParameterError: the engine is closed, or ``seconds`` are not from 0 to 60.
        """
    def memory(self) -> dict[str, int]:
        """Bytes of ``weights``, ``cache`` (when full) and ``scratch``."""
    def sequence(self) -> Sequence: ...
    def step(
        self,
        items: AbstractSequence[tuple[Any, ...]],
        *,
        steps: int = 1,
        seconds: float = 0.0,
    ) -> list[StepResult]:
        """Appends tokens to sequences, any mix of prompt chunks and single tokens. An item is (sequence,
        token ids, sampler or ``None``, which logits to return, and optionally a continuation); the logits are
        ``"none"``, those of its ``"last"`` token, or those of ``"all"``.

        With a sampler, samples the next token and counts it in the sampler's history. Results depend neither
        on the batch, nor on chunks, nor on threads.

        If every item has a sampler and a continuation, the sampled tokens are fed back in further steps:
        until a text ends, ``steps`` are done, ``seconds`` are over, or :meth:`interrupt` is called. Single
        tokens with a continuation may bring guesses at further ones, where that was measured to pay and cache
        and context have room; guesses are checked in the same step, and change nothing but the speed. The
        cache then holds all tokens but the last that was sampled.

        Raises:
            ParameterError: more than ``max_rows`` tokens, an id that has no embedding, no ids, a sequence or
                a sampler twice.
            ContextLengthError: a sequence would exceed ``context_length``.
            MemoryLimitError: the cache has no room.
            WeightError: the logits to sample from are not finite numbers.

        Whatever it raises, all sequences are as before. What goes wrong in a later step is left to the next
        call.
        """
    def interrupt(self) -> None:
        """Makes a call of several steps return after its present one. From any thread."""
    def continuation(
        self,
        prompt: AbstractSequence[int] | NDArray[Any],
        *,
        max_tokens: int,
        stop_ids: AbstractSequence[int] | NDArray[Any] | None = None,
        guesses: int = 0,
    ) -> Continuation:
        """How one request goes on after ``prompt``: up to ``max_tokens`` or one of ``stop_ids``. At most
        ``guesses`` tokens (no more than 16) are guessed in a step."""
    def drafts(self, continuation: Continuation, texts: int) -> int:
        """How many tokens a draft model should guess for one of ``texts`` requests that generate; 0 while
        a step runs."""
    def prewarm(self) -> None:
        """Reads the weights' pages in and starts the threads."""
    @property
    def block_bytes(self) -> int:
        """Bytes of keys and values of a block of 64 tokens."""
    def export(self, sequence: Sequence) -> bytes:
        """Keys and values of a sequence: its blocks in order, the same on every machine; zero behind the last
        token."""
    def restore(self, length: int, data: bytes) -> Sequence:
        """A sequence of ``length`` tokens from what :meth:`export` gave for as many.

        Raises:
            ParameterError: ``data`` does not fit ``length``.
            ContextLengthError, MemoryLimitError: there is no room.
        """
    def step_timed(
        self, items: AbstractSequence[tuple[Any, ...]], *, phases: bool = True
    ) -> tuple[list[StepResult], list[float]]:
        """As :meth:`step`, and gives the seconds of each phase of :meth:`phases`, then of what is in none of
        them (checks, waking the workers, the return). They add up to the time of the step, which by itself
        is all that it gives without ``phases``: that disturbs nothing."""
    def phases(self) -> list[dict[str, Any]]:
        """The work of a step between one barrier and the next, in order: its ``kind`` (``rows``, ``linear``,
        ``attention``, ``output``), its ``members`` (pairs of an operation's name and its share in the work:
        bytes of the weights for products, about the elements touched for work on rows; 0 for what rides along
        in an epilogue), and whether it is in the ``tail``, which runs on rows whose logits are asked for."""
    def trace(
        self, ids: AbstractSequence[int] | NDArray[Any], names: AbstractSequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Result [tokens, width] of every operation of a prefill, or of those in ``names``, by name; bit for
        bit what a step computes.

        Raises:
            ParameterError: a name is not that of an operation.
            As :meth:`step`.
        """
    def close(self) -> None:
        """Gives all memory back; later uses raise ParameterError."""

@final
class Sequence:
    """Tokens whose keys and values an engine keeps. Dropping it gives its blocks back."""

    @property
    def length(self) -> int: ...
    def fork(self) -> Sequence:
        """A sequence with the same tokens; both share memory until one writes."""
    def truncate(self, length: int) -> None:
        """Forgets the tokens from ``length`` on."""
    def free(self) -> None:
        """Gives the blocks back; later uses raise ParameterError. Freeing twice does nothing."""

def byte_level_text(texts: AbstractSequence[str]) -> str:
    """The text of tokens in which every byte is written as a character of GPT-2's alphabet; tokens with other
    characters are text as they are. Bytes that are not UTF-8 become U+FFFD, one for each longest part that
    could have begun a character.

    Raises:
        ParameterError: ``texts`` is no sequence of texts, or too long.
    """

@final
class BytePairs:
    """Vocabulary and merges of a ``tokenizer.json`` whose model is byte-pair encoding."""

    @staticmethod
    def reading(data: bytes) -> BytePairsReading:
        """Begins to read a file, in a thread that needs no interpreter lock."""

    @property
    def rest(self) -> str:
        """The file without the two tables, as JSON."""

    @property
    def size(self) -> int:
        """One more than the largest id."""

    @property
    def longest(self) -> int:
        """Characters of the longest token."""

    def merges_are_tokens(self, skip: int) -> bool:
        """Whether what each merge makes is a token; of a right half ``skip`` bytes, the prefix of inner parts
        of words, are left out."""

    def id(self, text: str) -> int | None:
        """The id of a token."""

    def texts(self, ids: AbstractSequence[int]) -> list[str | None]:
        """The texts of tokens by their ids, which must be below 2**32; ``None`` where there is none."""

    def vocabulary(self) -> dict[str, int]:
        """Every token's text, with its id, in the file's order."""

    def merges(self) -> list[tuple[str, str]]:
        """The merges, best first."""

    def __len__(self) -> int:
        """Number of tokens."""

@final
class BytePairsReading:
    """A ``tokenizer.json`` that is being read."""

    def result(self) -> BytePairs | None:
        """Waits for the tables; to be called once. ``None`` if the file is not of the usual form: not JSON,
        no ``model`` with ``vocab`` (ids below 2**32, none twice) and ``merges`` (pairs of its texts), or a
        key twice."""

@final
class StepResult:
    """What a step, or several, give for one item."""

    @property
    def tokens(self) -> list[int]:
        """The sampled tokens, in order."""
    @property
    def logprobs(self) -> list[tuple[float, list[tuple[int, float]]]]:
        """Of each token its log-probability and the likeliest tokens with theirs, if the sampler reports
        them."""
    @property
    def token(self) -> int | None:
        """The last token."""
    @property
    def logprob(self) -> float | None:
        """Log-probability of the last token, if the sampler reports it."""
    @property
    def top(self) -> list[tuple[int, float]]: ...
    @property
    def logits(self) -> NDArray[np.float32] | None:
        """[rows, vocab_size]"""

@final
class Continuation:
    """How one request goes on: when it ends, and what is guessed of it. :meth:`Engine.continuation` makes
    one."""

    @property
    def proposed(self) -> int:
        """Tokens that were guessed and computed."""
    @property
    def accepted(self) -> int:
        """Those of them that were right."""
    def draft(self, ids: AbstractSequence[int] | NDArray[Any], seconds: float) -> None:
        """Takes a draft model's guesses at the next tokens, which took so long."""
    def pass_draft(self) -> None:
        """The draft model was not asked, as it would not have paid."""

@final
class Sampler:
    """How a request chooses its tokens, with those that it has seen.

    ``history`` is the prompt, for ``repetition_penalty``; tokens that steps sample are added. ``top_k`` 0 or
    -1 keeps all. ``logprobs`` asks for the log-probability of the token and of so many of the most likely
    ones. The random number depends on ``seed`` and on the token's position only.

    Raises:
        ParameterError: names the parameter that is out of its range.
    """

    def __new__(
        cls,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: dict[int, float] | None = None,
        seed: int = 0,
        logprobs: int | None = None,
        history: AbstractSequence[int] | NDArray[Any] | None = None,
    ) -> Sampler: ...

def palette_kinds() -> list[tuple[str, int, int, tuple[int, int]]]:
    """Every palettized kind by ascending bits: its name, bits of a weight, int8 entries of a codebook (0: it
    has none), and the smallest and largest of them. Of several with as many bits the last is the best."""

def isa_levels() -> list[tuple[str, bool]]:
    """Every instruction set that this build knows, and whether this machine can run it."""

def isa_notes() -> list[str]:
    """What a user should know of instruction sets that the processor has and that are not used."""

def prompt_kernels() -> list[tuple[str, str, str]]:
    """Each palettized kind, and how the kernels for 9 to 16 rows and for more hold its decoded weights:
    ``panels`` in memory, or ``registers``. The faster ones, measured when first used: some milliseconds.

    Raises:
        UnsupportedError: ``POCKETLM_ISA`` names what this machine has not.
    """

def current_isa() -> str:
    """The instruction set in use: the best, or the one that ``POCKETLM_ISA`` names."""

def kernel_registry() -> list[dict[str, Any]]:
    """Every kernel: ``op``, ``kind``, ``variant``, ``level``, whether ``available`` here, whether
    ``chosen``."""

def machine_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or the limit of its cgroup or of one above
    it, where that is less. ``None`` where the system does not say it (not on Linux)."""

def read_bandwidth(threads: int, seconds: float = 0.5) -> float:
    """Bytes per second that so many threads read together: the best pass over a buffer of 512 MiB."""

def int8_peak(threads: int, seconds: float = 0.1) -> float:
    """Int8 multiply-adds per second that so many threads do together from registers, with the instructions of
    :func:`current_isa`: the best pass counts."""

def release_freed_memory() -> None:
    """Gives memory that was freed back to the system, where the C library's allocator would keep it."""

def cpu_count() -> int:
    """Threads that an engine would choose."""

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
    def file(self) -> Path | None:
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
    def overlay(self, *tops: WeightStore) -> WeightStore:
        """A store of these tensors, those of ``tops`` in the place of others of the same name (later ones
        win). It shares their memory and does not see what is added to them later."""
    def fingerprint(self, *, threads: int | None = None) -> str:
        """A hexadecimal number that says which weights these are: names, kinds, shapes and bytes (XXH3)."""
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
        """[tiles, entries], ascending; for p2v the first elements of 16 pairs, which ascend, then their
        second ones; [tiles, 0] for p8."""
    @property
    def scale(self) -> NDArray[np.float16]:
        """[rows]."""
    @property
    def error(self) -> float: ...
    @property
    def energy(self) -> float: ...
    @staticmethod
    def join(parts: AbstractSequence[Palettized]) -> Palettized:
        """Parts of consecutive rows as one; all but the last have whole tiles. Raises ParameterError where
        there are none, or kinds differ."""

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

@final
class SecondMoment:
    """A sum of products of inputs in the making, Σ_t s_t x_t x_tᵀ, float32, of ``width`` inputs.

    Raises:
        ParameterError: there are no inputs.
        MemoryLimitError: there is no memory for their products and the finished moment.
    """

    def __new__(cls, width: int) -> SecondMoment: ...
    def add(
        self,
        x: NDArray[np.float32],
        weights: NDArray[np.float32] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """Adds the products of ``x`` [tokens, width], each token's times its weight [tokens].

        The result depends on how tokens are divided among calls, but neither on ``threads`` nor on the
        machine. Raises ParameterError where a shape does not fit, or after :meth:`finish`.
        """
    def finish(self, factor: float) -> NDArray[np.float32]:
        """The moment [width, width] times ``factor``, symmetric. The object is empty afterwards.

        Raises:
            ParameterError: it is finished already.
            MemoryLimitError: there is no memory for it.
        """

@final
class Hessian:
    """A second moment ``moment`` [inputs, inputs], damped and factored for :func:`compensate_tensor`.

    ``damping`` times the mean of its diagonal is added to the diagonal; a moment of zeros becomes the
    identity. ``kind`` is that of the codes. The result depends neither on ``threads`` nor on the machine.

    Raises:
        ParameterError: not square, symmetric, finite and positive semidefinite, or ``damping`` not positive.
        MemoryLimitError: there is no memory for the factors.
    """

    def __new__(
        cls, moment: NDArray[np.float32], kind: str, *, damping: float, threads: int | None = None
    ) -> Hessian: ...
    @property
    def size(self) -> int:
        """Number of inputs."""

def compensate_tensor(
    store: WeightStore,
    name: str,
    kind: str,
    hessian: Hessian,
    *,
    rows: tuple[int, int],
    row_weights: NDArray[np.float32],
    transposed: bool = False,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Palettized:
    """Palettizes rows of a dense matrix so that its outputs, not its weights, come out close.

    ``rows`` are the first row, a multiple of 16, and the one behind the last. Codes make up for each other's
    errors under the inputs' second moment H: what is lowered, and reported as ``error``, is Σ_r weight_r (w_r
    - ŵ_r) H (w_r - ŵ_r)ᵀ with ``row_weights`` [rows], all positive; ``energy`` is the same of ŵ = 0. For the
    rest see :func:`palettize_tensor`.

    Raises:
        WeightError: not a matrix, or a value not finite or too large for half-precision scales.
        ParameterError: rows, row weights or the number of inputs do not fit.
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
