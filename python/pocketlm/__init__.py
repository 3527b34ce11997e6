"""Small language models on the CPU you have.

::

    import pocketlm

    lm = pocketlm.load()                              # the bundled model; or a directory, or a hub id
    print(lm.generate("Once upon a time").text)       # what follows the prompt, without the prompt

What a file or a caller gets wrong raises a :class:`PocketlmError`; its kinds are in :mod:`pocketlm.errors`.

Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlm.assemble import load
    from pocketlm.describe import Description
    from pocketlm.errors import PocketlmError
    from pocketlm.evaluate.compare import Comparison, compare
    from pocketlm.evaluate.perplexity import Perplexity
    from pocketlm.generate.params import SamplingParams
    from pocketlm.generate.result import Chunk, Completion, Timings, TokenLogprob, Usage
    from pocketlm.generate.session import Message, Session
    from pocketlm.generate.stream import Stream
    from pocketlm.model import LM
    from pocketlm.palettize import palettize
    from pocketlm.profile import profile
    from pocketlm.scores import Score
    from pocketlm.tokenizer import Tokenizer

_homes = {
    "Chunk": "generate.result",
    "Comparison": "evaluate.compare",
    "Completion": "generate.result",
    "Description": "describe",
    "LM": "model",
    "Message": "generate.session",
    "Perplexity": "evaluate.perplexity",
    "PocketlmError": "errors",
    "SamplingParams": "generate.params",
    "Score": "scores",
    "Session": "generate.session",
    "Stream": "generate.stream",
    "Timings": "generate.result",
    "TokenLogprob": "generate.result",
    "Tokenizer": "tokenizer",
    "Usage": "generate.result",
    "compare": "evaluate.compare",
    "load": "assemble",
}

__all__ = [
    "LM",
    "Chunk",
    "Comparison",
    "Completion",
    "Description",
    "Message",
    "Perplexity",
    "PocketlmError",
    "SamplingParams",
    "Score",
    "Session",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "Usage",
    "__version__",
    "compare",
    "load",
    "palettize",
    "profile",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("pocketlm._core").__version__
    elif name in ("errors", "palettize", "profile"):
        return importlib.import_module(f"pocketlm.{name}")  # the latter two are packages that can be called
    elif name in _homes:
        value = getattr(importlib.import_module(f"pocketlm.{_homes[name]}"), name)
    else:
        raise AttributeError(f"module 'pocketlm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
