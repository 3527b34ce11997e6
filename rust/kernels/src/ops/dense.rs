//! Products with weights that are not palettized (float32, f16, bf16), and lookup of their rows.
//!
//! Tiles of rows and outputs ([`super::dense_tile`]) serve speed only: every element is computed by itself, in the same order.

use std::ops::Range;

use super::dense_tile::{Ahead, Bf16, Element, F16, F32, View, part, tile};
use crate::formats::{Dense, DenseType};
use crate::simd::{LANES, Simd};

/// Most rows of bf16 weights whose tiles ask for memory. Two Zen 3 cores, llama-3.2-1b, without and with (medians of four processes each, in
/// turn): 21 and 24 tokens a second for two texts at once, 30 and 38 for four, 38 and 44 for eight; 293 and 259 ms for a prompt of 12, 347 and 329 for one
/// of 16. With 24 it gained nothing.
const FEW: usize = 16;
/// Most rows of f16 weights, which are converted faster, so that the larger tiles are worth more: one core, 16 rows from the third-level cache, 76 and
/// 66 GFLOP/s.
const FEW_F16: usize = 8;
/// Bytes of weights from which they do so. Smaller ones may have stayed in a cache since the last step, where smaller tiles that ask are 2 to 6 %
/// slower in bf16 and 16 to 22 % in f16.
const LARGE: usize = 2 << 20;

/// Floats of activations that are kept in the second-level cache.
const CACHED: usize = 64 * 1024;

/// Whether tiles of so many rows ask for memory.
fn few_of_large(w: &Dense<'_>, m: usize) -> bool {
    let few = if w.dtype() == DenseType::F16 { FEW_F16 } else { FEW };
    m <= few && m * w.cols <= CACHED && w.data.len() >= LARGE
}

/// The weights of some outputs, and all activations.
#[inline(always)]
fn view<'a, E: Element>(w: &'a Dense<'_>, outputs: Range<usize>, x: &'a [f32], stride: usize) -> View<'a> {
    let row = w.cols * E::SIZE;
    View { w: &w.data[outputs.start * row..outputs.end * row], x, k: w.cols, stride }
}

/// `M` rows × `N` outputs per tile; the remaining outputs one at a time, the remaining rows two at a time where there are more than one. Rows are
/// taken in groups that stay in the cache while the weights stream past.
#[inline(always)]
fn product<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    w: &Dense<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    outputs: Range<usize>,
    out: &mut [f32],
) {
    let width = outputs.len();
    let group = (CACHED / w.cols.max(1)).next_multiple_of(M).max(M);
    for first in (0..m).step_by(group) {
        let rows = first..m.min(first + group);
        let mut n = 0;
        while n < width {
            let step = if n + N <= width { N } else { 1 };
            let at = outputs.start + n;
            let view = view::<E>(w, at..at + step, x, stride);
            let out = &mut out[n..];
            if step == N {
                panel::<S, E, M, N>(s, view, rows.clone(), out, width);
            } else {
                panel::<S, E, M, 1>(s, view, rows.clone(), out, width);
            }
            n += step;
        }
    }
}

/// Some rows × `N` outputs.
#[inline(always)]
fn panel<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    view: View<'_>,
    rows: Range<usize>,
    out: &mut [f32],
    width: usize,
) {
    let mut row = rows.start;
    while row < rows.end {
        let (view, out) = (view.from(row), &mut out[row * width..]);
        row += match rows.end - row {
            1 => {
                tile::<S, E, 1, N, 0>(s, view, Ahead::NONE, out, width);
                1
            }
            left if left < M => {
                tile::<S, E, 2, N, 0>(s, view, Ahead::NONE, out, width);
                2
            }
            _ => {
                tile::<S, E, M, N, 0>(s, view, Ahead::NONE, out, width);
                M
            }
        };
    }
}

