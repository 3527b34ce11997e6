//! Elementwise operations in place, and the lookup of a row of a dense table.

use super::math;
use crate::simd::{LANES, Simd};

/// Replaces every element `v` of a slice by an expression.
macro_rules! map_in_place {
    ($s:ident, $x:expr, $v:ident => $e:expr) => {{
        let (whole, rest) = $x.as_chunks_mut::<LANES>();
        for chunk in whole {
            let $v = $s.load(chunk);
            let value = $e;
            $s.store(chunk, value);
        }
        if !rest.is_empty() {
            let $v = $s.load_part(rest);
            let value = $e;
            $s.store_part(rest, value);
        }
    }};
}
pub(super) use map_in_place;

/// `x += y`.
#[inline(always)]
pub(super) fn add<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let (y_whole, y_rest) = y.as_chunks::<LANES>();
    for (a, b) in whole.iter_mut().zip(y_whole) {
        let sum = s.add(s.load(a), s.load(b));
        s.store(a, sum);
    }
    if !rest.is_empty() {
        let sum = s.add(s.load_part(rest), s.load_part(y_rest));
        s.store_part(rest, sum);
    }
}

#[inline(always)]
fn scale<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let f = s.splat(factor);
    map_in_place!(s, x, v => s.mul(v, f));
}

#[inline(always)]
fn softcap<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let c = s.splat(cap);
    map_in_place!(s, x, v => s.mul(c, math::tanh(s, s.div(v, c))));
}

#[inline(always)]
fn clip<S: Simd>(s: S, x: &mut [f32], limit: f32) {
    let (low, high) = (s.splat(-limit), s.splat(limit));
    // NaN passes as the second operand.
    map_in_place!(s, x, v => s.min(high, s.max(low, v)));
}

instantiate! {
    Add, "f32", "row" => add_of = add, (x: &mut [f32], y: &[f32]);
    Scale, "f32", "row" => scale_of = scale, (x: &mut [f32], factor: f32);
    Softcap, "f32", "row" => softcap_of = softcap, (x: &mut [f32], cap: f32);
    Clip, "f32", "row" => clip_of = clip, (x: &mut [f32], limit: f32);
}
