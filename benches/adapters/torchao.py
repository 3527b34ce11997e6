"""PyTorch with Transformers and torchao's 4-bit products. Its environment also converts for others."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benches.adapters.base import Adapter, group

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Peer(Adapter):
    """See :class:`Adapter`. Weights are packed each time the checkpoint is opened."""

    title = "torch + torchao"
    packages = (
        "torch==2.15.0",
        "torchao==0.18.0",
        "optimum-intel[openvino,nncf]==2.2.0",  # to convert for OpenVINO; it holds Transformers below 5.6
        "transformers",
        "onnx",  # this and the next two to convert for ONNX Runtime
        "onnx-ir",
        "onnxruntime-genai==0.18.0",
    )
    forms = {"int4": 0.85, "bf16": 0.999}  # noqa: RUF012
    families = frozenset({"llama"})

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        path = target / variant
        if not path.is_symlink():
            path.symlink_to(checkpoint)
        return path

    def load(self, path: Path, threads: int, context: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        if path.name == "int4":
            # The packing for CPUs is where the library keeps what may still change.
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
            from torchao.quantization import quantize_

            settings = PrototypeInt4WeightOnlyConfig(group_size=group(path, 128))
            quantize_(self.model, settings)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        from transformers import DynamicCache

        torch, tokens, times = self.torch, [], []
        with torch.inference_mode():
            row, cache = torch.tensor([list(ids)]), DynamicCache(config=self.model.config)
            while True:
                found = self.model(row, past_key_values=cache, use_cache=True, logits_to_keep=1)
                row = found.logits[:, -1].argmax(-1, keepdim=True)
                tokens.append(int(row))
                times.append(time.perf_counter())
                if len(tokens) == count:
                    return tokens, times

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        with self.torch.inference_mode():
            found = self.model(self.torch.tensor([list(ids)])).logits[0, -1].float().numpy()
        return np.asarray(found, np.float32)

    def version(self) -> str:
        names = ("torch", "torchao", "transformers")
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
