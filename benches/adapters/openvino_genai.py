"""OpenVINO GenAI, with models made by Optimum (which needs PyTorch, so it runs where that is)."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches.adapters.base import Adapter, group, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Peer(Adapter):
    """See :class:`Adapter`. The pipeline gives no logits: they come from the same model file, run by OpenVINO
    itself."""

    title = "openvino-genai"
    packages = ("openvino-genai==2026.4.1.0",)
    converts_in = "torchao"
    forms = {"int4": 0.85, "int8": 0.99}  # noqa: RUF012
    families = frozenset({"llama"})

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        return whole(target / variant, lambda partial: export(checkpoint, variant, partial))

    def load(self, path: Path, threads: int, context: int) -> None:
        import numpy as np
        import openvino as ov
        import openvino_genai as api

        self.np, self.ov, self.api, self.path, self.threads = np, ov, api, path, threads
        self.model = api.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []
        api, np = self.api, self.np

        class Receiver(api.StreamerBase):  # type: ignore[misc, name-defined]
            def write(self, token: Any) -> Any:
                new = [token] if isinstance(token, int) else list(token)
                tokens.extend(new)
                times.extend([time.perf_counter()] * len(new))
                return api.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = api.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
        row = np.asarray([ids], np.int64)
        inputs = api.TokenizedInputs(self.ov.Tensor(row), self.ov.Tensor(np.ones_like(row)))
        self.model.generate(inputs, config, Receiver())
        return tokens, times

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        core, np = self.ov.Core(), self.np
        settings = {"INFERENCE_NUM_THREADS": self.threads}
        model = core.compile_model(str(self.path / "openvino_model.xml"), "CPU", settings)
        row = np.asarray([ids], np.int64)
        inputs = {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "position_ids": np.arange(row.size, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for port in model.inputs for name in port.names}
        found = model.create_infer_request().infer({k: v for k, v in inputs.items() if k in names})
        return np.asarray(found["logits"], np.float32)[0, -1]

    def version(self) -> str:
        return importlib.metadata.version("openvino-genai")


def export(checkpoint: Path, variant: str, target: Path) -> None:
    """Optimum's export, with symmetric 4-bit weights in groups of 64, or 8-bit ones."""
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    more = {"group_size": group(checkpoint, 64), "ratio": 1.0} if variant == "int4" else {}
    settings = OVWeightQuantizationConfig(bits=int(variant[3:]), sym=True, **more)
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=settings
    )
    model.save_pretrained(target)
    tokenizer, detokenizer = convert_tokenizer(
        AutoTokenizer.from_pretrained(checkpoint), with_detokenizer=True
    )
    save_model(tokenizer, target / "openvino_tokenizer.xml")
    save_model(detokenizer, target / "openvino_detokenizer.xml")
