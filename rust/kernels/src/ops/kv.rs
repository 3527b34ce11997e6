//! Writing a token's key and value into its block of the cache.

use super::kv_block::KvBlockMut;
use super::kv_numbers::QUAD;
use super::quantize::int8_block;
use crate::simd::{LANES, Simd};

/// Half floats have no room beyond this; finite numbers are limited to it.
const LARGEST: f32 = 65504.0;

/// Rounds to half floats. Finite numbers beyond the range become its largest, infinities and NaN stay.
#[inline(always)]
fn to_half<S: Simd>(s: S, v: S::F) -> S::F {
    let limited = s.min(s.splat(LARGEST), s.max(s.splat(-LARGEST), v));
    s.select(s.gt(s.abs(v), s.splat(f32::MAX)), v, limited)
}

/// Puts the numbers of a key where the group of its token has them.
#[inline(always)]
fn scatter<T: Copy>(numbers: &[T], first: usize, keys: &mut [T], head_dim: usize, slot: usize) {
    let group = &mut keys[slot / LANES * LANES * head_dim..][..LANES * head_dim];
    let lines = &mut group.as_chunks_mut::<LANES>().0[first..];
    for (line, &number) in lines.iter_mut().zip(numbers) {
        line[slot % LANES] = number;
    }
}

/// Puts the bytes of a key where the group of its token has them: by fours, and then one by one.
#[inline(always)]
fn scatter_quads(bytes: &[i8], keys: &mut [i8], slot: usize) {
    let group = &mut keys[slot / LANES * LANES * bytes.len()..][..LANES * bytes.len()];
    let (quads, rest) = bytes.as_chunks::<QUAD>();
    let (front, back) = group.split_at_mut(quads.len() * QUAD * LANES);
    let places = front.as_chunks_mut::<QUAD>().0.iter_mut().skip(slot % LANES).step_by(LANES);
    for (place, quad) in places.zip(quads) {
        *place = *quad;
    }
    for (line, &byte) in back.as_chunks_mut::<LANES>().0.iter_mut().zip(rest) {
        line[slot % LANES] = byte;
    }
}

#[inline(always)]
fn write_f16<S: Simd>(s: S, k: &[f32], v: &[f32], block: KvBlockMut<'_>, slot: usize) {
    let KvBlockMut::F16 { k: keys, v: values } = block else { return };
    let head_dim = k.len();
    let mut half = [0; LANES];
    for (i, from) in k.chunks(LANES).enumerate() {
        s.store_f16(&mut half, to_half(s, s.load_part(from)));
        scatter(&half[..from.len()], i * LANES, keys, head_dim, slot);
    }
    for (from, to) in v.chunks(LANES).zip(values[slot * head_dim..][..head_dim].chunks_mut(LANES)) {
        s.store_f16(&mut half, to_half(s, s.load_part(from)));
        to.copy_from_slice(&half[..to.len()]);
    }
}

/// Rounds to 127 steps of the largest magnitude on each side; a token with NaN or infinity gets scale NaN, so that it shows.
#[inline(always)]
fn write_i8<S: Simd>(s: S, k: &[f32], v: &[f32], block: KvBlockMut<'_>, slot: usize) {
    let KvBlockMut::I8 { k: keys, v: values, k_scales, v_scales } = block else { return };
    let head_dim = k.len();
    let mut sum = 0;
    let mut bytes = [0; super::MAX_HEAD_DIM];
    int8_block(s, k, &mut bytes[..head_dim], &mut k_scales[slot], &mut sum);
    scatter_quads(&bytes[..head_dim], keys, slot);
    int8_block(s, v, &mut values[slot * head_dim..][..head_dim], &mut v_scales[slot], &mut sum);
}

instantiate! {
    KvWrite, "f16", "row" => f16_row = write_f16, (k: &[f32], v: &[f32], block: KvBlockMut<'_>, slot: usize);
    KvWrite, "i8", "row" => i8_row = write_i8, (k: &[f32], v: &[f32], block: KvBlockMut<'_>, slot: usize);
}
