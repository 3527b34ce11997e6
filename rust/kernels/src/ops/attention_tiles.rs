//! The two products of attention on tiles: scores of `R` rows against a block, and values summed with weights.
//!
//! The shapes only decide how many sums are in registers at once; each sum keeps its own order.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use super::KV_TOKENS;
use crate::simd::{LANES, Simd};

/// Scores or probabilities of a tile's rows against a block.
pub(super) type Scores<const R: usize> = [[f32; KV_TOKENS]; R];

/// Scores of `R` rows against `16 * G` tokens from group `group` on: for each token a sum over channels in order.
#[inline(always)]
pub(super) fn scores<S: Simd, const R: usize, const G: usize>(
    s: S,
    q: &[&[f32]; R],
    k: &[u16],
    head_dim: usize,
    group: usize,
    out: &mut Scores<R>,
) {
    let mut acc = [[s.zero(); G]; R];
    let k = &k[group * head_dim * LANES..(group + G) * head_dim * LANES];
    for row in q {
        assert!(row.len() >= head_dim);
    }
    for d in 0..head_dim {
        let mut keys = [s.zero(); G];
        for (g, key) in keys.iter_mut().enumerate() {
            // SAFETY: d < head_dim and g < G, and `k` holds G * head_dim groups of 16.
            *key = unsafe { s.f16_at(k.as_ptr().add((g * head_dim + d) * LANES).cast()) };
        }
        for r in 0..R {
            // SAFETY: every row has head_dim channels or more, as asserted above.
            let x = s.splat(unsafe { *q[r].get_unchecked(d) });
            for g in 0..G {
                acc[r][g] = s.fma(x, keys[g], acc[r][g]);
            }
        }
    }
    for r in 0..R {
        let (whole, _) = out[r].as_chunks_mut::<LANES>();
        for g in 0..G {
            s.store(&mut whole[group + g], acc[r][g]);
        }
    }
}

/// `acc[d] += Σ p[t] v[t][d]` over tokens in order, for `R` rows and `C` vectors of channels from channel `d` on.
#[inline(always)]
fn weighted<S: Simd, const R: usize, const C: usize>(
    s: S,
    p: &Scores<R>,
    v: &[u16],
    head_dim: usize,
    (from, to): (usize, usize),
    d: usize,
    acc: &mut [f32],
) {
    let stride = head_dim + 2;
    assert!(to <= KV_TOKENS && d + C * LANES <= head_dim);
    assert!(v.len() >= KV_TOKENS * head_dim && acc.len() >= R * stride);
    let mut sums = [[s.zero(); C]; R];
    for r in 0..R {
        for c in 0..C {
            // SAFETY: row r of acc has head_dim channels from 2 on, and d + 16 c + 16 <= head_dim.
            sums[r][c] = unsafe { s.f32_at(acc.as_ptr().add(r * stride + 2 + d + c * LANES).cast()) };
        }
    }
    for t in from..to {
        let mut values = [s.zero(); C];
        for (c, value) in values.iter_mut().enumerate() {
            // SAFETY: t < 64 and d + 16 c + 16 <= head_dim, and v holds 64 * head_dim values.
            *value = unsafe { s.f16_at(v.as_ptr().add(t * head_dim + d + c * LANES).cast()) };
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
fn weighted_tail<S: Simd, const R: usize>(
    s: S,
    p: &Scores<R>,
    v: &[u16],
    head_dim: usize,
    (from, to): (usize, usize),
    acc: &mut [f32],
) {
    let d = head_dim / LANES * LANES;
    for (p, acc) in p.iter().zip(acc.chunks_exact_mut(head_dim + 2)) {
        let tail = &mut acc[2 + d..];
        let mut sum = s.load_part(tail);
        for t in from..to {
            let mut lanes = [0; LANES];
            lanes[..head_dim - d].copy_from_slice(&v[t * head_dim + d..(t + 1) * head_dim]);
            sum = s.fma(s.splat(p[t]), s.load_f16(&lanes), sum);
        }
        s.store_part(tail, sum);
    }
}

/// Adds the tokens `range` of a block to the accumulators of `R` rows.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const R: usize>(
    s: S,
    p: &Scores<R>,
    v: &[u16],
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
            weighted::<S, R, 4>(s, p, v, head_dim, range, d, acc);
            d += 4 * LANES;
        }
    } else if R == 2 {
        while d + 2 * LANES <= head_dim {
            weighted::<S, R, 2>(s, p, v, head_dim, range, d, acc);
            d += 2 * LANES;
        }
    }
    while d + LANES <= head_dim {
        weighted::<S, R, 1>(s, p, v, head_dim, range, d, acc);
        d += LANES;
    }
    if d < head_dim {
        weighted_tail(s, p, v, head_dim, range, acc);
    }
}
