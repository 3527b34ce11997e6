"""Text as windows of token ids, spread evenly over what is given."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.checks import shown
from pocketlm.errors import FileFormatError, ParameterError
from pocketlm.loading import LoadedModel
from pocketlm.loading.files import as_path, require_file, storage_errors
from pocketlm.tokenizer import Tokenizer

TOKENS = 65536  # some times the channels of the widest input
WINDOW = 1024
_MOST_UNKNOWN = 0.5  # share of tokens that the tokenizer does not know
# Of text in single bytes. Digits are single tokens of many tokenizers, but then no token is less than one
# character; what a tokenizer has no words for falls into the bytes of its characters.
_LEAST_BYTES, _LEAST_CHARACTERS = 1.3, 0.75  # for each token
_MANY_PIECES = 1000  # tokens of several bytes: the vocabulary is one of words, for some kind of text
_SAMPLE = 64  # windows, or pieces of as many tokens, that are looked at for this
_WHOLE_BYTES = 16 << 20  # of a larger file only pieces are read
_MOST_BYTES = 256 << 20  # of a file that is read whole, however many tokens are asked for
_TOKEN_BYTES = 4  # of a usual one
_PIECE_BYTES = 24  # for each token of a piece: hardly any token is longer
_PIECE = 1 << 16  # characters tokenized at a time
_KEPT_BACK = (
    ". Its end, up to a fifth, is held out to judge and not counted here: give a longer text, or another "
    "one to judge by (validation, --validation)"
)


@dataclasses.dataclass(frozen=True)
class Head(PathLike[str]):
    """The first ``size`` bytes of a text file, whole characters; what comes behind them is not read."""

    path: Path
    size: int

    def __fspath__(self) -> str:
        return str(self.path)


def read_windows(
    given: str | PathLike[str] | Iterable[str],
    model: LoadedModel,
    tokens: int = TOKENS,
    *,
    window: int = WINDOW,
    argument: str = "calibration",
    source: Path | None = None,
    held_out: bool = False,
) -> NDArray[np.uint32]:
    """Token ids [windows, window] of a text file or its :class:`Head`, or of texts one behind the other, that
    were ``given`` as ``argument``.

    A window has ``window`` tokens, or the model's context if that is less, the token that begins a text
    first where the model has one. There are at most ``tokens`` tokens in all, in windows spread evenly over
    the text; of a file over 16 MiB only the pieces that these need are read, and no file over 256 MiB is read
    whole. ``source`` is the file that texts were read from, if they were; ``held_out`` says that the end of
    the text was left out of it before, to judge.

    Raises:
        MissingFileError, StorageError, FileFormatError: the file cannot be read, is none (a device, a pipe),
            or is not UTF-8.
        ParameterError: there is no text, not enough for one window, or it is not valid Unicode.
        TokenizerError: the model's tokenizer is missing or damaged.
    """
    tokenizer = Tokenizer.of(model)
    length = min(window, model.graph.context_length)
    count = max(1, tokens // length)
    begin = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    own = max(1, length - len(begin))
    match given:
        case str() | PathLike():
            path = source = require_file(as_path(given, argument))
            with storage_errors(path):
                size = path.stat().st_size
            size = min(size, given.size) if isinstance(given, Head) else size
            if size > max(_WHOLE_BYTES, min(_MOST_BYTES, 2 * count * own * _PIECE_BYTES)):
                count = min(count, max(1, size // (own * _TOKEN_BYTES)))
                return _checked(argument, begin, list(_spread(path, size, count, own, tokenizer)), tokenizer)
            texts = [_read(path, size)]
        case _:
            texts = texts_of(given, argument)
    if not any(text.strip() for text in texts):
        raise ParameterError(f"{argument}: there is no text{'' if source is None else f' in {source}'}")
    ids = np.concatenate([ids for text in texts for ids in _tokens(tokenizer, text, argument)])
    there = len(ids) // own
    if not there:
        what = "the text" if source is None else source
        first = ", with the token that begins a text" if begin else ""
        raise ParameterError(
            f"{argument}: {what} gives {len(ids) + len(begin)} tokens{first}; a window has {length}"
            + (_KEPT_BACK if held_out else "")
        )
    count = min(count, there)
    firsts = [i * there // count * own for i in range(count)]
    return _checked(argument, begin, [ids[first : first + own] for first in firsts], tokenizer)


def texts_of(given: Iterable[str], argument: str) -> list[str]:
    """Texts that were given as ``argument``, and not as a file.

    Raises:
        ParameterError: they are no texts.
    """
    texts = list(given) if isinstance(given, Iterable) else [given]
    for text in texts:
        if not isinstance(text, str):
            stored = " or of a stored calibration" if argument == "calibration" else ""
            raise ParameterError(
                f"{argument}: must be the path of a text file{stored}, or texts, not {shown(text)}"
            )
    return texts


def digest(windows: NDArray[np.uint32]) -> str:
    """A hexadecimal number that says which windows these are."""
    return hashlib.sha256(repr(windows.shape).encode() + windows.astype("<u4").tobytes()).hexdigest()


def _checked(
    argument: str, begin: list[int], windows: list[NDArray[np.uint32]], tokenizer: Tokenizer
) -> NDArray[np.uint32]:
    if not windows:
        raise ParameterError(f"{argument}: the text has no piece that fills a window")
    check_known(np.stack(windows), tokenizer, argument)
    head = np.array(begin, np.uint32)
    return np.stack([np.concatenate([head, window]) for window in windows])


def check_known(ids: NDArray[np.integer[Any]], tokenizer: Tokenizer, argument: str) -> None:
    """Refuses a text, given as ``argument``, whose token ids say nothing about a model.

    Raises:
        ParameterError: most are unknown to the tokenizer, or single bytes though it has many words.
    """
    unknown, told = tokenizer.unknown, ""
    if unknown is not None and (share := float(np.mean(ids == unknown))) > _MOST_UNKNOWN:
        told = f"{100 * share:.0f} % of the text's tokens are unknown to the model's tokenizer"
    elif tokenizer.pieces() >= _MANY_PIECES and _in_bytes(ids, tokenizer):
        told = "hardly any of the text's tokens spans more than one byte"
    if told:
        raise ParameterError(
            f"{argument}: {told}: it is no text of this model's language or kind, or the tokenizer is "
            "another model's"
        )


def _in_bytes(ids: NDArray[np.integer[Any]], tokenizer: Tokenizer) -> bool:
    """Whether nearly every token is one byte of a character."""
    rows = np.atleast_2d(ids)
    if len(rows) == 1:
        rows = rows[0, : max(1, ids.size // _SAMPLE) * _SAMPLE].reshape(-1, min(ids.size, _SAMPLE))
    some = rows[np.arange(min(_SAMPLE, len(rows))) * len(rows) // min(_SAMPLE, len(rows))]
    text = tokenizer.decode(some.ravel().tolist())
    size = len(text.encode("utf-8", "replace"))
    return size < _LEAST_BYTES * some.size and len(text) < _LEAST_CHARACTERS * some.size


def encode(tokenizer: Tokenizer, text: str, argument: str, *, bos: bool) -> list[int]:
    """As :meth:`Tokenizer.encode`, of a text that was given as ``argument``, which errors name."""
    try:
        return tokenizer.encode(text, bos=bos)
    except ParameterError as error:
        raise ParameterError(f"{argument}: a text {str(error).removeprefix('text: ')}") from error


def _tokens(tokenizer: Tokenizer, text: str, argument: str) -> Iterator[NDArray[np.uint32]]:
    # At least one piece: an empty text has no tokens, but is one.
    for start in range(0, max(1, len(text)), _PIECE):
        yield np.array(encode(tokenizer, text[start : start + _PIECE], argument, bos=False), np.uint32)


def _read(path: Path, size: int) -> str:
    with storage_errors(path), path.open("rb") as file:
        data = file.read(size)
    return _decode(path, data, 0)


def _decode(path: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {offset + error.start})") from error


def _spread(
    path: Path, size: int, count: int, own: int, tokenizer: Tokenizer
) -> Iterator[NDArray[np.uint32]]:
    """Windows from ``count`` places of the first ``size`` bytes of a large file. A place whose piece gives
    too few tokens has none."""
    for index in range(count):
        start = index * size // count
        with storage_errors(path), path.open("rb") as file:
            file.seek(start)
            data = file.read(min(own * _PIECE_BYTES, size - start))
        # A character that begins before the piece is left out, and one that ends behind it.
        lead = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0) if start else 0
        last = start + len(data) == size
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(data[lead:], final=last)
        except UnicodeDecodeError as error:
            at = start + lead + error.start
            raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {at})") from error
        if start:
            text = text[text.find("\n") + 1 :] if "\n" in text[: len(text) // 2] else text
        ids = tokenizer.encode(text, bos=False)[:own]
        if len(ids) == own:
            yield np.array(ids, np.uint32)
