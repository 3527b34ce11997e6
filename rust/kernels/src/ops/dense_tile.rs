//! Tiles of products with weights that are not palettized: the dot products of a few rows with a few outputs, in registers.
//!
//! A dot product has sixteen sums: sum l takes the inputs k ≡ l (mod 16) in order, each by a fused multiply-add; then the fixed tree.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

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

/// What a tile reads: `w` begins at its first output, `x` at its first row.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub w: &'a [u8],
    pub x: &'a [f32],
    pub k: usize,
    pub stride: usize,
}

impl View<'_> {
    /// The same weights, and the activations from a row on.
    #[inline(always)]
    pub fn from(self, row: usize) -> Self {
        Self { x: &self.x[row * self.stride..], ..self }
    }
}

/// What a tile asks for while it computes: a share of the next tile's weights, which lie side by side. Evenly, since only so many lines can be on
/// their way.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Where the share begins, from the tile's weights on, in bytes.
    start: usize,
    /// Bytes from one of its runs, of which there is one for each line at a time, to the next.
    run: usize,
    /// Bytes from what one chunk of inputs asks for to what the next one does.
    step: usize,
}

impl Ahead {
    /// Nothing.
    pub const NONE: Self = Self { start: 0, run: 0, step: 0 };

    /// The share of some of the `m` rows that read the same weights of `k` inputs, `bytes` in all, in `LINES` runs.
    pub fn share<const LINES: usize>(rows: Range<usize>, m: usize, bytes: usize, k: usize) -> Self {
        let part = |row: usize| bytes / LINE * row / m * LINE;
        let run = (part(rows.end) - part(rows.start)).div_ceil(LINES);
        Self { start: bytes + part(rows.start), run, step: run.div_ceil((k / LANES).max(1)) }
    }
}

/// `M` rows × `N` outputs, while `LINES` lines are asked for with each chunk of 16 inputs.
#[inline(always)]
pub(super) fn tile<S: Simd, E: Element, const M: usize, const N: usize, const LINES: usize>(
    s: S,
    view: View<'_>,
    ahead: Ahead,
    out: &mut [f32],
    width: usize,
) {
    let View { w, x, k, stride } = view;
    let row = k * E::SIZE;
    assert!(w.len() >= N * row && x.len() >= (M - 1) * stride + k);
    let mut acc = [[s.zero(); N]; M];
    let chunks = k / LANES;
    let mut asked = w.as_ptr().wrapping_add(ahead.start);
    for chunk in 0..chunks {
        for line in 0..LINES {
            s.prefetch(asked.wrapping_add(line * ahead.run));
        }
        asked = asked.wrapping_add(ahead.step);
        let mut rows = [s.zero(); M];
        for (m, value) in rows.iter_mut().enumerate() {
            // SAFETY: row m of x holds k elements from m * stride on, and 16 (chunk + 1) <= k.
            *value = unsafe { s.f32_at(x.as_ptr().add(m * stride + chunk * LANES).cast()) };
        }
        for n in 0..N {
            // SAFETY: output n of w holds k elements from n * row on, and 16 (chunk + 1) <= k.
            let weights = unsafe { E::at(s, w.as_ptr().add(n * row + chunk * LANES * E::SIZE)) };
            for m in 0..M {
                acc[m][n] = s.fma(weights, rows[m], acc[m][n]);
            }
        }
    }
    let done = chunks * LANES;
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
