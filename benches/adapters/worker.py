"""One task in the environment of one runtime: ``python -m benches.adapters.worker TASK.json`` writes
TASK.json's ``out``.

Tasks are ``convert``, ``version``, ``logits``, ``tokens`` and ``measure``. A process does one of them and
ends, so that every measurement begins with fresh memory.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benches.adapters import adapter
from benches.adapters.base import Adapter

WARM_UP = 8
LEAST_SECONDS = 0.5  # short phases are repeated for at least so long
MOST_REPEATS = 15


def peak_memory() -> int:
    """The most memory in use by this process so far, in bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def size(path: Path) -> int:
    """Bytes of a file, or of the weights in a directory."""
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.rglob("*") if file.is_file()]
    heavy = [file for file in files if file.suffix in (".safetensors", ".bin", ".onnx", ".data")]
    return sum(file.stat().st_size for file in heavy or files)


def prompts(task: dict[str, Any]) -> Any:
    """Makes prompts of random tokens, no two alike, so that nothing can be reused between them."""
    draw = random.Random(task["seed"])
    return lambda count: [draw.randrange(3, task["vocab"] - 256) for _ in range(count)]


def rate(times: Sequence[float]) -> float:
    """Tokens per second after those that came first, from the time at which each came.

    Tokens that came together with the first are left out: the wait for them was before it.
    """
    later = sum(time > times[0] for time in times)
    return later / (times[-1] - times[0]) if later else 0.0


def generate(peer: Adapter, task: dict[str, Any], ids: Sequence[int], count: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it."""
    start = time.perf_counter()
    tokens, times = peer.generate(ids, count)
    if len(tokens) != count or not all(0 <= token < task["vocab"] for token in tokens):
        raise RuntimeError(
            f"{peer.title}: {len(tokens)} of {count} tokens, or tokens outside of the vocabulary"
        )
    return times[0] - start, rate(times)


def steady(peer: Adapter, task: dict[str, Any], prompt: Any, length: int, count: int) -> tuple[float, float]:
    """Medians of :func:`generate`, repeated until the time it took says something."""
    results: list[tuple[float, float]] = []
    start = time.perf_counter()
    while not results or (time.perf_counter() - start < LEAST_SECONDS and len(results) < MOST_REPEATS):
        results.append(generate(peer, task, prompt(length), count))
    return statistics.median(r[0] for r in results), statistics.median(r[1] for r in results)


def measure(peer: Adapter, task: dict[str, Any]) -> dict[str, float]:
    """All figures of one variant."""
    prompt, count = prompts(task), task["generate"]
    path = Path(task["model"])
    peer.rows = max(task["batches"], default=1)
    start = time.perf_counter()
    peer.load(path, task["threads"], task["context"])
    loaded = time.perf_counter()
    first, _ = generate(peer, task, prompt(16), 1)
    result = {"load_seconds": loaded - start, "load_to_first_token_seconds": loaded - start + first}
    if task["only_load"]:
        return result | {"peak_bytes": peak_memory(), "file_bytes": size(path)}
    # What is compiled or allocated for such lengths is not counted.
    generate(peer, task, prompt(task["prompts"][0]), WARM_UP)
    for length in task["prompts"]:
        result[f"prefill_{length}"] = length / steady(peer, task, prompt, length, 1)[0]
    result["ttft_seconds"] = task["prompts"][0] / result[f"prefill_{task['prompts'][0]}"]
    result["decode"] = steady(peer, task, prompt, 16, count)[1]
    for length in task["after"]:
        result[f"decode_after_{length}"] = steady(peer, task, prompt, length, count)[1]
    result |= {"peak_bytes": peak_memory(), "file_bytes": size(path)}
    for rows in task["batches"] if peer.has_batches else []:
        peer.batch([prompt(16) for _ in range(rows)], 2)
        made, seconds = peer.batch([prompt(16) for _ in range(rows)], count)
        result[f"decode_batch_{rows}"] = made / seconds
    for length in task["prompts"]:
        if (share := peer.share_of_peak(result[f"prefill_{length}"])) is not None:
            result[f"int8_peak_share_{length}"] = share
    if reading := peer.decode_beside_reads(prompt(16), 2 * count):
        result["bandwidth_share"] = reading.pop("share")
        result |= reading
    return result


def main() -> None:
    """Does the task and writes its result."""
    task = json.loads(Path(sys.argv[1]).read_text())
    peer = adapter(task["peer"])
    result: Any
    if task["do"] == "convert":
        target = Path(task["target"])
        target.mkdir(parents=True, exist_ok=True)
        path = peer.convert(Path(task["checkpoint"]), task["variant"], target)
        result = {"model": str(path)}
    elif task["do"] == "version":
        result = {"version": peer.version()}
    elif task["do"] == "logits":
        peer.load(Path(task["model"]), task["threads"], task["context"])
        result = {"logits": peer.logits(task["ids"]).tolist()}
    elif task["do"] == "tokens":
        peer.load(Path(task["model"]), task["threads"], task["context"])
        result = {"tokens": [peer.generate(ids, 1)[0][0] for ids in task["prompts"]]}
    else:
        result = measure(peer, task)
    Path(task["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
