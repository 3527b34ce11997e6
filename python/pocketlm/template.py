"""Chat templates: Jinja text that comes with a model, so code from a stranger, rendered in a sandbox with
limits.

The environment is the one that published templates are written for (Hugging Face's ``apply_chat_template``):
blocks trimmed, loop controls, ``tojson``, ``raise_exception``, ``strftime_now`` and the ``generation`` block.
What a template can spend is bounded: steps, processor time (in compiling, too), and the size of every value
that it makes, alone and together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pocketlm.errors import TemplateError
from pocketlm.sandbox import MAX_TEXT, TemplateSandbox, count_steps, limited, spend

MAX_SOURCE = 1 << 20  # characters of a template


class ChatTemplate:
    """A compiled chat template. ``special`` holds the special tokens that it may name (``bos_token``,
    ...)."""

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        """Compiles ``source``.

        Raises:
            TemplateError: it is too large or not valid.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template: longer than {MAX_SOURCE} characters")
        self.source, self._special = source, dict(special or {})
        environment = TemplateSandbox()
        try:
            with limited():
                self._template = environment.from_string(count_steps(environment.parse(source)))
        except Exception as problem:
            raise TemplateError(f"chat template: not valid: {_describe(problem)}") from problem

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a conversation.

        ``messages`` are mappings with ``role`` and ``content``. With ``add_generation_prompt`` the text ends
        where the assistant's answer begins. ``variables`` (``tools``, ``documents``, ...) are passed to the
        template.

        Raises:
            TemplateError: the template refuses the messages, fails, or exceeds its limits.
        """
        values = {"tools": None, "documents": None, **self._special, **variables}
        parts: list[str] = []
        size = 0
        try:
            with limited():
                for part in self._template.generate(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    **values,
                ):
                    spend(0)
                    size += len(part)
                    if size > MAX_TEXT:
                        raise TemplateError(f"chat template: makes more than {MAX_TEXT} characters")
                    parts.append(part)
        except TemplateError:
            raise
        except Exception as problem:
            raise TemplateError(f"chat template: {_describe(problem)}") from problem
        return "".join(parts)


def _describe(problem: Exception) -> str:
    line = getattr(problem, "lineno", None)
    text = str(problem) or type(problem).__name__
    return f"{text:.300}" + (f" (line {line})" if line else "")
