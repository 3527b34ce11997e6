"""From a name to a model that runs: files, graph, engine and tokenizer put together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketlm._core import Engine, Sampler, WeightStore, release_freed_memory
from pocketlm.checks import flag, integer, shown
from pocketlm.errors import MissingFileError, ParameterError
from pocketlm.generate.defaults import GenerationDefaults
from pocketlm.loading import LoadedModel, open_model
from pocketlm.loading.model import TOKENIZER, check_adapter, locate
from pocketlm.loading.tokenizer import TokenizerReading
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pocketlm.describe import Description

BUNDLED = Path(__file__).parent / "assets" / "pocketlm-stories"
DEFAULT_CONTEXT = (
    4096  # tokens; where the model could do more, its cache would often take more than its weights
)
_MOST = (1 << 62) - 1  # of a number that the engine is given
_SMALL_TOKENIZER = 4 << 20  # bytes; read beside the rest, which a larger one would outlast


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
    if draft is not None and not isinstance(draft, str | PathLike | LM):
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
    # A small tokenizer is read while the rest is.
    tokenizer_path = path / TOKENIZER
    reading = None if _is_large(tokenizer_path) else TokenizerReading(tokenizer_path)
    model = open_model(path, check_values=check_values, adapter=adapter)
    most = model.graph.context_length
    if context is not None and context > most:
        raise ParameterError(f"context: {context} is more than the {most} tokens that the model was made for")
    context = context or min(most, DEFAULT_CONTEXT)
    source = str(model.path / "generation_config.json")
    defaults = GenerationDefaults.of(model.generation_config, model.config, source)
    tokenizer = functools.partial(Tokenizer.of, model, defaults.eos)
    graph = model.graph.to_json()
    capacity = max(cache_tokens or 2 * context, context)

    def make(cache_tokens: int, threads: int | None, max_memory: int | None) -> Engine:
        return Engine(
            graph,
            model.store,
            threads=threads,
            cache_tokens=cache_tokens,
            precise=precise,
            max_memory=max_memory,
            kv_dtype=kv_dtype,
        )

    engine = make(capacity, threads, max_memory)
    try:
        ready = tokenizer if reading is None else tokenizer(reading.result())
        helper = None if draft is None else _draft_engine(draft, ready, engine, capacity, max_memory)
    except BaseException:
        engine.close()
        raise
    lm = LM(
        engine,
        ready,
        Sampler,
        defaults=defaults,
        context=context,
        describe=functools.partial(_describe, model),
        identify=lambda: _identity(graph, model.store, precise, kv_dtype),
        again=make,
        draft=helper,
        name=model.path.name,
        loaded=model,
        precise=precise,
        max_memory=max_memory,
    )
    release_freed_memory()
    if prewarm:
        lm.prewarm()
    return lm


def _draft_engine(
    draft: str | PathLike[str] | LM,
    tokenizer: Tokenizer | Callable[[], Tokenizer],
    engine: Engine,
    capacity: int,
    max_memory: int | None,
) -> Any:
    """An engine of the draft model, with a cache of its own, in what ``engine`` leaves of the memory."""
    known = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer()
    left = None if max_memory is None else max(1, max_memory - sum(engine.memory().values()))
    lm = draft if isinstance(draft, LM) else load(draft, threads=engine.threads, max_memory=left)
    try:
        if lm._again is None:
            raise ParameterError("draft: must be a model that pocketlm.load() made")
        if not known.same_tokens(lm.tokenizer):
            raise ParameterError(f"draft: {lm.name!r:.60} has another tokenizer than the model")
        return lm._again(capacity, engine.threads, left)
    finally:
        if lm is not draft:
            lm.close()


def _identity(graph: str, store: WeightStore, precise: bool, kv_dtype: str) -> str:
    """What decides about the numbers in a model's cache."""
    import hashlib

    shape = hashlib.blake2b(graph.encode(), digest_size=16).hexdigest()
    activations = "f32" if precise else "int8"
    layout = {"f16": "f16", "int8": "int8 quads"}[kv_dtype]
    return f"weights {store.fingerprint()} graph {shape} activations {activations} cache {layout}"


def _describe(model: LoadedModel) -> Description:
    from pocketlm.describe import describe

    return describe(model.graph, model.store)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > _SMALL_TOKENIZER
    except OSError:
        return False
