//! The numbers of a block as attention computes with them: half floats as floats, bytes by integer products.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use super::MAX_HEAD_DIM;
use super::kv_block::KvBlock;
use super::quantize::int8_block;
use crate::simd::{LANES, Simd};

/// Channels whose bytes lie side by side.
pub(super) const QUAD: usize = 4;

/// What attention reads of a block of one type.
pub(super) trait Numbers<'a>: Copy {
    /// Bytes of a number.
    const SIZE: usize;
    /// What keys are multiplied with: `R` queries as the type needs them.
    type Queries<'q, const R: usize>;

    /// The numbers of a block, if they are of this type.
    fn of(block: &KvBlock<'a>) -> Option<Self>;
    /// Numbers of the keys, and of the values.
    fn lens(self) -> (usize, usize);
    /// Where keys and values begin, to be asked for ahead of their use.
    fn addresses(self) -> (*const u8, *const u8);
    /// Makes `R` rows of `head_dim` floats ready.
    fn queries<'q, S: Simd, const R: usize>(s: S, rows: [&'q [f32]; R]) -> Self::Queries<'q, R>;
    /// Products of `R` queries with the keys of `16 * G` tokens from group `group` on. `ahead` is where as many keys of the next
    /// block lie.
    fn products<S: Simd, const R: usize, const G: usize>(
        self,
        s: S,
        queries: &Self::Queries<'_, R>,
        ahead: *const u8,
        head_dim: usize,
        group: usize,
    ) -> [[S::F; G]; R];
    /// Sixteen numbers of the values from `at` on, without scale.
    ///
    /// # Safety
    /// `at + 16` is at most the second of [`Numbers::lens`].
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F;
    /// `count` numbers of the values, fewer than sixteen; the other lanes are 0.
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F;
    /// Weights of group `group` times the scales of its values.
    fn scale_weights<S: Simd>(self, s: S, group: usize, weights: S::F) -> S::F;
}

/// Bytes that a cache fetches at once.
const LINE: usize = 64;

/// Asks for `bytes` bytes, which need not exist.
#[inline(always)]
pub(super) fn ask<S: Simd>(s: S, ahead: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(LINE) {
        s.prefetch(ahead.wrapping_add(line * LINE));
    }
}

/// Half floats.
#[derive(Clone, Copy)]
pub(super) struct Halves<'a> {
    k: &'a [u16],
    v: &'a [u16],
}

