"""What generation hands back."""

from __future__ import annotations

from typing import Any, Literal

from pocketlm.records import dataclass, replace

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability (natural logarithm), and the likeliest tokens of its place.

    Attributes:
        token: its id.
        text: what it adds to a text, its leading space included. Bytes that are no whole character are
            U+FFFD; a special token, which the completion's text leaves out, is its name.
        logprob: its log-probability.
        top: (token id, log-probability), likeliest first; ``lm.tokenizer.decode_token(id)`` is the text of
            one.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, those of them that were reused from the cache, and tokens generated.

    ``proposed_tokens`` were guessed and computed before their turn; ``accepted_tokens`` of them were right.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds of a request: waiting for its turn, reading the prompt, generating.

    Work is shared with the other requests of a batch, so the rates are what this request saw, not what the
    machine did.
    """

    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0

    @property
    def ttft_seconds(self) -> float:
        """Time to the first token, from the call on."""
        return self.queued_seconds + self.prefill_seconds

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed per second; 0 where nothing was."""
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second after the first one; 0 where there was only one."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream: the text that became certain, and the tokens generated since the last piece.

    The last chunk has a ``finish_reason``. ``str(chunk)`` is its text.
    """

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    Attributes:
        text: the new text, without special tokens and without the stop string.
        tokens: all generated token ids, the one that ended the text included.
        finish_reason: ``"stop"`` (end token or stop string), ``"length"`` (``max_tokens``) or
            ``"cancelled"``.
        stop_reason: the stop string or token id that ended the text; ``None`` otherwise.
        logprobs: one entry for each token, if asked for.
        seed: the seed that yields the same tokens again.
        usage, timings: counts of tokens and seconds.
        others: the further texts of the same prompt, where ``n`` asked for several.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    seed: int = 0
    usage: Usage = Usage()
    timings: Timings = Timings()
    others: tuple[Completion, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def choices(self) -> tuple[Completion, ...]:
        """All texts of the prompt: this one and the :attr:`others`."""
        return (replace(self, others=()), *self.others)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON, derived figures included."""
        import dataclasses  # takes as long to import as a model to open, and few ask for this

        values = dataclasses.asdict(replace(self, others=()))
        values["others"] = [other.to_dict() for other in self.others]
        values["usage"]["total_tokens"] = self.usage.total_tokens
        for name in ("ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"):
            values["timings"][name] = getattr(self.timings, name)
        return values
