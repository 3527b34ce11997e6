"""A conversation: turns of talk on one model, of which only what is new is computed."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Protocol

from pocketlm.errors import ParameterError
from pocketlm.generate.params import SamplingParams, checked
from pocketlm.generate.result import Completion
from pocketlm.generate.stream import Stream
from pocketlm.records import dataclass


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is ``"system"``, ``"user"`` or ``"assistant"``."""

    role: str
    content: str


class _Model(Protocol):
    name: str

    def _render(self, messages: Sequence[dict[str, str]]) -> list[int]: ...

    def _start(
        self,
        prompt: list[int],
        params: SamplingParams | None,
        overrides: dict[str, Any],
        owner: Any,
        on_end: Any,
    ) -> Stream: ...

    def _forget(self, owner: Any) -> None: ...

    def _write_session(self, path: Any, messages: Sequence[tuple[str, str]], owner: Any) -> None: ...

    def _read_session(self, path: Any, owner: Any) -> Sequence[tuple[str, str]]: ...


class Session:
    """A conversation with a model; make one with :meth:`pocketlm.LM.session`.

    The transcript is the truth, and the whole of it is the prompt of each turn. The model's state after a
    turn is kept, as long as memory allows, and taken up where the new prompt agrees with it:
    ``completion.usage.reused_tokens`` says how much that was. Reuse never changes an answer. A model without
    a chat template continues the transcript as plain text.
    """

    def __init__(
        self,
        model: _Model,
        instructions: str | None = None,
        params: SamplingParams | None = None,
        *,
        restore: str | PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        if instructions is not None and not isinstance(instructions, str):
            raise ParameterError(f"instructions: expected a string, not {type(instructions).__name__}")
        self._model = model
        self._params = checked(params).replace(**overrides)
        if instructions is not None and restore is not None:
            raise ParameterError("instructions: are part of the session that is restored")
        self._messages = [Message("system", instructions)] if instructions else []
        self._key = object()
        if restore is not None:
            self._messages = [Message(*turn) for turn in model._read_session(restore, self._key)]
        self._tokens: int | None = None  # of the transcript, as the last answer counted them
        self._busy: Stream | None = None
        self._closed = False

    @property
    def transcript(self) -> tuple[Message, ...]:
        """All turns so far, the instructions first."""
        return tuple(self._messages)

    def respond(self, prompt: str, params: SamplingParams | None = None, **overrides: Any) -> Completion:
        """Answers ``prompt``. Parameters not given here are the session's.

        Raises:
            ContextLengthError: the conversation is longer than the model's context.
            ParameterError, TemplateError: the prompt or a parameter is not usable. The transcript is
                unchanged.
        """
        with self.stream_response(prompt, params, **overrides) as stream:
            return stream.result()

    def stream_response(self, prompt: str, params: SamplingParams | None = None, **overrides: Any) -> Stream:
        """Answers ``prompt`` as a stream. A cancelled answer stays in the transcript as far as it came; one
        that never began, or failed, leaves the transcript as it was.

        Raises:
            As :meth:`respond`.
        """
        if self._closed:
            raise ParameterError("the session is closed")
        if self._busy is not None and not self._busy.finished:
            raise ParameterError("the session is still answering; cancel or finish that stream first")
        if not isinstance(prompt, str) or not prompt:
            raise ParameterError("prompt: expected a string that is not empty")
        turn = [*self._messages, Message("user", prompt)]

        def on_end(completion: Completion) -> None:
            if completion.text or completion.finish_reason != "cancelled":
                self._messages = [*turn, Message("assistant", completion.text)]
                self._tokens = completion.usage.total_tokens

        ids = self._model._render([{"role": m.role, "content": m.content} for m in turn])
        chosen = self._params if params is None else checked(params).over(self._params)
        self._busy = self._model._start(ids, chosen, overrides, self._key, on_end)
        return self._busy

    def fork(self) -> Session:
        """A second session that goes on from the same transcript."""
        other = Session(self._model, None, self._params)
        other._messages, other._tokens = list(self._messages), self._tokens
        return other

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the conversation to a file, with the model's state as far as memory has kept it, to be taken
        up by ``lm.session(restore=path)`` with the same weights. Answers are then the same as if it had gone
        on. Sampling parameters are not part of it. The file appears whole or not at all, behind a link where
        that leads; a pipe or device is written to.

        Raises:
            ParameterError: the session is closed or still answering.
            StorageError: the file cannot be written.
        """
        if self._closed:
            raise ParameterError("the session is closed")
        if self._busy is not None and not self._busy.finished:
            raise ParameterError("the session is still answering; cancel or finish that stream first")
        self._model._write_session(path, [(m.role, m.content) for m in self._messages], self._key)

    def reset(self) -> None:
        """Forgets all turns but the instructions."""
        if self._busy is not None:
            self._busy.close()
        self._messages = [m for m in self._messages[:1] if m.role == "system"]
        self._tokens = None

    def close(self) -> None:
        """Ends a running answer and frees what is kept of the conversation. The transcript stays readable."""
        if self._busy is not None:
            self._busy.close()
        self._closed = True
        self._model._forget(self._key)

    def __repr__(self) -> str:
        try:
            turns = len(self._messages)
            parts = [
                f"pocketlm.Session with {self._model.name!r}",
                f"{turns} turn{'' if turns == 1 else 's'}",
            ]
            if self._tokens is not None:
                parts.append(f"{self._tokens} tokens")
            return f"<{', '.join([*parts, 'closed'] if self._closed else parts)}>"
        except Exception:  # it is not made yet
            return "<pocketlm.Session>"

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
