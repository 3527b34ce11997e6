"""llama.cpp through ``llama-cpp-python``, built for this machine.

Uses its low-level interface, which is the faster one: no copies of logits, the runtime's own greedy sampler.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches.adapters.base import Adapter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q6_K": 18, "IQ4_XS": 30}


class Peer(Adapter):
    """See :class:`Adapter`."""

    title = "llama-cpp-python"
    packages = ("llama-cpp-python==0.3.36", "gguf")
    from_source = ("llama-cpp-python",)
    build_variables = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"}  # noqa: RUF012
    forms = {  # noqa: RUF012
        "F16": 0.9999,
        "Q8_0": 0.995,
        "Q6_K": 0.98,
        "Q4_K_M": 0.85,
        "IQ4_XS": 0.85,
        "Q4_0": 0.8,
        "Q3_K_M": 0.7,
        "Q2_K": 0.3,
    }
    exact = frozenset({"F16"})
    families = frozenset({"llama", "openelm"})
    flash_attention = -1  # as it chooses, which is with

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        base, path = target / "F16.gguf", target / f"{variant}.gguf"
        if not path.exists() and not base.exists():
            from benches.adapters import gguf_file

            partial = target / "F16.partial"
            gguf_file.write(checkpoint, partial)
            partial.rename(base)
        if not path.exists():
            import llama_cpp as api

            _quiet(api)
            params = api.llama_model_quantize_default_params()
            params.ftype = FILE_TYPES[variant]
            partial = target / f"{variant}.partial"
            if api.llama_model_quantize(str(base).encode(), str(partial).encode(), params):
                raise RuntimeError(f"llama.cpp failed to quantize to {variant}")
            partial.rename(path)
        return path

    def load(self, path: Path, threads: int, context: int) -> None:
        import llama_cpp as api

        _quiet(api)
        self.api = api
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        params = api.llama_context_default_params()
        params.n_ctx = -(-context // 256) * 256
        params.flash_attn_type = self.flash_attention
        params.n_threads = params.n_threads_batch = threads
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"llama.cpp could not make a context of {context} tokens")
        self.step = params.n_batch
        self.memory = api.llama_get_memory(self.context)
        self.sampler = api.llama_sampler_init_greedy()
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))

    def _prefill(self, ids: Sequence[int]) -> None:
        self.api.llama_memory_clear(self.memory, False)
        for start in range(0, len(ids), self.step):
            self._decode(ids[start : start + self.step])

    def _decode(self, ids: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        self._prefill(ids)
        tokens, times = [], []
        while True:
            tokens.append(self.api.llama_sampler_sample(self.sampler, self.context, -1))
            times.append(time.perf_counter())
            if len(tokens) == count:
                return tokens, times
            self._decode(tokens[-1:])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self._prefill(ids)
        values = self.api.llama_get_logits_ith(self.context, -1)
        import numpy as np

        return np.ctypeslib.as_array(values, (self.vocabulary,)).copy()

    def version(self) -> str:
        import llama_cpp as api

        flags = api.llama_print_system_info().decode().split("|")
        used = [flag.split("=")[0].split(":")[-1].strip() for flag in flags if flag.strip().endswith("= 1")]
        return f"{importlib.metadata.version('llama-cpp-python')} ({', '.join(used)})"


_callbacks: list[Any] = []  # kept alive: the library holds the pointer


def _quiet(api: Any) -> None:
    _callbacks.append(api.llama_log_callback(lambda level, text, data: None))
    api.llama_log_set(_callbacks[-1], ctypes.c_void_p(0))
