"""llama.cpp without flash attention: the prompt takes longer, decoding after long ones is faster on some
processors."""

from __future__ import annotations

from benches.adapters import llama_cpp


class Peer(llama_cpp.Peer):
    """See :class:`llama_cpp.Peer`."""

    title = "llama-cpp-python (plain attention)"
    forms_of = runs_in = "llama_cpp"
    flash_attention = 0
