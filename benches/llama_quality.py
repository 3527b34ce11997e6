"""llama.cpp's side of ``benches/quality.py``; runs in the environment of that runtime:
``python -m benches.llama_quality TASK.json`` writes TASK.json's ``out``.

Tasks are ``quantize`` (checkpoint to GGUF, 16 bits to a type, with or without an importance matrix) and
``score`` (negative log-likelihoods of windows of tokens, and divergences from the source).
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.adapters import gguf_file
from benches.adapters.llama_cpp import Peer
from benches.window_scores import Scores

K_BLOCK = 256  # row lengths that the k- and i-types need
_SITES = {
    "attn.qkv_proj": ("attn_qkv",),
    "attn.out_proj": ("attn_output",),
    "ffn.proj_1": ("ffn_gate", "ffn_up"),
    "ffn.proj_2": ("ffn_down",),
}


def target_names(name: str) -> list[str]:
    """The GGUF names of what a checkpoint's tensor becomes, as far as it is a matrix that is multiplied."""
    if name in gguf_file._OUTER:
        return [gguf_file._OUTER[name]]
    parts = name.split(".")
    site = ".".join(parts[3:-1])
    return [f"blk.{parts[2]}.{target}.weight" for target in _SITES.get(site) or (gguf_file._LAYER[site],)]


class Log:
    """What llama.cpp says while something runs, in place of its printing."""

    def __init__(self, api: Any) -> None:
        self.lines: list[str] = []
        self._callback = api.llama_log_callback(lambda level, text, data: self.lines.append(text.decode()))
        api.llama_log_set(self._callback, ctypes.c_void_p(0))

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.lines)


def importance_matrix(api: Any, moments: dict[str, NDArray[np.float32]]) -> tuple[Any, list[Any]]:
    """The array of structs that llama.cpp takes (ended by an entry without a name), and what it points to.

    The values are mean squares of the inputs of each matrix: what its own imatrix tool writes.
    """
    entries = {
        target: np.ascontiguousarray(values, np.float32)
        for name, values in moments.items()
        for target in target_names(name)
    }
    array = (api.llama_model_imatrix_data * (len(entries) + 1))()
    names = [name.encode() for name in entries]
    for i, (name, values) in enumerate(zip(names, entries.values(), strict=True)):
        data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        array[i] = api.llama_model_imatrix_data(name, data, len(values))
    return array, [names, list(entries.values())]


def quantize(task: dict[str, Any]) -> dict[str, Any]:
    """Makes ``task['target']`` of ``task['base']``, which is written from the checkpoint when missing.

    Raises:
        RuntimeError: llama.cpp failed, or did not take the importance matrix for every matrix it quantized.
    """
    import llama_cpp as api

    log = Log(api)
    base, target = Path(task["base"]), Path(task["target"])
    if not base.exists():
        partial = base.with_suffix(".partial")
        gguf_file.write(Path(task["checkpoint"]), partial)
        partial.rename(base)
    if base != target:
        params = api.llama_model_quantize_default_params()
        params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{task['type']}")
        params.nthread = task["threads"]
        kept: Any = None
        if task["moments"]:
            with np.load(task["moments"]) as saved:
                params.imatrix, kept = importance_matrix(api, {name: saved[name] for name in saved.files})
        partial = target.with_suffix(".partial")
        status = api.llama_model_quantize(str(base).encode(), str(partial).encode(), ctypes.byref(params))
        if status:
            raise RuntimeError(f"llama.cpp failed to quantize to {task['type']}\n{log.text[-2000:]}")
        if kept is not None and ("have importance matrix data" not in log.text or "did not find" in log.text):
            raise RuntimeError(f"llama.cpp did not take the importance matrix\n{log.text[-2000:]}")
        partial.rename(target)
    return describe(target)


def describe(path: Path) -> dict[str, Any]:
    """Bits, types, and the projections whose rows the k-types cannot hold, with the type they got instead."""
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    inner = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1]

    def bits(chosen: list[Any]) -> float:
        return 8 * sum(int(t.n_bytes) for t in chosen) / sum(int(t.n_elements) for t in chosen)

    odd = [t for t in inner if int(t.shape[0]) % K_BLOCK]
    return {
        "model": str(path),
        "bits_projections": bits(inner),
        "bits_all": bits(list(tensors)),
        "bytes": sum(int(t.n_bytes) for t in tensors),
        "types": dict(Counter(t.tensor_type.name for t in tensors if len(t.shape) > 1)),
        "embedding": next(t.tensor_type.name for t in tensors if t.name == "token_embd.weight"),
        "odd_rows": {t.name: [int(t.shape[0]), t.tensor_type.name] for t in odd},
    }


def score(task: dict[str, Any]) -> dict[str, Any]:
    """Negative log-likelihood (nats) of the scored tokens of each window, and KL(source || this form)."""
    import llama_cpp as api

    with np.load(task["windows"]) as saved:
        ids, ends, first = saved["ids"], saved["ends"], saved["first"]
    lengths = np.diff(ends, prepend=0)
    peer = Peer()
    peer.load(Path(task["model"]), task["threads"], int(lengths.max()))
    batch = api.llama_batch_init(int(lengths.max()), 0, 1)
    scores = Scores((lengths - first).tolist(), Path(task["source"]))
    for index, (start, end, begin) in enumerate(zip([0, *ends[:-1]], ends, first, strict=True)):
        api.llama_memory_clear(peer.memory, False)
        window = ids[start:end]
        # The last token predicts nothing.
        batch.n_tokens = len(window) - 1
        for i, token in enumerate(window[:-1]):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = int(i + 1 >= begin)
        if api.llama_decode(peer.context, batch):
            raise RuntimeError("llama_decode failed")
        count = len(window) - begin
        rows = np.ctypeslib.as_array(api.llama_get_logits(peer.context), (count, peer.vocabulary))
        scores.add(index, 0, rows, window[begin:])
    api.llama_batch_free(batch)
    return {"nll": scores.nll.tolist(), "kl": scores.kl.tolist(), "version": peer.version()}


def main() -> None:
    """Does the task and writes its result."""
    task = json.loads(Path(sys.argv[1]).read_text())
    Path(task["out"]).write_text(json.dumps({"quantize": quantize, "score": score}[task["do"]](task)))


if __name__ == "__main__":
    main()
