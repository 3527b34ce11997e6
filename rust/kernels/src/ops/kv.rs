//! Writing a token's key and value into its block of the cache.

use crate::simd::{LANES, Simd};

/// Half floats have no room beyond this; finite numbers are limited to it.
const LARGEST: f32 = 65504.0;

/// Rounds to half floats. Finite numbers beyond the range become its largest, infinities and NaN stay.
#[inline(always)]
fn to_half<S: Simd>(s: S, v: S::F) -> S::F {
    let limited = s.min(s.splat(LARGEST), s.max(s.splat(-LARGEST), v));
    s.select(s.gt(s.abs(v), s.splat(f32::MAX)), v, limited)
}

#[inline(always)]
fn write<S: Simd>(s: S, k: &[f32], v: &[f32], keys: &mut [u16], values: &mut [u16], slot: usize) {
    let head_dim = k.len();
    let group = &mut keys[slot / LANES * LANES * head_dim..][..LANES * head_dim];
    let lines = group.as_chunks_mut::<LANES>().0;
    let mut half = [0; LANES];
    for (from, to) in k.chunks(LANES).zip(lines.chunks_mut(LANES)) {
        s.store_f16(&mut half, to_half(s, s.load_part(from)));
        for (line, &bits) in to.iter_mut().zip(&half) {
            line[slot % LANES] = bits;
        }
    }
    for (from, to) in v.chunks(LANES).zip(values[slot * head_dim..][..head_dim].chunks_mut(LANES)) {
        s.store_f16(&mut half, to_half(s, s.load_part(from)));
        to.copy_from_slice(&half[..to.len()]);
    }
}

instantiate! {
    KvWrite, "f16", "row" => row_of = write,
        (k: &[f32], v: &[f32], keys: &mut [u16], values: &mut [u16], slot: usize);
}
