"""A text file as windows of tokens, each run by itself, with every token scored once."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from pocketlm.checks import integer, shown
from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, StorageError, TokenizerError
from pocketlm.loading.files import as_path, require_file, storage_errors
from pocketlm.tokenizer import Tokenizer

Cut = tuple[int, int | None, int | None]  # context, stride, limit

_MOST_TOKENS = 1 << 62
_ANY_CONTEXT = 512  # where windows are cut for nothing but their sum
_PIECE = 1 << 20  # characters tokenized at a time


@dataclass(frozen=True)
class Window:
    """Token ids to run together; those from ``first`` on are scored, and add ``bytes`` to the text."""

    ids: list[int]
    first: int
    bytes: int

    @property
    def scored(self) -> int:
        """Number of tokens to score."""
        return len(self.ids) - self.first


def check_context(context: int, stride: int | None, limit: int | None, most: int) -> Cut:
    """Checks what :func:`windows` is asked for, for a model of a context of ``most`` tokens. Returns it as
    Python's own integers.

    Raises:
        ParameterError: a number is out of range.
    """
    context = integer("context", context, 2, most)
    return (
        context,
        None if stride is None else integer("stride", stride, 1, context - 1),
        None if limit is None else integer("limit", limit, 1, _MOST_TOKENS),
    )


def check_progress(progress: object) -> None:
    """Raises ParameterError for what is to be told of progress and cannot be."""
    if progress is not None and not callable(progress):
        raise ParameterError(f"progress: must be a function or None, not {shown(progress)}")


def windows(
    tokenizer: Tokenizer,
    path: str | PathLike[str],
    *,
    context: int,
    stride: int | None = None,
    limit: int | None = None,
    same: Tokenizer | None = None,
) -> Iterator[Window]:
    """Windows of at most ``context`` tokens of a UTF-8 file of any length.

    A window begins with the token that begins a text, if the model has one that its tokenizer adds, and
    otherwise with the last token of the window before. With the default ``stride`` (all that fits) every
    window scores all of its tokens, so windows do not overlap; a smaller one scores only the last ``stride``
    tokens of each window. The last window, where few tokens are left, reaches back to be full.

    Files over a million characters are tokenized in pieces that end at a line's end. ``limit`` ends after
    that many tokens. ``same`` is a tokenizer that must give the same tokens.

    Raises:
        ParameterError: ``path`` is none.
        MissingFileError, StorageError: the file cannot be read, or is none (a device, a pipe).
        FileFormatError: it is not UTF-8.
        TokenizerError: ``same`` splits the text otherwise.
    """
    stride = stride or context - 1
    bos = tokenizer.bos if tokenizer.adds_bos else None
    # Tokens that are context only come before `start` in `pending`; `sizes` are the bytes of all of them.
    pending: list[int] = [] if bos is None else [bos]
    sizes: list[int] = [0] * len(pending)
    start, taken = len(pending), 0
    for ids, lengths in _tokens(tokenizer, as_path(path, "path"), same):
        if not pending:
            pending, ids, sizes, lengths, start = ids[:1], ids[1:], lengths[:1], lengths[1:], 1
        if limit is not None:
            ids, lengths = ids[: limit - taken], lengths[: limit - taken]
        taken += len(ids)
        pending += ids
        sizes += lengths
        while len(pending) - start >= stride:
            end = start + stride
            yield _cut(pending, sizes, start, end, context, bos)
            keep = max(0, end - context)
            pending, sizes, start = pending[keep:], sizes[keep:], end - keep
        if limit is not None and taken >= limit:
            break
    if len(pending) > start:
        yield _cut(pending, sizes, start, len(pending), context, bos)


def scored_bytes(tokenizer: Tokenizer, path: str | PathLike[str], limit: int) -> int:
    """Bytes that :func:`windows` ends after, whatever their size; raises what that raises."""
    return sum(window.bytes for window in windows(tokenizer, path, context=_ANY_CONTEXT, limit=limit))


def batched(found: Iterable[Window], size: int) -> Iterator[list[Window]]:
    """Windows, ``size`` at a time."""
    batch: list[Window] = []
    for window in found:
        batch.append(window)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _cut(pending: list[int], sizes: list[int], start: int, end: int, context: int, bos: int | None) -> Window:
    begin, size = max(0, end - context), sum(sizes[start:end])
    if bos is None:
        return Window(pending[begin:end], start - begin, size)
    # The window's own first token in place of the text's.
    begin = max(begin + 1, 1)
    return Window([bos, *pending[begin:end]], start - begin + 1, size)


def _tokens(
    tokenizer: Tokenizer, path: Path, same: Tokenizer | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of pieces of the text, and the bytes that each token adds to it."""
    for text in _pieces(path):
        ids, offsets = tokenizer.offsets(text)
        if same is not None and same.offsets(text)[0] != ids:
            raise TokenizerError(f"{path}: the two models' tokenizers split this text into different tokens")
        # A token ends where the next one begins; a character of several tokens counts for the first of them.
        ends = [end for _, end in offsets]
        if ends:
            ends[-1] = len(text)
        sizes, done = [], 0
        for end in ends:
            sizes.append(len(text[done : max(done, end)].encode("utf-8")))
            done = max(done, end)
        yield ids, sizes


def _damaged(path: Path) -> int:
    """Where a file stops being UTF-8; what decodes it says where in a block that is."""
    decoder, end = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while True:
            block = file.read(_PIECE)
            begin = end - len(decoder.getstate()[0])  # a character may have begun in the block before
            end += len(block)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as problem:
                return begin + problem.start
            if not block:
                return end  # it has changed meanwhile


def _pieces(path: Path) -> Iterator[str]:
    with storage_errors(path):
        directory = path.is_dir()
    if not directory:  # which opening complains about
        require_file(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rest = ""
            while block := file.read(_PIECE):
                rest += block
                cut = rest.rfind("\n") + 1
                if cut or len(rest) > 4 * _PIECE:
                    yield rest[: cut or len(rest)]
                    rest = rest[cut or len(rest) :]
            if rest:
                yield rest
    except FileNotFoundError as missing:
        raise MissingFileError(f"{path}: no such file") from missing
    except UnicodeDecodeError as problem:
        at = _damaged(path)
        raise FileFormatError(f"{path}: not UTF-8 ({problem.reason} at byte {at})") from problem
    except OSError as problem:
        raise StorageError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