impl<'a> Numbers<'a> for Halves<'a> {
    const SIZE: usize = 2;
    type Queries<'q, const R: usize> = [&'q [f32]; R];

    #[inline(always)]
    fn of(block: &KvBlock<'a>) -> Option<Self> {
        match *block {
            KvBlock::F16 { k, v } => Some(Self { k, v }),
            KvBlock::I8 { .. } => None,
        }
    }
    #[inline(always)]
    fn lens(self) -> (usize, usize) {
        (self.k.len(), self.v.len())
    }
    #[inline(always)]
    fn addresses(self) -> (*const u8, *const u8) {
        (self.k.as_ptr().cast(), self.v.as_ptr().cast())
    }
    #[inline(always)]
    fn queries<S: Simd, const R: usize>(_: S, rows: [&[f32]; R]) -> [&[f32]; R] {
        rows
    }
    /// For each token a sum over channels in order.
    #[inline(always)]
    fn products<S: Simd, const R: usize, const G: usize>(
        self,
        s: S,
        queries: &[&[f32]; R],
        ahead: *const u8,
        head_dim: usize,
        group: usize,
    ) -> [[S::F; G]; R] {
        let mut acc = [[s.zero(); G]; R];
        let first = group * head_dim * LANES;
        assert!(self.k.len() >= first + G * head_dim * LANES);
        let step = G * LANES * Self::SIZE;
        for row in queries {
            assert!(row.len() >= head_dim);
        }
        for d in 0..head_dim {
            ask(s, ahead.wrapping_add(d * step), step);
            let mut keys = [s.zero(); G];
            for (g, key) in keys.iter_mut().enumerate() {
                let at = first + (g * head_dim + d) * LANES;
                // SAFETY: d < head_dim and g < G, and G * head_dim vectors follow `first`, as asserted above.
                *key = unsafe { s.f16_at(self.k.as_ptr().add(at).cast()) };
            }
            for r in 0..R {
                // SAFETY: every row has head_dim channels or more, as asserted above.
                let x = s.splat(unsafe { *queries[r].get_unchecked(d) });
                for g in 0..G {
                    acc[r][g] = s.fma(x, keys[g], acc[r][g]);
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the values from `at` on, of two bytes each.
        unsafe { s.f16_at(self.v.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F {
        let mut lanes = [0; LANES];
        lanes[..count].copy_from_slice(&self.v[at..at + count]);
        s.load_f16(&lanes)
    }
    #[inline(always)]
    fn scale_weights<S: Simd>(self, _: S, _: usize, weights: S::F) -> S::F {
        weights
    }
}

/// Bytes and scales.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a> {
    k: &'a [i8],
    v: &'a [i8],
    k_scales: &'a [f32],
    v_scales: &'a [f32],
}

/// Queries as bytes, each row with a scale of its own; zeros after its channels.
pub(super) struct ByteQueries<const R: usize> {
    bytes: [[i8; MAX_HEAD_DIM]; R],
    scales: [f32; R],
    sums: [i32; R],
}

impl<'a> Numbers<'a> for Scaled<'a> {
    const SIZE: usize = 1;
    type Queries<'q, const R: usize> = ByteQueries<R>;

    #[inline(always)]
    fn of(block: &KvBlock<'a>) -> Option<Self> {
        match *block {
            KvBlock::I8 { k, v, k_scales, v_scales } => Some(Self { k, v, k_scales, v_scales }),
            KvBlock::F16 { .. } => None,
        }
    }
    #[inline(always)]
    fn lens(self) -> (usize, usize) {
        (self.k.len(), self.v.len())
    }
    #[inline(always)]
    fn addresses(self) -> (*const u8, *const u8) {
        (self.k.as_ptr().cast(), self.v.as_ptr().cast())
    }
    #[inline(always)]
    fn queries<S: Simd, const R: usize>(s: S, rows: [&[f32]; R]) -> ByteQueries<R> {
        let mut made = ByteQueries { bytes: [[0; MAX_HEAD_DIM]; R], scales: [0.0; R], sums: [0; R] };
        for r in 0..R {
            let to = &mut made.bytes[r][..rows[r].len()];
            int8_block(s, rows[r], to, &mut made.scales[r], &mut made.sums[r]);
        }
        made
    }
    /// For each token an exact integer, times the scale of the query, times that of the key.
    #[inline(always)]
    fn products<S: Simd, const R: usize, const G: usize>(
        self,
        s: S,
        queries: &ByteQueries<R>,
        ahead: *const u8,
        head_dim: usize,
        group: usize,
    ) -> [[S::F; G]; R] {
        let first = group * head_dim * LANES;
        let step = G * QUAD * LANES;
        let whole = head_dim / QUAD;
        assert!(self.k.len() >= first + G * head_dim * LANES && head_dim <= MAX_HEAD_DIM);
        // Counted loops rather than closures, which would not be inlined into code with vector instructions.
        let mut sums = [[s.isplat(0); G]; R];
        for r in 0..R {
            let mut start = queries.sums[r].wrapping_mul(-S::DOT_BIAS);
            // The sums of the last channels are not among those of the quads.
            for &byte in &queries.bytes[r][whole * QUAD..head_dim] {
                start = start.wrapping_add(S::DOT_BIAS * i32::from(byte));
            }
            sums[r] = [s.isplat(start); G];
        }
        for quad in 0..whole {
            ask(s, ahead.wrapping_add(quad * step), step);
            for g in 0..G {
                let at = first + g * head_dim * LANES + quad * QUAD * LANES;
                // SAFETY: quad < head_dim / 4 and g < G, and G * head_dim vectors of 16 bytes follow `first`, as asserted above.
                let keys = unsafe { s.quads_at(self.k.as_ptr().add(at).cast()) };
                for r in 0..R {
                    // SAFETY: 4 * quad + 4 <= head_dim <= MAX_HEAD_DIM, the length of the array, as asserted above.
                    let x =
                        unsafe { queries.bytes[r].as_ptr().add(quad * QUAD).cast::<i32>().read_unaligned() };
                    sums[r][g] = s.dot4(sums[r][g], keys, x);
                }
            }
        }
        let mut found = [[s.zero(); G]; R];
        for r in 0..R {
            let scale = s.splat(queries.scales[r]);
            for g in 0..G {
                let mut sum = s.float(sums[r][g]);
                for d in whole * QUAD..head_dim {
                    let at = first + (g * head_dim + d) * LANES;
                    // SAFETY: d < head_dim and g < G, and G * head_dim vectors of 16 bytes follow `first`, as asserted above.
                    let keys = unsafe { s.i8_at(self.k.as_ptr().add(at).cast()) };
                    // Integers below 2^24: nothing is rounded.
                    sum = s.fma(s.splat(f32::from(queries.bytes[r][d])), keys, sum);
                }
                let keys = s.load(&self.k_scales.as_chunks::<LANES>().0[group + g]);
                found[r][g] = s.mul(s.mul(sum, scale), keys);
            }
        }
        found
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(self, s: S, at: usize) -> S::F {
        // SAFETY: the caller promises 16 numbers of the values from `at` on, of a byte each.
        unsafe { s.i8_at(self.v.as_ptr().add(at).cast()) }
    }
    #[inline(always)]
    fn few_values<S: Simd>(self, s: S, at: usize, count: usize) -> S::F {
        let mut lanes = [0i8; LANES];
        lanes[..count].copy_from_slice(&self.v[at..at + count]);
        // SAFETY: an array of 16 bytes.
        unsafe { s.i8_at(lanes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn scale_weights<S: Simd>(self, s: S, group: usize, weights: S::F) -> S::F {
        s.mul(weights, s.load(&self.v_scales.as_chunks::<LANES>().0[group]))
    }
}
