"""From a name to a model that runs: files, graph, engine and tokenizer put together."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pocketlm._core import Engine, Sampler, WeightStore
from pocketlm.errors import MissingFileError, ParameterError

# What opens and runs a model is imported by `load`, while a thread of its own reads the tokenizer: neither
# waits for the other.
if TYPE_CHECKING:
    from pocketlm.describe import Description
    from pocketlm.loading import LoadedModel
    from pocketlm.loading.tokenizer import ReadTokenizer
    from pocketlm.model import LM
    from pocketlm.tokenizer import Tokenizer

Read = TypeVar("Read")

BUNDLED = Path(__file__).parent / "assets" / "pocketlm-stories"
DEFAULT_CONTEXT = (
    4096  # tokens; where the model could do more, its cache would often take more than its weights
)
_SMALL_TOKENIZER = (
    4 << 20
)  # bytes; read at once. One of 128,000 tokens takes half a second, many times the rest


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
        threads: threads to compute with; ``None`` for at most as many as there are cores to use: one row, a
            few, and prompts each get the number that is measured to be fastest while they run.
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
            when it is first needed.
        ParameterError: an argument is out of range, or the draft model has another tokenizer.
        MemoryLimitError: ``max_memory``, or the machine's memory, would be exceeded.
    """
    for name, value in (
        ("threads", threads),
        ("context", context),
        ("max_memory", max_memory),
        ("cache_tokens", cache_tokens),
    ):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 62
        ):
            raise ParameterError(f"{name}: must be a positive integer, not {value!r:.60}")
    if draft is not None and not isinstance(draft, str | PathLike) and not _is_loaded(draft):
        raise ParameterError(f"draft: must be a path, a hub id or a loaded model, not {draft!r:.60}")
    if kv_dtype not in ("f16", "int8"):
        raise ParameterError(f"kv_dtype: must be 'f16' or 'int8', not {kv_dtype!r:.60}")
    if path_or_id is None and not BUNDLED.is_dir():
        raise MissingFileError(f"{BUNDLED}: the bundled model is not part of this installation; name a model")
    place = BUNDLED if path_or_id is None else path_or_id
    early = _early(place)
    from dataclasses import replace

    from pocketlm.generate.defaults import GenerationDefaults
    from pocketlm.loading import open_model

    model = open_model(place, revision=revision, check_values=check_values, adapter=adapter)
    if early is not None:
        model = replace(model, reading=early.result)
    most = model.graph.context_length
    if context is not None and context > most:
        raise ParameterError(f"context: {context} is more than the {most} tokens that the model was made for")
    context = context or min(most, DEFAULT_CONTEXT)
    source = str(model.path / "generation_config.json")
    defaults = GenerationDefaults.of(model.generation_config, model.config, source)
    tokenizer = functools.partial(_tokenizer, model, defaults.eos)
    reading = None if _is_large(model.tokenizer_path) else _Reading(tokenizer)
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

    from pocketlm.model import LM

    engine = make(capacity, threads, max_memory)
    try:
        ready = tokenizer if reading is None else reading.result()
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
    )
    if prewarm:
        lm.prewarm()
    return lm


def _early(place: str | PathLike[str]) -> _Reading[ReadTokenizer] | None:
    """Begins to read the tokenizer of a local directory, before the rest is looked at; not a large one."""
    try:
        file = Path(place).expanduser() / "tokenizer.json"
        small = file.is_file() and not _is_large(file)
    except (OSError, RuntimeError, TypeError, ValueError):
        return None  # what is wrong is said where the model is opened

    def read() -> ReadTokenizer:
        from pocketlm.loading.tokenizer import read_tokenizer

        return read_tokenizer(file)

    return _Reading(read) if small else None


def _tokenizer(model: LoadedModel, eos: Iterable[int]) -> Tokenizer:
    from pocketlm.tokenizer import Tokenizer

    return Tokenizer.of(model, eos)


class _Reading(Generic[Read]):
    """Something on its way, read in a thread of its own: the library lets others run meanwhile."""

    def __init__(self, read: Callable[[], Read]) -> None:
        self._read = read
        self._found: list[Read] = []
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pocketlm-tokenizer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found.append(self._read())
        except BaseException as problem:
            self._problem = problem

    def result(self) -> Read:
        """Waits for it. Raises what reading it raised."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._found[0]


def _draft_engine(
    draft: str | PathLike[str] | LM,
    tokenizer: Tokenizer | Callable[[], Tokenizer],
    engine: Engine,
    capacity: int,
    max_memory: int | None,
) -> Any:
    """An engine of the draft model, with a cache of its own, in what ``engine`` leaves of the memory."""
    known = tokenizer() if callable(tokenizer) else tokenizer
    left = None if max_memory is None else max(1, max_memory - sum(engine.memory().values()))
    lm = load(draft, threads=engine.threads, max_memory=left) if isinstance(draft, str | PathLike) else draft
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


def _is_loaded(draft: object) -> bool:
    from pocketlm.model import LM

    return isinstance(draft, LM)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > _SMALL_TOKENIZER
    except OSError:
        return False
