"""A located model put together: files, graph, engine and tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm._core import Engine, Sampler, WeightStore, release_freed_memory
from pocketlm.assemble import DEFAULT_CONTEXT, Options, load
from pocketlm.errors import ParameterError
from pocketlm.generate.defaults import GenerationDefaults
from pocketlm.loading.model import LoadedModel, open_model
from pocketlm.loading.tokenizer import TokenizerReading
from pocketlm.model import LM
from pocketlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pocketlm.describe import Description


def compose(path: Path, reading: TokenizerReading | None, options: Options) -> LM:
    """The model in ``path``, ready to use; ``reading`` is its tokenizer, if it is being read already.

    Raises:
        PocketlmError: what :func:`pocketlm.assemble.load` says of files, of the draft model and of memory.
    """
    model = open_model(path, check_values=options.check_values, adapter=options.adapter)
    most = model.graph.context_length
    context = options.context
    if context is not None and context > most:
        raise ParameterError(f"context: {context} is more than the {most} tokens that the model was made for")
    context = context or min(most, DEFAULT_CONTEXT)
    source = str(model.path / "generation_config.json")
    defaults = GenerationDefaults.of(model.generation_config, model.config, source)
    tokenizer = functools.partial(Tokenizer.of, model, defaults.eos)
    graph = model.graph.to_json()
    capacity = max(options.cache_tokens or 2 * context, context)

    def make(cache_tokens: int, threads: int | None, max_memory: int | None) -> Engine:
        return Engine(
            graph,
            model.store,
            threads=threads,
            cache_tokens=cache_tokens,
            precise=options.precise,
            max_memory=max_memory,
            kv_dtype=options.kv_dtype,
        )

    engine = make(capacity, options.threads, options.max_memory)
    try:
        ready = tokenizer if reading is None else tokenizer(reading.result())
        draft = options.draft
        helper = None if draft is None else _draft_engine(draft, ready, engine, capacity, options.max_memory)
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
        identify=lambda: _identity(graph, model.store, options),
        again=make,
        draft=helper,
        name=model.path.name,
        loaded=model,
        precise=options.precise,
        max_memory=options.max_memory,
    )
    release_freed_memory()
    if options.prewarm:
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


def _identity(graph: str, store: WeightStore, options: Options) -> str:
    """What decides about the numbers in a model's cache."""
    import hashlib

    shape = hashlib.blake2b(graph.encode(), digest_size=16).hexdigest()
    activations = "f32" if options.precise else "int8"
    layout = {"f16": "f16", "int8": "int8 quads"}[options.kv_dtype]
    return f"weights {store.fingerprint()} graph {shape} activations {activations} cache {layout}"


def _describe(model: LoadedModel) -> Description:
    from pocketlm.describe import describe

    return describe(model.graph, model.store)
