"""Train the byte-level BPE tokenizer of the story model and write it in the Hugging Face layout.

Run ``python -m training.tokenizer --data DIR --out DIR --vocab 8192``. With several sizes, as in
``--vocab 4096 8192``, each tokenizer goes to its own subfolder and the sizes can be compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from .text import read_train, read_valid

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
DEFAULT_VOCAB = 8192

# Tokens stay inside one piece. Like GPT-2's rule, with two differences for stories: line breaks in a row
# are one piece, and a contraction must end the word, so that an opening 'said is not cut into 's + aid.
PIECES = r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"

ROUND_TRIPS = (
    "",
    " leading space, and  two",
    "\n\n\tnewlines\n \n",
    "line one\r\nline two\r\n\r\nlone\rreturn",
    "'Tis \"said\"--don't! 'said he, I'll we've 1,234.5",
    "naïve café, Ænid, ſo, e\u0301",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and 日本語, العربية, 𝔘𝔫𝔦",
    "\x00\x01\x7f\u200b\ufeff\u2028\u00a0 ends with space ",
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with exactly ``vocab_size`` tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the text gives only {tokenizer.get_vocab_size()} tokens, {vocab_size} were asked for"
        )
    check(tokenizer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of the text alone, without a leading end-of-text token."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def check(tokenizer: Tokenizer) -> None:
    """Raise ValueError unless special tokens have their ids and any text survives encoding and decoding."""
    for number, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != number:
            raise ValueError(f"{token} must have id {number}, not {tokenizer.token_to_id(token)}")
    for text in ROUND_TRIPS:
        decoded = tokenizer.decode(encode(tokenizer, text), skip_special_tokens=False)
        if decoded != text:
            raise ValueError(f"{text!r} became {decoded!r} after encoding and decoding")


def save(tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return how many bytes of the texts one token stands for."""
    return sum(len(text.encode()) for text in texts) / sum(len(encode(tokenizer, text)) for text in texts)


def main() -> None:
    """Train a tokenizer for each size asked for, and print bytes per token on the evaluation text."""
    parser = argparse.ArgumentParser(prog="python -m training.tokenizer", description="Train the tokenizer.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the training texts")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer files")
    parser.add_argument("--vocab", type=int, nargs="+", default=[DEFAULT_VOCAB], help="vocabulary sizes")
    parser.add_argument("--context", type=int, default=1024, help="context length written to the config")
    arguments = parser.parse_args()
    try:
        valid = read_valid(arguments.data)
        texts = [document.text for document in read_train(arguments.data)[0]]
        print("vocabulary  bytes/token")
        for size in arguments.vocab:
            tokenizer = train_tokenizer(texts, size)
            folder = arguments.out if len(arguments.vocab) == 1 else arguments.out / str(size)
            save(tokenizer, folder, arguments.context)
            print(f"{size:10}  {bytes_per_token(tokenizer, valid):11.4f}", flush=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
