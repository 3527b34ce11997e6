"""What guessing tokens is worth: a text that repeats parts of its prompt, and one that repeats nothing.

    python benches/speculation.py                     # the bundled model
    python benches/speculation.py MODEL --draft SMALL # another one, with a draft model
    python benches/speculation.py MODEL --name llama-3.2-1b --json benches/out/speculation.json

*edit*: the prompt is a beginning, a text that the model wrote after it, and the beginning again, as when a
document is to be rewritten with small changes: greedy, the model goes on much as it did before.
*fresh*: a text of its own, sampled at temperature 1, in which hardly anything comes twice.

Runs with and without guesses alternate; a ratio is the median over neighbouring runs. Every pair of texts is
compared: they must be equal. ``python -m benches.performance --add`` publishes what ``--json`` writes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pocketlm
from benches import adapters, machine
from pocketlm.clock import Clock

BEGINNINGS = (
    "Once upon a time there was a little fox who lived near the river with his mother.",
    "One day, Tom and his friend Lily went to the park to play with a big red ball.",
    "The old man had a small garden. Every morning he gave water to his flowers.",
    "There was a cat that did not like the rain. When it rained, the cat hid under the bed.",
)


def edit(lm: pocketlm.LM, beginning: str, tokens: int) -> list[int]:
    """Token ids of the prompt of an edit."""
    start = lm.tokenizer.encode(beginning)
    written = lm.generate(
        start, max_tokens=tokens, temperature=0.0, ignore_eos=True, num_speculative_tokens=0
    )
    return [*start, *written.tokens, *lm.tokenizer.encode(beginning, bos=False)]


def run(lm: pocketlm.LM, prompt: list[int], guesses: int, options: dict[str, Any]) -> tuple[Any, float]:
    """A completion and the seconds that its tokens after the first took."""
    # Not from the prefix cache of the run before: both find the same.
    lm.generate(prompt, **{**options, "max_tokens": 1})
    found = lm.generate(prompt, num_speculative_tokens=guesses, **options)
    return found, found.timings.decode_seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="directory or hub id; the bundled model without")
    parser.add_argument("--draft", help="a draft model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--guesses", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", help="the model's name in tables; that of its directory without")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    lm = pocketlm.load(given.model, threads=given.threads, draft=given.draft, prewarm=True)
    kinds: dict[str, list[tuple[list[int], dict[str, Any]]]] = {
        "edit": [(edit(lm, text, given.tokens), {"temperature": 0.0}) for text in BEGINNINGS],
        "fresh": [
            (lm.tokenizer.encode(text), {"temperature": 1.0, "seed": seed})
            for seed, text in enumerate(BEGINNINGS)
        ],
    }
    workloads: dict[str, Any] = {}
    for kind, cases in kinds.items():
        workloads[kind] = line = measured(lm, kind, cases, given)
        print(
            f"{kind:6s} {line['ratio']:.3f} times the speed (quartiles {line['quartiles'][0]:.3f} to "
            f"{line['quartiles'][1]:.3f}), {line['tokens_per_second'][0]:.0f} -> "
            f"{line['tokens_per_second'][1]:.0f} tokens/s; {line['accepted']} of {line['proposed']} guesses "
            f"right in {line['texts']} texts of {given.tokens} tokens; other processes took "
            f"{line['others_cpu']:.0%} of the machine"
        )
    if given.json:
        values = described(given, lm.engine.threads) | {"workloads": workloads}
        given.json.write_text(json.dumps(values, indent=1) + "\n")


def described(given: argparse.Namespace, threads: int) -> dict[str, Any]:
    """What was measured, and under what, in the form that ``benches/published.py`` keeps."""
    settings = {"threads": threads, "version": adapters.adapter("pocketlm").version()}
    settings |= {"rounds": given.rounds, "tokens": given.tokens, "guesses": given.guesses}
    settings |= {"draft": Path(given.draft).name} if given.draft else {}
    return {
        "kind": "speculation",
        "model": given.name or (Path(given.model).name if given.model else "bundled"),
        "isa": os.environ.get("POCKETLM_ISA", ""),
        "machine": machine.describe(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": settings,
    }


def measured(
    lm: pocketlm.LM, kind: str, cases: list[tuple[list[int], dict[str, Any]]], given: argparse.Namespace
) -> dict[str, Any]:
    """Figures of one workload.

    Raises:
        SystemExit: a text with guesses differs from the one without.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    ratios, accepted, proposed = [], 0, 0
    clock, own = Clock.now(), time.process_time()
    for turn in range(given.rounds):
        for prompt, sampling in cases:
            options = {**sampling, "ignore_eos": True, "max_tokens": given.tokens}
            seconds, texts = [0.0, 0.0], [None, None]
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                found, seconds[side] = run(lm, prompt, given.guesses * side, options)
                texts[side] = found.tokens
                rates[side].append(found.timings.decode_tokens_per_second)
                if side:
                    accepted += found.usage.accepted_tokens
                    proposed += found.usage.proposed_tokens
            if texts[0] != texts[1]:
                sys.exit(f"{kind}: the text with guesses differs from the one without")
            ratios.append(seconds[0] / seconds[1])
    busy = clock.others(time.process_time() - own)
    ratios.sort()
    return {
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "tokens_per_second": [statistics.median(side) for side in rates],
        "proposed": proposed,
        "accepted": accepted,
        "texts": len(ratios),
        "others_cpu": busy,
    }


if __name__ == "__main__":
    main()
