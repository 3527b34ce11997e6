//! The two products of attention on tiles: scores of `R` rows against a block, and values summed with weights.
//!
//! The shapes only decide how many sums are in registers at once; each sum keeps its own order.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use super::KV_TOKENS;
use super::kv_numbers::{Numbers, ask};
use crate::simd::{LANES, Simd};

/// Scores or probabilities of a tile's rows against a block.
pub(super) type Scores<const R: usize> = [[f32; KV_TOKENS]; R];

/// Scores of `R` rows against `16 * G` tokens from group `group` on. `ahead` is where the keys of the next block begin.
#[inline(always)]
pub(super) fn scores<'a, S: Simd, B: Numbers<'a>, const R: usize, const G: usize>(
    s: S,
    q: &B::Queries<'_, R>,
    block: B,
    ahead: *const u8,
    head_dim: usize,
    group: usize,
    out: &mut Scores<R>,
) {
    let ahead = ahead.wrapping_add(group * head_dim * LANES * B::SIZE);
    let found = block.products::<S, R, G>(s, q, ahead, head_dim, group);
    for r in 0..R {
        let (whole, _) = out[r].as_chunks_mut::<LANES>();
        for g in 0..G {
            s.store(&mut whole[group + g], found[r][g]);
        }
    }
}

/// `acc[d] += Σ p[t] v[t][d]` over tokens in order, for `R` rows and `C` vectors of channels from channel `d` on.
#[inline(always)]
fn weighted<'a, S: Simd, B: Numbers<'a>, const R: usize, const C: usize>(
    s: S,
    p: &Scores<R>,
    block: B,
    ahead: *const u8,
    head_dim: usize,
    (from, to): (usize, usize),
    d: usize,
    acc: &mut [f32],
) {
    let stride = head_dim + 2;
    assert!(to <= KV_TOKENS && d + C * LANES <= head_dim);
    assert!(block.lens().1 >= KV_TOKENS * head_dim && acc.len() >= R * stride);
    let mut sums = [[s.zero(); C]; R];
    for r in 0..R {
        for c in 0..C {
            // SAFETY: row r of acc, which has R of them, has head_dim channels from 2 on, and d + 16 c + 16
            // <= head_dim.
            sums[r][c] = unsafe { s.f32_at(acc.as_ptr().add(r * stride + 2 + d + c * LANES).cast()) };
        }
    }
    for t in from..to {
        let at = t * head_dim + d;
        ask(s, ahead.wrapping_add(at * B::SIZE), C * LANES * B::SIZE);
        let mut values = [s.zero(); C];
        for (c, value) in values.iter_mut().enumerate() {
            // SAFETY: t < 64 and d + 16 c + 16 <= head_dim, and there are 64 * head_dim values, as asserted
            // above.
            *value = unsafe { block.values(s, at + c * LANES) };
        }
        for r in 0..R {
            // SAFETY: t < 64, the length of the array.
            let weight = s.splat(unsafe { *p[r].get_unchecked(t) });
            for c in 0..C {
                sums[r][c] = s.fma(weight, values[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let at = r * stride + 2 + d;
        let (whole, _) = acc[at..at + C * LANES].as_chunks_mut::<LANES>();
        for c in 0..C {
            s.store(&mut whole[c], sums[r][c]);
        }
    }
}

/// The channels after the last whole vector.
#[inline(always)]
fn weighted_tail<'a, S: Simd, B: Numbers<'a>, const R: usize>(
    s: S,
    p: &Scores<R>,
    block: B,
    head_dim: usize,
    (from, to): (usize, usize),
    acc: &mut [f32],
) {
    let d = head_dim / LANES * LANES;
    for (p, acc) in p.iter().zip(acc.chunks_exact_mut(head_dim + 2)) {
        let tail = &mut acc[2 + d..];
        let mut sum = s.load_part(tail);
        for t in from..to {
            sum = s.fma(s.splat(p[t]), block.few_values(s, t * head_dim + d, head_dim - d), sum);
        }
        s.store_part(tail, sum);
    }
}

/// Adds the tokens `range` of a block to the accumulators of `R` rows. `ahead` is where the values of the next block begin.
#[inline(always)]
pub(super) fn accumulate<'a, S: Simd, B: Numbers<'a>, const R: usize>(
    s: S,
    p: &Scores<R>,
    block: B,
    ahead: *const u8,
    head_dim: usize,
    range: (usize, usize),
    acc: &mut [f32],
) {
    if range.0 >= range.1 {
        return;
    }
    let mut d = 0;
    // As many vectors at once as the registers hold beside the values.
    if S::REGISTERS >= 32 || (S::REGISTERS >= 8 && R == 1) {
        while d + 4 * LANES <= head_dim {
            weighted::<S, B, R, 4>(s, p, block, ahead, head_dim, range, d, acc);
            d += 4 * LANES;
        }
    } else if R == 2 {
        while d + 2 * LANES <= head_dim {
            weighted::<S, B, R, 2>(s, p, block, ahead, head_dim, range, d, acc);
            d += 2 * LANES;
        }
    }
    while d + LANES <= head_dim {
        weighted::<S, B, R, 1>(s, p, block, ahead, head_dim, range, d, acc);
        d += LANES;
    }
    if d < head_dim {
        weighted_tail(s, p, block, head_dim, range, acc);
    }
}
