"""Small tokenizers of the kinds that published models use, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    "once upon a time there was a little girl. ",
    "naïve café, 日本語の本, 😀👍🏽 family 👨‍👩‍👧 ",
    "the cat sat on the mat\n",
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def byte_level(bos: bool = True) -> tokenizers.Tokenizer:
    """GPT-2's kind: BPE over bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300 + len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
        )
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """Llama 2's kind: words with a mark for the space, and bytes for what is unknown."""
    words = ["▁", "▁once", "▁upon", "▁a", "▁time", "▁the", "▁cat", "s", ".", "é", "本"]
    vocab = {
        token: i
        for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])
    }
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            left, right = word[: end - 1], word[end - 1]
            vocab.setdefault(left, len(vocab))
            vocab.setdefault(right, len(vocab))
            vocab.setdefault(left + right, len(vocab))
            if (left, right) not in merges:
                merges.append((left, right))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save(directory: Path, tokenizer: tokenizers.Tokenizer | None = None, **config: Any) -> Path:
    """Writes the tokenizer files of a model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(directory / "tokenizer.json"))
    values = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": CHAT, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(values))
    return directory