/// What [`product`] computes, for one or at most [`FEW`] rows of weights from memory: the tiles of some outputs share in asking for the next
/// outputs' weights, up to `LINES` lines with each chunk of inputs.
#[inline(always)]
fn asking_product<S: Simd, E: Element, const M: usize, const N: usize, const LINES: usize>(
    s: S,
    w: &Dense<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    outputs: Range<usize>,
    out: &mut [f32],
) {
    const { assert!(M <= 2, "a row that is left is a tile of its own") };
    assert!(m <= FEW);
    let width = outputs.len();
    // Once for all outputs, since they take divisions.
    let mut shares = [Ahead::NONE; FEW];
    for (row, share) in (0..m).step_by(M).zip(&mut shares) {
        *share = Ahead::share::<LINES>(row..m.min(row + M), m, N * w.cols * E::SIZE, w.cols);
    }
    let whole = width / N * N;
    for n in (0..whole).step_by(N) {
        let at = outputs.start + n;
        let view = view::<E>(w, at..at + N, x, stride);
        for (row, share) in (0..m).step_by(M).zip(&shares) {
            let (view, out) = (view.from(row), &mut out[row * width + n..]);
            if m - row < M {
                tile::<S, E, 1, N, LINES>(s, view, *share, out, width);
            } else {
                tile::<S, E, M, N, LINES>(s, view, *share, out, width);
            }
        }
    }
    for n in whole..width {
        let at = outputs.start + n;
        panel::<S, E, M, 1>(s, view::<E>(w, at..at + 1, x, stride), 0..m, &mut out[n..], width);
    }
}

/// One row: several outputs at once hide the latency of the sums.
#[inline(always)]
fn one<S: Simd, E: Element>(
    s: S,
    w: &Dense<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    n: Range<usize>,
    out: &mut [f32],
) {
    if S::REGISTERS >= 32 {
        product::<S, E, 1, 8>(s, w, x, m, stride, n, out);
    } else if S::ASKS_AHEAD {
        // Known to be one, its share needs no division.
        assert!(m == 1);
        if E::SIZE == 2 {
            asking_product::<S, E, 1, 4, 2>(s, w, x, 1, stride, n, out);
        } else {
            asking_product::<S, E, 1, 4, 4>(s, w, x, 1, stride, n, out);
        }
    } else if S::REGISTERS >= 8 {
        product::<S, E, 1, 4>(s, w, x, m, stride, n, out);
    } else {
        product::<S, E, 1, 1>(s, w, x, m, stride, n, out);
    }
}

/// Several rows: tiles that fill the registers, or nearly so where they ask for memory too.
#[inline(always)]
fn many<S: Simd, E: Element>(
    s: S,
    w: &Dense<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    n: Range<usize>,
    out: &mut [f32],
) {
    if S::REGISTERS >= 32 {
        product::<S, E, 4, 6>(s, w, x, m, stride, n, out);
    } else if S::ASKS_AHEAD && E::SIZE == 2 && few_of_large(w, m) {
        asking_product::<S, E, 2, 2, 1>(s, w, x, m, stride, n, out);
    } else if S::REGISTERS >= 8 {
        product::<S, E, 2, 3>(s, w, x, m, stride, n, out);
    } else {
        product::<S, E, 1, 1>(s, w, x, m, stride, n, out);
    }
}

#[inline(always)]
fn embed<S: Simd, E: Element>(s: S, bytes: &[u8], out: &mut [f32]) {
    for (from, to) in bytes.chunks(LANES * E::SIZE).zip(out.chunks_mut(LANES)) {
        s.store_part(to, part::<S, E>(s, from));
    }
}

instantiate! {
    MatmulDense, "f32", "1" => one_f32 = one::<_, F32>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    MatmulDense, "f16", "1" => one_f16 = one::<_, F16>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    MatmulDense, "bf16", "1" => one_bf16 = one::<_, Bf16>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    MatmulDense, "f32", "many" => many_f32 = many::<_, F32>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    MatmulDense, "f16", "many" => many_f16 = many::<_, F16>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    MatmulDense, "bf16", "many" => many_bf16 = many::<_, Bf16>,
        (w: &Dense<'_>, x: &[f32], m: usize, stride: usize, n: Range<usize>, out: &mut [f32]);
    EmbedDense, "f32", "row" => embed_f32 = embed::<_, F32>, (bytes: &[u8], out: &mut [f32]);
    EmbedDense, "f16", "row" => embed_f16 = embed::<_, F16>, (bytes: &[u8], out: &mut [f32]);
    EmbedDense, "bf16", "row" => embed_bf16 = embed::<_, Bf16>, (bytes: &[u8], out: &mut [f32]);
}
