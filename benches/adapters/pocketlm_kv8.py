"""pocketlm with a cache of int8."""

from __future__ import annotations

from benches.adapters import pocketlm


class Peer(pocketlm.Peer):
    """See :class:`pocketlm.Peer`."""

    title = "pocketlm (int8 cache)"
    kv_dtype = "int8"
    forms_of = "pocketlm"
