//! Operations on one row.

use crate::formats::DenseType;
use crate::ops::{Activation, Norm, NormKind};
use crate::quantized::GROUP;

/// Σ w x, and Σ |w x|: the second is what an error bound is relative to.
pub fn dot(w: &[f64], x: &[f32]) -> (f64, f64) {
    w.iter().zip(x).fold((0.0, 0.0), |(sum, size), (&w, &x)| {
        let term = w * f64::from(x);
        (sum + term, size + term.abs())
    })
}

/// The elements of dense weights.
pub fn embed(dtype: DenseType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DenseType::F32 => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        DenseType::F16 => bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f64()).collect(),
        DenseType::Bf16 => {
            bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f64()).collect()
        }
    }
}

/// The norm of a row.
pub fn norm(norm: &Norm<'_>, x: &[f32]) -> Vec<f64> {
    let n = x.len() as f64;
    let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let mean = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => x.iter().sum::<f64>() / n,
    };
    let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    x.iter()
        .enumerate()
        .map(|(i, v)| {
            let gain = norm.weight.map_or(1.0, |w| f64::from(w[i]) + f64::from(norm.offset));
            (v - mean) * inverse * gain + norm.bias.map_or(0.0, |b| f64::from(b[i]))
        })
        .collect()
}

/// Rotary embedding of heads.
pub fn rope(x: &[f32], head_dim: usize, cos: &[f32], sin: &[f32], interleaved: bool) -> Vec<f64> {
    let mut y: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    for head in y.chunks_exact_mut(head_dim) {
        for (i, (&c, &s)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + cos.len()) };
            let (x1, x2, c, s) = (head[a], head[b], f64::from(c), f64::from(s));
            head[a] = x1 * c - x2 * s;
            head[b] = x1 * s + x2 * c;
        }
    }
    y
}

/// An activation function.
pub fn activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            // Equal to 0.5 x (1 + tanh u), without its cancellation.
            x / (1.0 + (-2.0 * u).exp())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
    }
}

/// Φ(x), by its power series near 0 and by a continued fraction in the tails.
fn normal_distribution(x: f64) -> f64 {
    let a = x.abs();
    let density = (-0.5 * a * a).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let tail = if a < 5.0 {
        // Φ(a) = 1/2 + φ(a) (a + a³/3 + a⁵/15 + ...): all terms are positive.
        let (mut term, mut sum) = (a, a);
        for k in 1..300 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    } else {
        // The continued fraction of Laplace.
        let mut fraction = a;
        for k in (1..200).rev() {
            fraction = a + f64::from(k) / fraction;
        }
        density / fraction
    };
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// `cap * tanh(x / cap)`.
pub fn softcap(x: f64, cap: f64) -> f64 {
    cap * (x / cap).tanh()
}

/// Int8 values, scale and sum of one block of at most 256 activations, by the rule of the format: as [`int8`], but that no group is
/// larger than [`GROUP`].
pub fn quantize(x: &[f32]) -> (Vec<i8>, f32, i32) {
    let (q, scale, sum) = int8(x);
    let largest = largest_group(&q);
    if largest <= GROUP {
        return (q, scale, sum);
    }
    let scale = scale * ((largest + 2) as f32 / 256.0);
    let (q, sum) = round(x, 1.0 / scale);
    (q, scale, sum)
}

/// Int8 values, scale and sum of numbers that share a scale: 127 steps of it are the largest magnitude.
pub fn int8(x: &[f32]) -> (Vec<i8>, f32, i32) {
    let zeros = vec![0; x.len()];
    if x.iter().any(|v| !v.is_finite()) {
        return (zeros, f32::NAN, 0);
    }
    let amax = x.iter().fold(0f32, |a, v| a.max(v.abs()));
    if amax < 127.0 * f32::MIN_POSITIVE {
        return (zeros, 0.0, 0);
    }
    let (q, sum) = round(x, 127.0 / amax);
    (q, amax / 127.0, sum)
}

fn round(x: &[f32], inverse: f32) -> (Vec<i8>, i32) {
    let q: Vec<i8> = x.iter().map(|v| (v * inverse).round_ties_even() as i8).collect();
    let sum = q.iter().map(|&v| i32::from(v)).sum();
    (q, sum)
}

/// The largest group of int8 values, by the definition of [`GROUP`].
pub fn largest_group(q: &[i8]) -> i32 {
    let groups = q.chunks(8).flat_map(|eight| [[0, 1, 4, 5], [2, 3, 6, 7]].map(|at| (eight, at)));
    let sums = groups.flat_map(|(eight, at)| {
        let values = at.map(|i| eight.get(i).map_or(0, |&v| i32::from(v)));
        [1, -1].map(|sign| values.iter().map(|v| (sign * v).max(0)).sum())
    });
    sums.max().unwrap_or(0)
}
