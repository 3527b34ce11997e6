"""The low-rank correction of a palettized weight, in closed form.

Of all BA of rank r the mean squared error of the outputs, E|(E - BA)x|² = tr((E - BA) H (E - BA)ᵀ) with
E = W - Ŵ and H = E[xxᵀ], is least for BA = U Uᵀ E, where the columns of U are the r leading left singular
vectors of E S, S Sᵀ = H (QERA, arXiv 2410.06040; EoRA, arXiv 2410.21271). They write A = Σ^(1/2) Vᵀ S⁻¹. But
Vᵀ = Σ⁻¹ Uᵀ E S, so that S⁻¹ cancels, and U are the leading eigenvectors of E H Eᵀ: neither a root nor an
inverse of H is needed, and an H without full rank is no special case.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

_DENSE = 768  # outputs up to which all eigenvectors are computed
_OVERSAMPLE = 16
_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Leading directions of the outputs' error.

    Attributes:
        gains: what each lowers the mean squared error of the outputs by, descending.
        directions: [outputs, directions], orthonormal columns.
        total: the whole mean squared error, tr(E H Eᵀ).
    """

    gains: NDArray[np.float64]
    directions: Matrix
    total: float


def spectrum(error: Matrix, moment: Matrix, rank: int, seed: int = 0) -> Spectrum:
    """The ``rank`` leading directions of E H Eᵀ: ``error`` is [outputs, inputs], ``moment`` [inputs, inputs].

    Up to some hundred outputs by an eigendecomposition, beyond by subspace iteration from a random start
    (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4), in float32 with float64 for small matrices.
    """
    outputs = error.shape[0]
    rank = min(rank, *error.shape)
    with np.errstate(over="ignore"):
        total = float(np.einsum("nk,nk->", error @ moment, error, dtype=np.float64))
    if outputs <= max(_DENSE, 2 * (rank + _OVERSAMPLE)):
        wide = error.astype(np.float64)
        values, vectors = np.linalg.eigh(wide @ moment.astype(np.float64) @ wide.T)
    else:
        start = np.random.default_rng(seed).standard_normal((outputs, rank + _OVERSAMPLE)).astype(np.float32)
        basis = np.linalg.qr(start)[0]
        for _ in range(_ITERATIONS):
            basis = np.linalg.qr(error @ (moment @ (error.T @ basis)))[0]
        inner = (error.T @ basis).astype(np.float64)
        values, small = np.linalg.eigh(inner.T @ moment.astype(np.float64) @ inner)
        vectors = basis.astype(np.float64) @ small
    order = np.argsort(-values, kind="stable")[:rank]
    return Spectrum(np.maximum(values[order], 0.0), vectors[:, order].astype(np.float32), total)


def factors(error: Matrix, directions: Matrix) -> tuple[Matrix, Matrix]:
    """A [rank, inputs] and B [outputs, rank] with B A = U Uᵀ E, each row of A as long as its column of B."""
    a = directions.T @ error
    length = np.sqrt(np.linalg.norm(a, axis=1))
    length = np.where(length > 0, length, 1.0).astype(np.float32)
    return a / length[:, None], directions * length


def weighted_error(error: Matrix, moment: Matrix) -> float:
    """tr(E H Eᵀ), the mean squared error of the outputs."""
    return float(np.einsum("nk,nk->", error @ moment, error, dtype=np.float64))
