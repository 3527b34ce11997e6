"""From a name to a model that runs.

What opens, composes and runs one (:mod:`pocketlm.compose`) is imported while the model's tokenizer is already
being read, which takes as long.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pocketlm.checks import flag, integer, shown
from pocketlm.errors import MissingFileError, ParameterError
from pocketlm.loading.place import TOKENIZER, check_adapter, locate
from pocketlm.loading.tokenizer import TokenizerReading
from pocketlm.records import dataclass

if TYPE_CHECKING:
    from pocketlm.model import LM

BUNDLED = Path(__file__).parent / "assets" / "pocketlm-stories"
DEFAULT_CONTEXT = (
    4096  # tokens; where the model could do more, its cache would often take more than its weights
)
_MOST = (1 << 62) - 1  # of a number that the engine is given
_SMALL_TOKENIZER = 4 << 20  # bytes; read beside the rest, which a larger one would outlast


@dataclass(frozen=True)
class Options:
    """Checked arguments of :func:`load`."""

    threads: int | None
    context: int | None
    precise: bool
    kv_dtype: Literal["f16", "int8"]
    max_memory: int | None
    cache_tokens: int | None
    check_values: bool
    draft: str | PathLike[str] | LM | None
    prewarm: bool
    adapter: Literal["recovery"] | None


def load(
    path_or_id: str | PathLike[str] | None = None,
    *,
    threads: int | None = None,
    context: int | None = None,
    precise: bool = False,
    kv_dtype: Literal["f16", "int8"] = "f16",
    max_memory: int | None = None,
    revision: str | None = None,
    cache_tokens: int | None = None,
    check_values: bool = True,
    draft: str | PathLike[str] | LM | None = None,
    prewarm: bool = False,
    adapter: Literal["recovery"] | None = "recovery",
) -> LM:
    """Opens a model and makes it ready to use.

    Args:
        path_or_id: a directory (a Hugging Face checkpoint, or one palettized by pocketlm) or a hub id;
            ``None`` opens the bundled model.
        threads: threads to compute with; ``None`` for at most as many as there are cores to use: each number
            of rows up to sixteen, and prompts, get the number that is measured to be fastest while they run.
        context: most tokens of a prompt and its answer together; ``None`` for the model's own context, at
            most 4096.
        precise: do not quantize activations to 8 bits: slower, for comparison.
        kv_dtype: how keys and values of past tokens are kept: ``"int8"`` takes about half the memory of
            ``"f16"``, and the text can differ a little.
        max_memory: most bytes of weights, cache and scratch together.
        revision: branch, tag or commit of a hub id.
        cache_tokens: tokens that the cache holds, over all running requests and kept beginnings; ``None`` for
            twice the context.
        check_values: look for NaN and infinity in the weights first.
        draft: a much smaller model with the same tokenizer (a directory, a hub id, or a loaded model, which
            keeps its own memory) that guesses tokens for this one to check. It changes the speed, never the
            text. Where it does not pay it is not asked.
        prewarm: do now what the first request would wait for (see :meth:`LM.prewarm`).
        adapter: ``"recovery"`` attaches the accuracy-recovery adapter in the model's directory
            ``adapters/recovery``, if there is one; ``None`` leaves it out.

    Raises:
        MissingFileError, FileFormatError, ConfigError, WeightError, AdapterError, TokenizerError: the model
            cannot be used; the message names the file. A tokenizer of more than 4 MB is read, and so checked,
            when it is first needed; what encodes byte-level tokens is checked with the first text.
        ParameterError: an argument is out of range, or the draft model has another tokenizer.
        MemoryLimitError: ``max_memory``, or the machine's memory, would be exceeded.
    """
    threads, context, max_memory, cache_tokens = (
        None if value is None else integer(name, value, 1, _MOST)
        for name, value in (
            ("threads", threads),
            ("context", context),
            ("max_memory", max_memory),
            ("cache_tokens", cache_tokens),
        )
    )
    for name, switch in (("precise", precise), ("check_values", check_values), ("prewarm", prewarm)):
        flag(name, switch)
    if draft is not None and not isinstance(draft, str | PathLike):
        from pocketlm.model import LM

        if not isinstance(draft, LM):
            raise ParameterError(f"draft: must be a path, a hub id or a loaded model, not {shown(draft)}")
    if not isinstance(kv_dtype, str) or kv_dtype not in ("f16", "int8"):
        raise ParameterError(f"kv_dtype: must be 'f16' or 'int8', not {shown(kv_dtype)}")
    check_adapter(adapter)
    if revision is not None and not isinstance(revision, str):
        raise ParameterError(f"revision: must be a string, not {shown(revision)}")
    if path_or_id is None and not BUNDLED.is_dir():
        raise MissingFileError(f"{BUNDLED}: the bundled model is not part of this installation; name a model")
    place = BUNDLED if path_or_id is None else path_or_id
    path = locate(place, revision)
    # A small tokenizer is read while the rest is, and while what reads the rest is imported.
    tokenizer_path = path / TOKENIZER
    reading = None if _is_large(tokenizer_path) else TokenizerReading(tokenizer_path)
    from pocketlm.compose import compose

    options = Options(
        threads, context, precise, kv_dtype, max_memory, cache_tokens, check_values, draft, prewarm, adapter
    )
    return compose(path, reading, options)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > _SMALL_TOKENIZER
    except OSError:
        return False
