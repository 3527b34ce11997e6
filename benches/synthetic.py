"""Writes a Hugging Face checkpoint with random weights at a real model's shape.

    python benches/synthetic.py llama-3.2-1b benches/out/llama-3.2-1b

Speed does not depend on what the weights say, so benchmarks need no download. The weights are normal, at
scales that keep activations and logits in the range of a trained model's; configuration and tensor names are
the published ones; the tokenizer is a real byte-level BPE of the right size. The same arguments give the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benches import checkpoint, vocabulary
from benches.shapes import CONTEXT_KEYS, SHAPES, tensors

PIECE = 1 << 22  # weights made at a time: 16 MiB of float32
TORCH_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def scale(name: str, shape: tuple[int, ...], layers: int) -> tuple[float, float]:
    """Mean and deviation of a tensor's weights.

    Projections keep the variance of what they read; those that write to the residual stream are divided by
    the root of the number of writes, so that it grows to a few units only. A tied embedding then gives logits
    of deviation 1.
    """
    if len(shape) == 1:
        return 1.0, 0.05
    if "embed" in name or name == "lm_head.weight":
        return 0.0, shape[1] ** -0.5
    writes = any(part in name for part in ("o_proj", "out_proj", "down_proj", "proj_2"))
    return 0.0, shape[1] ** -0.5 / (math.sqrt(2 * layers) if writes else 1.0)


def values(name: str, shape: tuple[int, ...], layers: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """The weights of one tensor in pieces; they depend on the seed and the name only."""
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    mean, deviation = scale(name, shape, layers)
    left = math.prod(shape)
    while left:
        piece = generator.standard_normal(min(left, PIECE), dtype=np.float32)
        piece *= np.float32(deviation)
        piece += np.float32(mean)
        left -= piece.size
        yield piece


def configure(args: argparse.Namespace) -> dict[str, Any]:
    """The published configuration with what the command line changes."""
    config = dict(SHAPES[args.shape])
    if args.vocab:
        config["vocab_size"] = args.vocab
    if args.context:
        config[next(key for key in CONTEXT_KEYS if key in config)] = args.context
    config["torch_dtype"] = TORCH_DTYPES[args.dtype]
    return config


def write(args: argparse.Namespace) -> None:
    """Writes the checkpoint beside ``args.out`` and moves it there when it is whole."""
    from tqdm import tqdm

    config = configure(args)
    wanted = list(tensors(config))
    layers = sum("down_proj" in name or "proj_2" in name for name, _ in wanted)
    parameters = sum(math.prod(shape) for _, shape in wanted)
    size = parameters * checkpoint.DTYPES[args.dtype][1]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.out.parent).free
    if free < size + (64 << 20):
        sys.exit(f"{args.out.parent}: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    partial = args.out.with_name(args.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with tqdm(total=size, unit="B", unit_scale=True, desc=args.shape, disable=args.quiet or None) as bar:
            checkpoint.write(
                partial,
                wanted,
                args.dtype,
                lambda name, shape: values(name, shape, layers, args.seed),
                bar.update,
            )
        config |= vocabulary.write(partial, config, args.seed)
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        for file, content in (
            ("config.json", dict(sorted(config.items()))),
            ("generation_config.json", generation | {"do_sample": False}),
            ("synthetic.json", recipe(args)),
        ):
            (partial / file).write_text(json.dumps(content, indent=2) + "\n")
        shutil.rmtree(args.out, ignore_errors=True)
        partial.rename(args.out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f"{args.out}: {parameters / 1e6:,.1f} M parameters, {size / 1e6:,.0f} MB")


def recipe(args: argparse.Namespace) -> dict[str, Any]:
    """What the checkpoint was made from, to recognise it by."""
    return {key: getattr(args, key) for key in ("shape", "dtype", "seed", "vocab", "context")}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="synthetic.py",
        description="Write a Hugging Face checkpoint with random weights at a real model's shape.",
        epilog="llama-3.2-1b gets a vocabulary of 32,000 (--vocab 128256 is the published one), because the "
        "figures of other runtimes that we compare with were taken at 32,000.",
    )
    parser.add_argument("shape", choices=list(SHAPES), metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("out", type=Path, metavar="OUT", help="the directory to write")
    parser.add_argument("--dtype", choices=list(checkpoint.DTYPES), default="bf16", help="default: bf16")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--vocab", type=int, metavar="N", help="another vocabulary size")
    parser.add_argument("--context", type=int, metavar="N", help="another context length (positions)")
    parser.add_argument("--force", action="store_true", help="replace an existing directory")
    parser.add_argument(
        "--quiet", action="store_true", help="no progress bar (nor where there is no terminal)"
    )
    args = parser.parse_args(arguments)
    if args.seed < 0 or (args.context is not None and args.context < 1):
        parser.error("--seed must not be negative, --context must be positive")
    if args.vocab is not None and not 600 <= args.vocab <= 1 << 20:
        parser.error("--vocab must be from 600 to 1,048,576")
    return args


def main() -> None:
    """Writes the checkpoint unless it is there already."""
    args = parse()
    if args.out.exists() and not args.force:
        stamp = args.out / "synthetic.json"
        if stamp.is_file() and json.loads(stamp.read_text()) == recipe(args):
            print(f"{args.out}: already there")
            return
        sys.exit(f"{args.out} exists and holds something else; give --force to replace it")
    start = time.perf_counter()
    write(args)
    print(f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
