"""The model ``pocketlm`` of lm-evaluation-harness (extra ``eval``).

::

    python -m pocketlm.lm_eval --model pocketlm --model_args pretrained=my-model --tasks lambada_openai

or, from Python, after ``import pocketlm.lm_eval``::

    lm_eval.simple_evaluate(model="pocketlm", model_args={"pretrained": "my-model"}, tasks=[...])

What the figures mean is in :mod:`pocketlm.evaluate.harness`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from tqdm import tqdm

from pocketlm.assemble import load
from pocketlm.checks import shown
from pocketlm.errors import ParameterError, TemplateError, UnsupportedError
from pocketlm.evaluate.harness import Harness
from pocketlm.model import LM

try:
    from lm_eval.api import model as api
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise UnsupportedError(
        "pocketlm.lm_eval: lm-evaluation-harness is missing; pip install 'pocketlm[eval]'"
    ) from missing

_TOGETHER = 16


@register_model("pocketlm")
class HarnessLM(api.LM):
    """A pocketlm model for the harness.

    Args:
        pretrained: what :func:`pocketlm.load` takes, or a loaded model; ``None`` is the bundled one.
        batch_size: requests that run together; figures do not depend on it. 1 and "auto" let it be chosen.
        max_length: tokens that the model reads at most; by default its context.
        seed: of sampled generations.
        threads, precise, kv_dtype, revision, max_memory: as :func:`pocketlm.load` takes them.
        device, max_batch_size: taken, since the harness passes them, and without effect.

    Raises:
        ParameterError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        pretrained: str | PathLike[str] | LM | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        seed: int = 1234,
        device: Any = None,
        max_batch_size: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        unknown = settings.keys() - {"threads", "precise", "kv_dtype", "revision", "max_memory"}
        if unknown:
            raise ParameterError(f"{min(unknown)}: unknown model argument")
        together = _number(batch_size)
        if isinstance(pretrained, LM):
            self.lm = pretrained
        else:
            room = None if max_length is None else together * max_length
            self.lm = load(pretrained, context=max_length, cache_tokens=room, **settings)
        self.harness = Harness(self.lm, max_length=max_length, together=together, seed=seed)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-probability, and whether greedy decoding says the same."""
        arguments = [request.args for request in requests]
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm or None) as bar:
            found = self.harness.loglikelihood(arguments, bar.update)
        self._keep("loglikelihood", arguments, found)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text."""
        arguments = [request.args for request in requests]
        with tqdm(desc="loglikelihood_rolling", unit="windows", disable=disable_tqdm or None) as bar:
            found = self.harness.loglikelihood_rolling([text for (text,) in arguments], bar.update)
        self._keep("loglikelihood_rolling", arguments, found)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that continues each context."""
        arguments = [request.args for request in requests]
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm or None) as bar:
            found = self.harness.generate_until(arguments, bar.update)
        self._keep("generate_until", arguments, found)
        return found

    def _keep(self, kind: str, arguments: Sequence[Any], found: Sequence[Any]) -> None:
        for request, answer in zip(arguments, found, strict=True):
            self.cache_hook.add_partial(kind, request, answer)

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return (self.lm.name or "pocketlm").replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's chat template, where one is to be applied."""
        template = self.lm.tokenizer.template
        return template.source if chat_template and template is not None else None

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. Without ``add_generation_prompt`` it ends with the last message's own
        text, for the model to go on with.

        Raises:
            TemplateError: the model has no template, or it fails on these messages.
        """
        template = self.lm.tokenizer.template
        if template is None:
            raise TemplateError(f"{self.lm.name or 'the model'}: has no chat template")
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt or not chat_history:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)] if last in text else text


def _number(batch_size: int | str | None) -> int:
    given = batch_size if isinstance(batch_size, str) else shown(1 if batch_size is None else batch_size)
    text = given.split(":")[0]
    if text in ("1", "auto"):
        return _TOGETHER
    if not text.isdecimal() or len(text) > 9 or not 0 < int(text) <= 1 << 16:
        raise ParameterError(f"batch_size: must be a positive number or 'auto', not {shown(batch_size)}")
    return int(text)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
