"""Trains a byte-level BPE tokenizer of an exact size on pseudo-words: deterministic, and in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ONSETS = """
    b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sl sm sn sp st str t th
    tr v w wh y z
"""
_VOWELS = "a e i o u ai ea ee ie oa oo ou ay y"
_CODAS = "b ck d ft g l ll m mp n nd ng nk nt p r rd rk rm rn rt s ss st t th x"
ONSETS, VOWELS, CODAS = _ONSETS.split(), _VOWELS.split(), ["", "", "", *_CODAS.split()]


def words(seed: int) -> Iterator[str]:
    """An endless stream of pseudo-words of one to four syllables."""
    draw = random.Random(seed)
    while True:
        count = draw.choices((1, 2, 3, 4), (3, 4, 3, 1))[0]
        word = "".join(draw.choice(ONSETS) + draw.choice(VOWELS) + draw.choice(CODAS) for _ in range(count))
        yield word.capitalize() if draw.random() < 0.15 else word


def text(seed: int, count: int) -> Iterator[str]:
    """Lines of ``count`` words, most of them different; the first are repeated (Zipf's law, roughly)."""
    stream = words(seed)
    line: list[str] = []
    for i in range(count):
        word = next(stream)
        line.extend([word] * max(1, min(50, count // (i + 1))))
        if len(line) > 2000:
            yield " ".join(line)
            line = []
    yield " ".join(line)


def train(size: int, special: list[str], last: bool, seed: int) -> dict[str, Any]:
    """``tokenizer.json`` with exactly ``size`` tokens, as a dictionary.

    ``special`` tokens come first, as in Llama 2, or ``last``, as in Llama 3.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    wanted = size - len(special) if last else size
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if wanted <= len(alphabet) + (0 if last else len(special)):
        raise ValueError(
            f"a byte-level vocabulary needs more than {len(alphabet) + len(special)} tokens, not {size}"
        )
    count = 2000 + wanted
    for _ in range(6):  # more words where these gave too few merges
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=wanted,
            min_frequency=1,
            special_tokens=[] if last else special,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(text(seed, count), trainer)
        if tokenizer.get_vocab_size() == wanted:
            break
        count *= 2
    else:
        raise RuntimeError(f"the trainer stopped at {tokenizer.get_vocab_size()} of {wanted} tokens")
    if last:
        tokenizer.add_special_tokens(special)
    if tokenizer.get_vocab_size(with_added_tokens=True) != size:
        raise RuntimeError(f"{tokenizer.get_vocab_size(with_added_tokens=True)} tokens instead of {size}")
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    return values


def write(target: Path, config: dict[str, Any], seed: int = 0) -> dict[str, int]:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json``; returns the ids of the special tokens."""
    size = config["vocab_size"]
    if last := "rope_scaling" in config and config["rope_scaling"] is not None:
        special = ["<|begin_of_text|>", "<|end_of_text|>"]
        special += [f"<|reserved_special_token_{i}|>" for i in range(254)]
        start, end = size - 256, size - 255
        names = {"bos_token": special[0], "eos_token": special[1]}
    else:
        special, start, end = ["<unk>", "<s>", "</s>"], 1, 2
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    values = train(size, special, last, seed)
    values["post_processor"] = _prepend(names["bos_token"], start)
    (target / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False))
    settings = names | {
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return {"bos_token_id": start, "eos_token_id": end}


def _prepend(token: str, index: int) -> dict[str, Any]:
    """A post-processor that puts the beginning-of-text token first."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": i, "type_id": t}} for i, t in (("A", 0), ("B", 1)))
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": token, "type_id": 1}}, second],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
