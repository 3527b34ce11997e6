//! The partial results of attention over splits, merged in ascending order.

use super::math;
use crate::simd::{LANES, Simd};

/// `partials` is `[splits][rows][2 + head_dim]`: maximum, sum, accumulators. A split in which a row saw nothing is passed over; a row
/// that saw nothing at all becomes zeros.
#[inline(always)]
fn merge<S: Simd>(
    s: S,
    partials: &[f32],
    rows: usize,
    heads: usize,
    head_dim: usize,
    token_stride: usize,
    out: &mut [f32],
) {
    let stride = head_dim + 2;
    for row in 0..rows {
        let at = row / heads * token_stride + row % heads * head_dim;
        let y = &mut out[at..at + head_dim];
        let parts =
            || partials.chunks_exact(rows * stride).map(|split| &split[row * stride..(row + 1) * stride]);
        let mut max = f32::NEG_INFINITY;
        for part in parts() {
            max = if max > part[0] { max } else { part[0] };
        }
        y.fill(0.0);
        let mut sum = 0.0;
        for part in parts() {
            // A sum of 0 with the maximum never raised: nothing was visible. NaN is not passed over.
            if part[0] == f32::NEG_INFINITY && part[1] == 0.0 {
                continue;
            }
            let weight = math::exp_one(s, part[0] - max);
            sum = weight.mul_add(part[1], sum);
            let w = s.splat(weight);
            for (from, to) in part[2..].chunks(LANES).zip(y.chunks_mut(LANES)) {
                s.store_part(to, s.fma(w, s.load_part(from), s.load_part(to)));
            }
        }
        if sum != 0.0 {
            let inverse = s.splat(1.0 / sum);
            super::elementwise::map_in_place!(s, y, v => s.mul(v, inverse));
        }
    }
}

instantiate! {
    AttentionMerge, "f32", "rows" => rows_of = merge, (
        partials: &[f32], rows: usize, heads: usize, head_dim: usize, token_stride: usize, out: &mut [f32],
    );
}
