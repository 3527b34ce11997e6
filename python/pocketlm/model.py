"""A language model, ready to use."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from pocketlm.checks import integer
from pocketlm.errors import ParameterError
from pocketlm.generate import samples
from pocketlm.generate.batch import logit_rows
from pocketlm.generate.defaults import GenerationDefaults
from pocketlm.generate.job import Evaluation
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.requests import LIST, ONE, Requests, is_batch
from pocketlm.generate.result import Completion
from pocketlm.generate.scheduler import Scheduler
from pocketlm.generate.stream import Stream
from pocketlm.loading.files import as_path
from pocketlm.loading.model import LoadedModel
from pocketlm.tokenizer import Tokenizer

if TYPE_CHECKING:
    # Imported where they are used: generating text needs none of them, and NumPy takes longer than the rest.
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from pocketlm.describe import Description
    from pocketlm.evaluate.perplexity import Perplexity
    from pocketlm.generate.engine import Engine, SamplerFactory
    from pocketlm.generate.session import Session
    from pocketlm.scores import Score

    Prompt = str | Sequence[int] | NDArray[Any]


_MOST = (1 << 62) - 1  # of a position


class LM:
    """A language model; :func:`pocketlm.load` makes one. Safe to use from any number of threads.

    Attributes:
        engine: the engine that runs it.
        context: most tokens of a prompt and its answer together.
        defaults: what the model's generation_config.json asks for.
        loaded: the files that it came from, with graph and weights.
        precise: whether activations stay in float32.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | Callable[[], Tokenizer],
        sampler: SamplerFactory,
        *,
        defaults: GenerationDefaults | None = None,
        context: int | None = None,
        describe: Callable[[], Description] | None = None,
        identify: Callable[[], str] | None = None,
        again: Callable[[int, int | None, int | None], Any] | None = None,
        draft: Engine | None = None,
        name: str = "",
        loaded: LoadedModel | None = None,
        precise: bool = False,
        max_memory: int | None = None,
    ) -> None:
        self.engine, self.name, self.loaded, self.precise = engine, name, loaded, precise
        self.context = min(context or engine.context_length, engine.context_length, engine.cache_tokens)
        self.defaults = defaults or GenerationDefaults()
        self._tokenizer = tokenizer
        self._describe = describe
        self._requests = Requests(
            lambda: self.tokenizer,
            sampler,
            self.defaults.params,
            continuation=engine.continuation,
            context=self.context,
            vocab_size=engine.vocab_size,
        )
        self._identify, self._identity = identify, None if identify is not None else "unknown"
        self._again, self._draft, self._max_memory = again, draft, max_memory
        drafter = None
        if draft is not None:
            from pocketlm.generate.draft import Drafter

            drafter = Drafter(draft)
        self._scheduler = Scheduler(engine, drafter)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; a large one is read when it is first needed.

        Raises:
            TokenizerError: it is damaged or not of this model.
        """
        found = self._tokenizer
        if not isinstance(found, Tokenizer):
            # Without a lock, which a child or a signal's handler could find taken for ever: threads that come
            # here at once each read it, and the first one's stays.
            made = found()
            if not isinstance(found := self._tokenizer, Tokenizer):
                found = self._tokenizer = made
        return found

    @property
    def info(self) -> Description:
        """Tensors, bytes and bits per weight."""
        if self._describe is None:
            raise ParameterError("this model was made without a description")
        return self._describe()

    @overload
    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[Any],
        params: SamplingParams | None = None,
        **overrides: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        **overrides: Any,
    ) -> list[Completion]: ...

    def generate(self, prompt: Any, params: Any = None, **overrides: Any) -> Completion | list[Completion]:
        """Continues a prompt, or each of several together.

        ``prompt`` is a string, a sequence of token ids, or a list of either; messages become token ids with
        ``lm.tokenizer.encode_chat(messages)``. ``params`` are :class:`~pocketlm.SamplingParams` (or a list,
        one for each prompt); ``overrides`` change some of them by name: ``lm.generate("Once", max_tokens=50,
        temperature=0.7)``. With ``n=3`` the result's ``choices`` are three texts.

        Raises:
            ParameterError: a parameter is out of range, a token id is unknown, or a prompt is empty. Of
                several prompts this and the next one say which, from 0 on.
            ContextLengthError: a prompt and its ``max_tokens`` do not fit the context. Raised before any
                work.
            TokenizerError: the first text shows that the tokenizer is damaged or not of this model.
        """
        single = not is_batch(prompt)
        prompts = [prompt] if single else prompt
        chosen = params if isinstance(params, Sequence) and not single else [params] * len(prompts)
        if len(chosen) != len(prompts):
            raise ParameterError(f"params: {len(chosen)} for {len(prompts)} prompts")
        groups = self._requests.batch(prompts, chosen, overrides, LIST if single else None)
        found = samples.run(self._scheduler, groups)
        return found[0] if single else found

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **overrides: Any) -> Stream:
        """Continues a prompt and yields the text in pieces as it is made; for ``for`` and ``async for``.

        Raises:
            As :meth:`generate`, at once.
        """
        return self._start(self._requests.ids(prompt, several=ONE), params, overrides)

    def session(
        self,
        instructions: str | None = None,
        params: SamplingParams | None = None,
        *,
        restore: str | PathLike[str] | None = None,
        **overrides: Any,
    ) -> Session:
        """A conversation. ``instructions`` tell the model how to behave; parameters are those of its
        answers. ``restore`` names a file of :meth:`Session.save` to go on from.

        Raises:
            MissingFileError, StorageError, FileFormatError: the file cannot be read, or is damaged.
            ParameterError: it was saved from another model.
        """
        from pocketlm.generate.session import Session

        return Session(self, instructions, params, restore=restore, **overrides)

    chat = session

    def logits(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Logits [tokens, vocabulary] of a sequence of token ids: row i scores the token after ids[i].

        Raises:
            ParameterError: an id is unknown, or there are none.
            ContextLengthError: there are more than the context holds.
            MemoryLimitError: the result, 4 bytes for each token and vocabulary entry, exceeds what the model
                leaves of ``max_memory`` or of the machine's memory. :meth:`iter_logits` needs little.
        """
        import numpy as np

        # Arrays of other libraries become NumPy's; anything else may have no end.
        tokens = self._requests.ids(np.asarray(ids) if hasattr(ids, "__array__") else ids)
        engines = [self.engine] if self._draft is None else [self.engine, self._draft]
        from pocketlm.memory import empty_logits

        found = empty_logits(len(tokens), engines, self._max_memory)

        def receive(start: int, rows: NDArray[np.float32]) -> None:
            found[start : start + len(rows)] = rows

        self.evaluate([tokens], [receive])
        return found

    def score(self, prompt: Prompt, continuation: Prompt | None = None) -> Score:
        """How likely the model finds ``continuation`` after ``prompt``, or ``prompt`` itself from its second
        token on.

        Raises:
            As :meth:`logits`.
        """
        import numpy as np

        from pocketlm.scores import Score, token_logprobs

        if continuation is None:
            ids, first = self._requests.ids(prompt), 1
        else:
            ids, first = self._requests.joined(prompt, continuation)
        targets = np.asarray(ids[first:])
        logprobs = np.empty(len(targets), np.float64)
        greedy = np.ones(len(targets), bool)

        def receive(start: int, rows: NDArray[np.float32]) -> None:
            low, high = max(start, first - 1), min(start + len(rows), len(ids) - 1)
            if low < high:
                used, at = rows[low - start : high - start], slice(low - first + 1, high - first + 1)
                logprobs[at] = token_logprobs(used, targets[at])
                greedy[at] = used.argmax(-1) == targets[at]

        self.evaluate([ids], [receive], [first - 1])
        return Score(tuple(map(int, targets)), tuple(map(float, logprobs)), bool(greedy.all()))

    def evaluate(
        self,
        sequences: Sequence[Sequence[int]],
        receivers: Sequence[Callable[[int, NDArray[np.float32]], None]],
        first: Sequence[int] | None = None,
    ) -> None:
        """Runs sequences of token ids together and hands each one's logits on, a few rows at a time, in
        order: ``receiver(position of the first row, rows [n, vocabulary])``. ``first`` are the positions from
        which on logits are wanted, which saves computing the others. What a receiver raises is raised
        here.

        Raises:
            ParameterError: numbers of sequences, receivers and ``first`` differ, or a position is negative; a
                receiver uses the model.
            As :meth:`logits`.
        """
        starts = [0] * len(sequences) if first is None else first
        for name, found in (("receivers", receivers), ("first", starts)):
            if len(found) != len(sequences):
                raise ParameterError(f"{name}: {len(found)} for {len(sequences)} sequences")
        jobs = [
            Evaluation(self._requests.ids(ids), receiver, integer("first", start, 0, _MOST))
            for ids, receiver, start in zip(sequences, receivers, starts, strict=True)
        ]
        samples.finish(self._scheduler, jobs)

    def iter_logits(self, ids: Sequence[int], first: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits of a sequence of token ids from position ``first`` on, as ``(position of the first row, rows
        [n, vocabulary])``, computed as they are asked for: no more than a few rows (64 MB) are in memory.

        Raises:
            As :meth:`logits`.
        """
        tokens, start = self._requests.ids(ids), integer("first", first, 0, _MOST)
        rows = min(self.engine.max_rows, logit_rows(self.engine))
        found: deque[tuple[int, NDArray[np.float32]]] = deque()
        # Each part is a job of its own, so that none is computed before it is asked for, whoever leads. Its
        # sequence is kept for the next one, and computed again should others need the room in between.
        owner = object()
        try:
            while start < len(tokens):
                end = min(start + rows, len(tokens))
                job = Evaluation(tokens[:end], lambda at, part: found.append((at, part)), start, owner)
                samples.finish(self._scheduler, [job])
                start = end
                while found:
                    yield found.popleft()
        finally:
            self._forget(owner)

    def perplexity(self, path: str | PathLike[str], *, context: int = 512, **options: Any) -> Perplexity:
        """How well the model predicts a text file; see :func:`pocketlm.evaluate.perplexity.measure`."""
        from pocketlm.evaluate.perplexity import measure

        return measure(self, path, context=context, **options)

    def prewarm(self) -> None:
        """Does beforehand what the first request would wait for: reads the weights and the tokenizer in,
        starts the threads, and generates up to two tokens, which are thrown away.

        Raises:
            ParameterError: the model is closed.
            TokenizerError: its tokenizer is damaged or not of this model.
        """
        self._check_open()
        self.engine.prewarm()
        self.tokenizer.prewarm()
        key = object()
        size = max(1, min(33, self.context - 2))
        room = min(2, self.context - size)
        if not room:  # nor has any request
            return
        try:
            self._start([0] * size, None, {"max_tokens": room, "ignore_eos": True}, key).result()
        finally:
            self._forget(key)

    def close(self) -> None:
        """Ends all work and frees the memory. Using the model afterwards is a :class:`ParameterError`."""
        self._scheduler.close()
        self.engine.close()
        if self._draft is not None:
            self._draft.close()

    def __repr__(self) -> str:
        # Logs and debuggers ask for it at any time: it waits for nothing and leaves out what it cannot say.
        try:
            parts = [f"pocketlm.LM {self.name!r}"]
            if self._scheduler.closed:
                return f"<{parts[0]}, closed>"
            with contextlib.suppress(Exception):
                from pocketlm.describe import count

                parts.append(f"{count(self.info.parameters)} parameters")
            return f"<{', '.join([*parts, f'context {self.context}'])}>"
        except Exception:
            return "<pocketlm.LM>"

    def __enter__(self) -> LM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        self._scheduler.check_open()

    def _start(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        overrides: Mapping[str, Any],
        owner: Any = None,
        on_end: Callable[[Completion], None] | None = None,
    ) -> Stream:
        job = self._requests.generation(prompt, params, overrides, owner)
        self._scheduler.submit(job)
        return Stream(self._scheduler, job, on_end)

    def _render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        # Without a template the conversation is one text that the model goes on with.
        if self.tokenizer.template is not None:
            return self._requests.ids(self.tokenizer.encode_chat(messages, limit=self.context))
        parts: list[str] = []
        for message in messages:
            before = "" if not parts or message["role"] == "assistant" else "\n"
            parts.append(before + message["content"])
        return self._requests.ids("".join(parts))

    def _forget(self, owner: Any) -> None:
        self._scheduler.forget(owner)

    def _fingerprint(self) -> str:
        if self._identity is None and self._identify is not None:
            self._identity = self._identify()
        return self._identity or "unknown"

    def _write_session(self, path: Any, messages: Sequence[tuple[str, str]], owner: Any) -> None:
        from pocketlm.generate import saved

        ids, data = self._scheduler.kept(owner)
        saved.write(
            as_path(path, "path"), saved.Saved(tuple(messages), tuple(ids), data), self._fingerprint()
        )

    def _read_session(self, path: Any, owner: Any) -> Sequence[tuple[str, str]]:
        from pocketlm.generate import saved

        found = saved.read(as_path(path, "restore"), self._fingerprint())
        if found.tokens and len(found.tokens) <= self.context:
            ids = self._requests.ids(list(found.tokens))
            self._scheduler.keep(owner, ids, found.cache)
        return found.messages
