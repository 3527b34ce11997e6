//! RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450), fused with the residual sum before and the quantization after.

use super::quantize::{clear_padding, quantize_block};
use crate::quantized::{ACT_BLOCK, QuantRowMut};
use crate::simd::{LANES, Simd};

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Root of the mean square.
    Rms,
    /// Standard deviation, after the mean is subtracted.
    Layer,
}

impl NormKind {
    /// Both kinds.
    pub const ALL: [NormKind; 2] = [NormKind::Rms, NormKind::Layer];

    /// The name in graphs and in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            NormKind::Rms => "rms",
            NormKind::Layer => "layer",
        }
    }
}

/// A norm: `y = (x - mean) / sqrt(variance + eps) * (weight + offset) + bias`; for [`NormKind::Rms`] the mean is taken as 0.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// RMSNorm or LayerNorm.
    pub kind: NormKind,
    /// Added to the mean square under the root.
    pub eps: f32,
    /// Gain, one per channel; without it the gain is 1 and `offset` has no effect.
    pub weight: Option<&'a [f32]>,
    /// Added last, one per channel.
    pub bias: Option<&'a [f32]>,
    /// Added to the gain (1 for Gemma, which stores w - 1).
    pub offset: f32,
}

/// Σ f(x) over four chains of sixteen lanes: chunk j of 16 goes to chain j mod 4; then (0+1)+(2+3), then the fixed tree.
macro_rules! sum_of {
    ($s:ident, $x:expr, $acc:ident, $v:ident => $e:expr) => {{
        let mut chains = [$s.zero(); 4];
        let (fours, rest) = $x.as_chunks::<{ 4 * LANES }>();
        for four in fours {
            for (j, chunk) in four.as_chunks::<LANES>().0.iter().enumerate() {
                let ($acc, $v) = (chains[j], $s.load(chunk));
                chains[j] = $e;
            }
        }
        for (j, chunk) in rest.chunks(LANES).enumerate() {
            let ($acc, $v) = (chains[j], $s.load_part(chunk));
            let sum = $e;
            // Lanes beyond the end keep their sum.
            chains[j] = $s.select($s.mask(lanes_below(chunk.len())), sum, $acc);
        }
        $s.hsum($s.add($s.add(chains[0], chains[1]), $s.add(chains[2], chains[3])))
    }};
}

#[inline(always)]
fn lanes_below(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}

/// Mean (0 for RMSNorm) and inverse deviation.
#[inline(always)]
fn statistics<S: Simd>(s: S, norm: &Norm<'_>, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum_of!(s, x, acc, v => s.add(acc, v)) / n,
    };
    let m = s.splat(mean);
    let squares = sum_of!(s, x, acc, v => { let d = s.sub(v, m); s.fma(d, d, acc) });
    (mean, 1.0 / (squares / n + norm.eps).sqrt())
}

#[inline(always)]
fn part(all: Option<&[f32]>, start: usize, len: usize) -> Option<&[f32]> {
    all.map(|a| &a[start..start + len])
}

/// Normalises the channels `start..start + y.len()`, with `y` holding x on entry and the result on return.
#[inline(always)]
fn apply<S: Simd>(s: S, norm: &Norm<'_>, moments: (f32, f32), start: usize, y: &mut [f32]) {
    let offset = s.splat(norm.offset);
    let weight = part(norm.weight, start, y.len());
    let bias = part(norm.bias, start, y.len());
    match (weight, bias) {
        (Some(w), Some(b)) => each(s, moments, y, [w, b], |v, [w, b]| s.fma(v, s.add(w, offset), b)),
        (Some(w), None) => each(s, moments, y, [w], |v, [w]| s.mul(v, s.add(w, offset))),
        (None, Some(b)) => each(s, moments, y, [b], |v, [b]| s.add(v, b)),
        (None, None) => each(s, moments, y, [], |v, []| v),
    }
}

/// `y = f((y - mean) * inverse, others)`.
#[inline(always)]
fn each<S: Simd, const N: usize>(
    s: S,
    (mean, inverse): (f32, f32),
    y: &mut [f32],
    others: [&[f32]; N],
    f: impl Fn(S::F, [S::F; N]) -> S::F,
) {
    let (m, inv) = (s.splat(mean), s.splat(inverse));
    let (whole, rest) = y.as_chunks_mut::<LANES>();
    let others = others.map(|o| o.as_chunks::<LANES>());
    for (i, chunk) in whole.iter_mut().enumerate() {
        let mut with = [m; N];
        for (with, other) in with.iter_mut().zip(&others) {
            *with = s.load(&other.0[i]);
        }
        let v = s.mul(s.sub(s.load(chunk), m), inv);
        s.store(chunk, f(v, with));
    }
    if !rest.is_empty() {
        let mut with = [m; N];
        for (with, other) in with.iter_mut().zip(&others) {
            *with = s.load_part(other.1);
        }
        let v = s.mul(s.sub(s.load_part(rest), m), inv);
        s.store_part(rest, f(v, with));
    }
}

#[inline(always)]
fn row<S: Simd>(
    s: S,
    norm: &Norm<'_>,
    x: &mut [f32],
    delta: Option<&[f32]>,
    out: Option<&mut [f32]>,
    quantized: Option<&mut QuantRowMut<'_>>,
) {
    if let Some(delta) = delta {
        super::elementwise::add(s, x, delta);
    }
    if x.is_empty() || (out.is_none() && quantized.is_none()) {
        return;
    }
    let moments = statistics(s, norm, x);
    let mut out = out;
    let mut quantized = quantized;
    let mut buffer = [0.0; ACT_BLOCK];
    for (b, block) in x.chunks(ACT_BLOCK).enumerate() {
        let start = b * ACT_BLOCK;
        let y = match &mut out {
            Some(out) => &mut out[start..start + block.len()],
            None => &mut buffer[..block.len()],
        };
        y.copy_from_slice(block);
        apply(s, norm, moments, start, y);
        if let Some(q) = &mut quantized {
            quantize_block(s, y, &mut q.values[start..start + block.len()], &mut q.scales[b], &mut q.sums[b]);
        }
    }
    if let Some(q) = quantized {
        clear_padding(q);
    }
}

#[inline(always)]
fn heads<S: Simd>(s: S, norm: &Norm<'_>, x: &mut [f32], head_dim: usize) {
    for head in x.chunks_exact_mut(head_dim) {
        let moments = statistics(s, norm, head);
        apply(s, norm, moments, 0, head);
    }
}

instantiate! {
    AddNormQuantize, "f32", "row" => row_of = row, (
        norm: &Norm<'_>, x: &mut [f32], delta: Option<&[f32]>, out: Option<&mut [f32]>,
        quantized: Option<&mut QuantRowMut<'_>>,
    );
    NormHeads, "f32", "row" => heads_of = heads, (norm: &Norm<'_>, x: &mut [f32], head_dim: usize);
}
