"""Text that judges a palettized model: given for that, or the end of the calibration text, which is then left
out of the calibration."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np

from pocketlm.errors import FileFormatError, ParameterError
from pocketlm.loading import LoadedModel
from pocketlm.loading.files import as_path, require_file, storage_errors
from pocketlm.palettize.damage import MOST_WORK, products
from pocketlm.palettize.text import Head, check_known, encode, texts_of
from pocketlm.tokenizer import Tokenizer

TOKENS = 2048  # of all sequences: KL is over whole distributions, so its mean settles early
LEAST = 256  # below it the mean depends on which tokens it happens to be over
_FEWEST = 512  # where a run is so long that more would leave time for few runs
_RUNS = 32  # some for each site
LENGTH = 256  # tokens of a sequence
_LOGIT_BYTES = 256 << 20  # of the source's logits, which are kept
_END_CHARACTERS = 16 * TOKENS
_WHOLE_BYTES = 4 << 20  # of a larger file only the end is read here

Texts = str | PathLike[str] | Iterable[str] | None


def hold_out(calibration: Texts, validation: Texts) -> tuple[Texts, list[str]]:
    """What to calibrate with, and the held-out texts: those of ``validation`` (a file, or texts), else the
    end of the calibration text, at most a fifth of it. A stored calibration has no text, so that nothing is
    held out.

    Raises:
        MissingFileError, StorageError, FileFormatError: a file cannot be read, is none (a device, a pipe), or
            is not UTF-8.
        ParameterError: there is no text in ``validation``, or one of both is neither a path nor texts.
    """
    if calibration is not None and not isinstance(calibration, str | PathLike):
        calibration = texts_of(calibration, "calibration")
    if validation is not None:
        texts = (
            [_read(as_path(validation, "validation"))]
            if isinstance(validation, str | PathLike)
            else texts_of(validation, "validation")
        )
        if not any(text.strip() for text in texts):
            where = f" in {validation}" if isinstance(validation, str | PathLike) else ""
            raise ParameterError(f"validation: there is no text{where}")
        return calibration, texts
    if isinstance(calibration, str | PathLike):
        path = as_path(calibration, "calibration")
        with storage_errors(path):
            if not path.is_file():
                return calibration, []
            size = path.stat().st_size
        if size > _WHOLE_BYTES:
            return _cut(path, size)
        calibration = [_read(path)]
    return (None, []) if calibration is None else _split(calibration)


def sequences(
    model: LoadedModel, texts: list[str], argument: str = "validation", source: Path | None = None
) -> list[list[int]]:
    """Token ids of a few sequences spread evenly over the texts, which are from ``argument``, all of one
    length where there is enough. ``source`` is the file that they are from, if they are.

    Raises:
        ParameterError: the texts have too few tokens, or hardly one that the tokenizer knows, or are not
            valid Unicode.
        TokenizerError: the model's tokenizer is missing or damaged.
    """
    length = min(LENGTH, model.graph.context_length)
    runs = int(MOST_WORK // (_RUNS * products(model.graph)))
    most = min(TOKENS, _LOGIT_BYTES // (4 * model.graph.vocab_size), max(_FEWEST, runs))
    count = max(1, most // length)
    tokenizer = Tokenizer.of(model)
    ids = np.array([i for text in texts for i in encode(tokenizer, text, argument, bos=True)], np.int64)
    least = min(LEAST, most)
    if len(ids) < least:
        what = "the text" if source is None else str(source)
        hint = ""
        if argument == "calibration":
            what = f"the end of {what}, which is held out to judge,"
            hint = ": give a longer text, or another one to judge by (validation, --validation)"
        raise ParameterError(f"{argument}: {what} has {len(ids)} tokens; at least {least} can judge{hint}")
    check_known(ids, tokenizer, argument)
    there = len(ids) // length
    if not there:
        return [ids.tolist()]
    starts = [at * there // min(count, there) * length for at in range(min(count, there))]
    return [ids[start : start + length].tolist() for start in starts]


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """The texts without their end, and the end."""
    left = min(_END_CHARACTERS, sum(map(len, texts)) // 5)
    head, tail = list(texts), []
    while left > 0 and head:
        text = head.pop()
        cut = max(0, len(text) - left)
        left -= len(text)
        if cut:
            space = text.find(" ", cut)  # a word stays whole
            cut = space if space >= 0 else cut
            head.append(text[:cut])
        tail.append(text[cut:])
    return head, tail[::-1]


def _read(path: Path) -> str:
    require_file(path)
    with storage_errors(path), path.open("rb") as file:
        data = file.read(_WHOLE_BYTES)
        last = not file.read(1)
    return _decode(path, data, 0, last)


def _cut(path: Path, size: int) -> tuple[Head, list[str]]:
    """A large file without its end, of which nothing is read here, and the end."""
    start = size - _END_CHARACTERS
    with storage_errors(path), path.open("rb") as file:
        file.seek(start)
        data = file.read(_END_CHARACTERS)
    # The character that begins before this piece is left out.
    lead = next((at for at, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    return Head(path, start + lead), [_decode(path, data[lead:], start + lead, True)]


def _decode(path: Path, data: bytes, offset: int, last: bool) -> str:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=last)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {offset + error.start})") from error
