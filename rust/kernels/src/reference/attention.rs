//! Attention without blocks, splits or online sums.

use super::softcap;

/// A half float as float64.
pub fn half_to_f64(bits: u16) -> f64 {
    half::f16::from_bits(bits).to_f64()
}

/// Attention of one query over visible keys and values (`[tokens][head_dim]`). Returns the result and, for each channel, the
/// weighted sum of magnitudes of the values, which bounds errors.
pub fn attention(
    q: &[f32],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    cap: Option<f32>,
) -> (Vec<f64>, Vec<f64>) {
    let zeros = vec![0.0; q.len()];
    if keys.is_empty() {
        return (zeros.clone(), zeros);
    }
    let scores: Vec<f64> = keys
        .iter()
        .map(|k| {
            let score = q.iter().zip(k).map(|(&q, k)| f64::from(q) * k).sum();
            cap.map_or(score, |cap| softcap(score, f64::from(cap)))
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let (mut out, mut size) = (zeros.clone(), zeros);
    for (w, v) in weights.iter().zip(values) {
        for (d, x) in v.iter().enumerate() {
            out[d] += w / total * x;
            size[d] += (w / total * x).abs();
        }
    }
    (out, size)
}
