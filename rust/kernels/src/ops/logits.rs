//! What sampling needs of a row of logits: maxima, a check for NaN, and exponentials with their sums.

use super::math;
use crate::simd::{LANES, Simd};

/// Logits per entry of the table of maxima.
pub const MAXIMA_BLOCK: usize = 64;
/// Logits per entry of the table of sums.
pub const TERMS_BLOCK: usize = 256;

/// Summary of a row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LogitStats {
    /// Largest logit (meaningless where one is NaN).
    pub max: f32,
    /// Whether any logit is NaN.
    pub has_nan: bool,
}

#[inline(always)]
fn maxima<S: Simd>(s: S, x: &[f32], maxima: &mut [f32], stats: &mut LogitStats) {
    let lowest = s.splat(f32::NEG_INFINITY);
    let mut magnitudes = s.isplat(0);
    let mut top = f32::NEG_INFINITY;
    for (block, out) in x.chunks(MAXIMA_BLOCK).zip(maxima) {
        let mut peak = lowest;
        let (whole, rest) = block.as_chunks::<LANES>();
        for chunk in whole {
            let v = s.load(chunk);
            magnitudes = s.imax(magnitudes, s.magnitude(v));
            peak = s.max(v, peak);
        }
        if !rest.is_empty() {
            let v = s.load_part(rest);
            magnitudes = s.imax(magnitudes, s.magnitude(v));
            peak = s.max(s.select(s.mask((1 << rest.len()) - 1), v, lowest), peak);
        }
        *out = s.hmax(peak);
        if *out > top {
            top = *out;
        }
    }
    *stats = LogitStats { max: top, has_nan: s.ihmax(magnitudes) > f32::INFINITY.to_bits() as i32 };
}

/// `e^((x - max) / temperature)` and its sum over each block: sixteen lanes in order, then the fixed tree.
#[inline(always)]
fn terms<S: Simd>(s: S, x: &[f32], max: f32, temperature: f32, terms: &mut [f32], sums: &mut [f32]) {
    let (m, t) = (s.splat(max), s.splat(temperature));
    for ((block, out), sum) in x.chunks(TERMS_BLOCK).zip(terms.chunks_mut(TERMS_BLOCK)).zip(sums) {
        let mut total = s.zero();
        for (from, to) in block.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let e = math::exp(s, s.div(s.sub(s.load_part(from), m), t));
            s.store_part(to, e);
            total = s.add(total, s.load_part(to));
        }
        *sum = s.hsum(total);
    }
}

instantiate! {
    LogitMaxima, "f32", "row" => maxima_of = maxima, (x: &[f32], table: &mut [f32], stats: &mut LogitStats);
    LogitTerms, "f32", "row" => terms_of = terms,
        (x: &[f32], max: f32, temperature: f32, out: &mut [f32], sums: &mut [f32]);
}
