"""mistral.rs, which quantizes a checkpoint each time it opens it.

It takes text only and gives no logits. So the checkpoint gets a tokenizer in which token 17 is the word
``17``: then words are ids.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benches.adapters.base import Adapter, whole

_END = "end"
_TEMPLATE = "{{ messages[0]['content'] }}"


class Peer(Adapter):
    """See :class:`Adapter`."""

    title = "mistralrs"
    packages = ("mistralrs==0.9.5", "numpy")
    forms = {"Q4K": 0.85}  # noqa: RUF012
    families = frozenset({"llama"})
    has_logits = False

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        return whole(target / variant, lambda partial: rename_tokens(checkpoint, partial))

    def load(self, path: Path, threads: int, context: int) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ["RAYON_NUM_THREADS"] = str(threads)
        import mistralrs as api

        self.api = api
        self.model = api.Runner(
            which=api.Which.Plain(
                model_id=str(path),
                arch=api.Architecture.Llama,
                tokenizer_json=str(path / "tokenizer.json"),
            ),
            in_situ_quant=path.name,
            max_seqs=1,
            prefix_cache_n=0,
            chat_template=str(path / "template.json"),
        )

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        request = self.api.ChatCompletionRequest(
            messages=[{"role": "user", "content": " ".join(map(str, ids))}],
            model="default",
            max_tokens=count,
            temperature=0.0,
            top_k=1,
            stream=True,
            ignore_eos=True,
        )
        tokens: list[int] = []
        times: list[float] = []
        for chunk in self.model.send_chat_completion_request(request):
            now = time.perf_counter()
            words = (chunk.choices[0].delta.content or "").split() if chunk.choices else []
            tokens.extend(0 if word == _END else int(word) for word in words)
            times.extend([now] * len(words))
        return tokens, times

    def version(self) -> str:
        return importlib.metadata.version("mistralrs")


def rename_tokens(checkpoint: Path, target: Path) -> None:
    """The checkpoint, linked, with words of digits as its tokens."""
    target.mkdir()
    for file in checkpoint.glob("*.safetensors*"):
        (target / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    size = config["vocab_size"]
    config["bos_token_id"], config["eos_token_id"] = 0, size - 1
    names = [str(i) for i in range(size - 1)] + [_END]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        # Words joined by spaces. The runtime wants a decoder of bytes to be among them.
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "WordPiece", "prefix": "##", "cleanup": False},
            ],
        },
        "model": {
            "type": "WordLevel",
            "vocab": {name: i for i, name in enumerate(names)},
            "unk_token": _END,
        },
    }
    settings = {"bos_token": "0", "eos_token": _END, "unk_token": _END, "chat_template": _TEMPLATE}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": size - 1}),
        ("tokenizer.json", tokenizer),
        (
            "tokenizer_config.json",
            settings | {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"},
        ),
        ("template.json", {"chat_template": _TEMPLATE}),
    ):
        (target / name).write_text(json.dumps(content))
