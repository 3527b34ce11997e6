"""pocketlm held to AVX2."""

from __future__ import annotations

from benches.adapters import pocketlm


class Peer(pocketlm.Peer):
    """See :class:`pocketlm.Peer`."""

    title = "pocketlm (AVX2)"
    run_variables = {"POCKETLM_ISA": "avx2"}  # noqa: RUF012
    forms_of = "pocketlm"
