//! Rotary position embedding (arXiv 2104.09864) of the heads of one token.

use super::math::neg;
use crate::simd::{LANES, Simd};

/// `x1' = x1 cos - x2 sin`, `x2' = x1 sin + x2 cos`, each as a product and a fused multiply-add.
#[inline(always)]
fn rotate<S: Simd>(s: S, x1: S::F, x2: S::F, cos: S::F, sin: S::F) -> (S::F, S::F) {
    (s.fma(neg(s, x2), sin, s.mul(x1, cos)), s.fma(x1, sin, s.mul(x2, cos)))
}

/// Rotates pairs (i, i + n) for n pairs; channels from 2n on pass through.
#[inline(always)]
fn halves<S: Simd>(s: S, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let pairs = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        let (first, second) = head[..2 * pairs].split_at_mut(pairs);
        let ((first, a), (second, b)) = (first.as_chunks_mut::<LANES>(), second.as_chunks_mut::<LANES>());
        let ((cos, c), (sin, n)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
        for ((a, b), (c, n)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            let (y1, y2) = rotate(s, s.load(a), s.load(b), s.load(c), s.load(n));
            s.store(a, y1);
            s.store(b, y2);
        }
        if !a.is_empty() {
            let (y1, y2) = rotate(s, s.load_part(a), s.load_part(b), s.load_part(c), s.load_part(n));
            s.store_part(a, y1);
            s.store_part(b, y2);
        }
    }
}

/// Rotates pairs (2i, 2i + 1): the same arithmetic, one pair at a time.
#[inline(always)]
fn interleaved<S: Simd>(_: S, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(head_dim) {
        for (pair, (&c, &n)) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
            let [x1, x2] = *pair;
            *pair = [(-x2).mul_add(n, x1 * c), x1.mul_add(n, x2 * c)];
        }
    }
}

instantiate! {
    Rope, "f32", "halves" => halves_of = halves, (x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]);
    Rope, "f32", "interleaved" => pairs_of = interleaved,
        (x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]);
}
