//! Products with weights that are not palettized (float32, f16, bf16), and lookup of their rows.
//!
//! A dot product has sixteen sums: sum l takes the inputs k ≡ l (mod 16) in order, each by a fused multiply-add; then the fixed tree.
//! Tiles of rows and outputs serve speed only: every element is computed by itself in this order.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::formats::Dense;
use crate::simd::{LANES, Simd};

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// An element type of weights.
pub(super) trait Element {
    /// Bytes of an element.
    const SIZE: usize;

    /// Reads 16 elements.
    ///
    /// # Safety
    /// `p` must be valid for reading `16 * SIZE` bytes.
    unsafe fn at<S: Simd>(s: S, p: *const u8) -> S::F;
}

macro_rules! elements {
    ($($name:ident, $size:literal, $read:ident;)*) => {$(
        pub(super) struct $name;
        impl Element for $name {
            const SIZE: usize = $size;
            #[inline(always)]
            unsafe fn at<S: Simd>(s: S, p: *const u8) -> S::F {
                // SAFETY: the caller promises 16 elements of `SIZE` bytes at `p`, which are what this reads.
                unsafe { s.$read(p) }
            }
        }
    )*};
}

elements! {
    F32, 4, f32_at;
    F16, 2, f16_at;
    Bf16, 2, bf16_at;
}

/// Reads up to 16 elements; the missing ones are 0.
#[inline(always)]
pub(super) fn part<S: Simd, E: Element>(s: S, bytes: &[u8]) -> S::F {
    let mut line = [0u8; 64];
    line[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the array holds 16 elements of 4 bytes or fewer.
    unsafe { E::at(s, line.as_ptr()) }
}

/// What a tile reads and writes, checked once: `w` begins at the tile's first output, `x` at its first row.
#[derive(Clone, Copy)]
struct View<'a> {
    w: &'a [u8],
    x: &'a [f32],
    k: usize,
    stride: usize,
}

/// `M` rows × `N` outputs.
#[inline(always)]
fn tile<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    view: View<'_>,
    out: &mut [f32],
    width: usize,
) {
    let View { w, x, k, stride } = view;
    let row = k * E::SIZE;
    assert!(w.len() >= N * row && x.len() >= (M - 1) * stride + k);
    let mut acc = [[s.zero(); N]; M];
    for chunk in 0..k / LANES {
        let mut rows = [s.zero(); M];
        for (m, value) in rows.iter_mut().enumerate() {
            // SAFETY: row m of x holds k elements from m * stride on, and 16 (chunk + 1) <= k.
            *value = unsafe { s.f32_at(x.as_ptr().add(m * stride + chunk * LANES).cast()) };
        }
        for n in 0..N {
            let at = n * row + chunk * LANES * E::SIZE;
            if S::ASKS_AHEAD && M == 1 && chunk.is_multiple_of((LINE / (LANES * E::SIZE)).max(1)) {
                // The same place of the next tile.
                s.prefetch(w.as_ptr().wrapping_add(at + N * row));
            }
            // SAFETY: output n of w holds k elements from n * row on, and 16 (chunk + 1) <= k.
            let weights = unsafe { E::at(s, w.as_ptr().add(at)) };
            for m in 0..M {
                acc[m][n] = s.fma(weights, rows[m], acc[m][n]);
            }
        }
    }
    let done = k / LANES * LANES;
    if done < k {
        for n in 0..N {
            let weights = part::<S, E>(s, &w[n * row + done * E::SIZE..(n + 1) * row]);
            for m in 0..M {
                let inputs = s.load_part(&x[m * stride + done..m * stride + k]);
                acc[m][n] = s.fma(weights, inputs, acc[m][n]);
            }
        }
    }
    for m in 0..M {
        for n in 0..N {
            out[m * width + n] = s.hsum(acc[m][n]);
        }
    }
}

/// All rows × `N` outputs, `M` rows at a time, then two where there are more than one left.
#[inline(always)]
fn panel<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    view: View<'_>,
    m: usize,
    out: &mut [f32],
    width: usize,
) {
    let mut row = 0;
    while row < m {
        let view = View { x: &view.x[row * view.stride..], ..view };
        let out = &mut out[row * width..];
        row += match m - row {
            1 => {
                tile::<S, E, 1, N>(s, view, out, width);
                1
            }
            left if left < M => {
                tile::<S, E, 2, N>(s, view, out, width);
                2
            }
            _ => {
                tile::<S, E, M, N>(s, view, out, width);
                M
            }
        };
    }
}

/// `M` rows × `N` outputs per tile; the remaining outputs one at a time. Rows are taken in groups that stay in the cache while the
/// weights stream past.
#[inline(always)]
fn product<S: Simd, E: Element, const M: usize, const N: usize>(
    s: S,
    w: &Dense<'_>,
    x: &[f32],
    m: usize,
    stride: usize,
    rows: Range<usize>,
    out: &mut [f32],
) {
    /// Floats of activations that are kept in the second-level cache.
    const CACHED: usize = 64 * 1024;
    let k = w.cols;
    let width = rows.len();
    let group = (CACHED / k.max(1)).next_multiple_of(M).max(M);
    let mut row = 0;
    while row < m {
        let count = group.min(m - row);
        let mut n = 0;
        while n < width {
            let step = if n + N <= width { N } else { 1 };
            let at = (rows.start + n) * k * E::SIZE;
            let view = View { w: &w.data[at..at + step * k * E::SIZE], x: &x[row * stride..], k, stride };
            let out = &mut out[row * width + n..];
            if step == N {
                panel::<S, E, M, N>(s, view, count, out, width);
            } else {
                panel::<S, E, M, 1>(s, view, count, out, width);
            }
            n += step;
        }
        row += count;
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
    } else if S::REGISTERS >= 8 {
        product::<S, E, 1, 4>(s, w, x, m, stride, n, out);
    } else {
        product::<S, E, 1, 1>(s, w, x, m, stride, n, out);
    }
}

/// Several rows: tiles that fill the registers.
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
