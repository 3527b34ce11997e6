//! Float activations to int8: blocks of 256 inputs with one scale.

use crate::quantized::{ACT_BLOCK, GROUP, QuantRowMut, padded_cols};
use crate::simd::{LANES, Simd};

/// Bits of the smallest magnitude that a block's maximum may have: below 127 × 2^-126 the scale would be subnormal and its
/// inverse infinite, so such a block counts as zero.
const TINY: i32 = (127.0 * f32::MIN_POSITIVE).to_bits() as i32;
const INFINITE: i32 = f32::INFINITY.to_bits() as i32;

/// Rounds one block of up to 256 values to 127 steps of the largest magnitude on each side. A block that holds NaN or infinity gets scale
/// NaN and zeros, so that NaN reaches the outputs and nothing else does.
#[inline(always)]
pub(crate) fn int8_block<S: Simd>(s: S, x: &[f32], values: &mut [i8], scale: &mut f32, sum: &mut i32) {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut peak = s.magnitude(s.load_part(rest));
    for chunk in whole {
        peak = s.imax(peak, s.magnitude(s.load(chunk)));
    }
    let peak = s.ihmax(peak);
    if !(TINY..INFINITE).contains(&peak) {
        values.fill(0);
        *scale = if peak >= INFINITE { f32::NAN } else { 0.0 };
        *sum = 0;
        return;
    }
    let amax = f32::from_bits(peak as u32);
    *scale = amax / 127.0;
    *sum = round(s, x, 127.0 / amax, values);
}

/// Quantizes one block of up to 256 activations for products with weights: as [`int8_block`], and where a group would then be larger
/// than [`GROUP`], with steps so much larger that none can be.
#[inline(always)]
pub(crate) fn quantize_block<S: Simd>(s: S, x: &[f32], values: &mut [i8], scale: &mut f32, sum: &mut i32) {
    int8_block(s, x, values, scale, sum);
    let largest = largest_group(s, values);
    if largest > GROUP {
        // Rounding may have taken half a step from each of a group's four values, and may add as much: the group is at most
        // `largest + 2` steps, which become 256 larger ones.
        *scale *= (largest + 2) as f32 / 256.0;
        *sum = round(s, x, 1.0 / *scale, values);
    }
}

/// Writes `x` times `inverse`, rounded, ties to even, all within `i8`; returns the sum.
#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], inverse: f32, values: &mut [i8]) -> i32 {
    let inverse = s.splat(inverse);
    let (whole, rest) = x.as_chunks::<LANES>();
    let (to, to_rest) = values.as_chunks_mut::<LANES>();
    let mut total = s.isplat(0);
    for (from, to) in whole.iter().zip(to) {
        let q = s.to_i32(s.mul(s.load(from), inverse));
        total = s.iadd(total, q);
        s.store_i8(to, q);
    }
    if !rest.is_empty() {
        let q = s.to_i32(s.mul(s.load_part(rest), inverse));
        total = s.iadd(total, q);
        let mut lanes = [0; LANES];
        s.store_i8(&mut lanes, q);
        to_rest.copy_from_slice(&lanes[..rest.len()]);
    }
    s.ihsum(total)
}

/// [`Simd::largest_group`] of any number of values.
#[inline(always)]
fn largest_group<S: Simd>(s: S, values: &[i8]) -> i32 {
    let (whole, rest) = values.as_chunks::<64>();
    let largest = s.largest_group(whole);
    if rest.is_empty() {
        return largest;
    }
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    largest.max(s.largest_group(&[last]))
}

/// Zeroes the padding after the last input.
#[inline(always)]
pub(crate) fn clear_padding(row: &mut QuantRowMut<'_>) {
    let end = padded_cols(row.cols);
    row.values[row.cols..end].fill(0);
}

#[inline(always)]
fn quantize<S: Simd>(s: S, x: &[f32], row: &mut QuantRowMut<'_>) {
    let blocks = x.chunks(ACT_BLOCK).zip(row.values[..x.len()].chunks_mut(ACT_BLOCK));
    for ((x, values), (scale, sum)) in blocks.zip(row.scales.iter_mut().zip(row.sums.iter_mut())) {
        quantize_block(s, x, values, scale, sum);
    }
    clear_padding(row);
}

/// What `first`, the bytes and scales of `x`, leaves of it, quantized in turn: `x ≈ scale · first + row's scale · row`.
#[inline(always)]
fn quantize_rest<S: Simd>(s: S, x: &[f32], first: (&[i8], &[f32]), row: &mut QuantRowMut<'_>) {
    let blocks = x.chunks(ACT_BLOCK).zip(first.0.chunks(ACT_BLOCK)).zip(first.1);
    let rows =
        row.values[..x.len()].chunks_mut(ACT_BLOCK).zip(row.scales.iter_mut().zip(row.sums.iter_mut()));
    for (((x, bytes), &scale), (values, (to_scale, sum))) in blocks.zip(rows) {
        let mut rest = [0.0; ACT_BLOCK];
        let back = s.splat(-scale);
        for ((x, bytes), rest) in x.chunks(LANES).zip(bytes.chunks(LANES)).zip(rest.chunks_mut(LANES)) {
            let mut lanes = [0i8; LANES];
            lanes[..x.len()].copy_from_slice(&bytes[..x.len()]);
            // SAFETY: an array of 16 bytes.
            let q = unsafe { s.i8_at(lanes.as_ptr().cast()) };
            s.store_part(&mut rest[..x.len()], s.fma(q, back, s.load_part(x)));
        }
        quantize_block(s, &rest[..x.len()], values, to_scale, sum);
    }
    clear_padding(row);
}

instantiate! {
    Quantize, "f32", "row" => row = quantize, (x: &[f32], row: &mut QuantRowMut<'_>);
    QuantizeRest, "f32", "row" => rest_row = quantize_rest,
        (x: &[f32], first: (&[i8], &[f32]), row: &mut QuantRowMut<'_>);
}
