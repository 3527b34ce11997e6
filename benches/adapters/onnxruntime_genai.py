"""ONNX Runtime GenAI, with models made by its own builder (which needs PyTorch, so it runs where that is)."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benches.adapters.base import Adapter, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Level 4: products of int8, the fastest on a CPU. Logits of the last token only, as the others compute them.
OPTIONS = ["block_size=128", "accuracy_level=4", "prune_lm_head=true"]


class Peer(Adapter):
    """See :class:`Adapter`."""

    title = "onnxruntime-genai"
    packages = ("onnxruntime-genai==0.18.0",)
    converts_in = "torchao"
    forms = {"int4": 0.85}  # noqa: RUF012
    families = frozenset({"llama"})

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        def make(partial: Path) -> None:
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint)]
            command += ["-o", str(partial), "-p", variant, "-e", "cpu", "-c", str(target / "cache")]
            subprocess.run([*command, "--extra_options", *OPTIONS], check=True, stdout=sys.stderr)

        return whole(target / variant, make)

    def load(self, path: Path, threads: int, context: int) -> None:
        import numpy as np
        import onnxruntime_genai as api

        self.api, self.np, self.context = api, np, context
        config = api.Config(str(path))
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}})
        )
        self.model = api.Model(config)

    def _start(self, ids: Sequence[int], count: int) -> None:
        params = self.api.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=len(ids) + count, min_length=len(ids) + count)
        self.generator = self.api.Generator(self.model, params)
        self.generator.append_tokens(self.np.asarray(ids, self.np.int32))

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        self._start(ids, count)
        tokens, times = [], []
        for _ in range(count):
            self.generator.generate_next_token()
            tokens.append(int(self.generator.get_next_tokens()[0]))
            times.append(time.perf_counter())
        return tokens, times

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._start(ids, 1)
        return self.np.asarray(self.generator.get_logits(), self.np.float32).reshape(-1)

    def version(self) -> str:
        return importlib.metadata.version("onnxruntime-genai")
