//! Norms of rows and of heads: against float64, the same bits on every level, and special values.

mod common;

use common::rows::{Int8Row, LENGTHS, SPECIAL, assert_same_int8, int8_row};
use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Kernels, Norm, NormKind, reference};
use proptest::prelude::*;

struct NormCase {
    kind: NormKind,
    eps: f32,
    offset: f32,
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
}

impl NormCase {
    fn new(random: &mut Random, n: usize) -> Self {
        Self {
            kind: NormKind::ALL[random.below(2)],
            eps: [1e-5, 1e-6, 1e-12][random.below(3)],
            offset: random.below(2) as f32,
            weight: (random.below(3) > 0).then(|| random.normals(n, 1.0)),
            bias: (random.below(2) > 0).then(|| random.normals(n, 1.0)),
        }
    }
    fn norm(&self) -> Norm<'_> {
        let Self { kind, eps, offset, .. } = *self;
        Norm { kind, eps, offset, weight: self.weight.as_deref(), bias: self.bias.as_deref() }
    }
}

/// What a norm call left: the sum, the float result, the int8 result.
fn run_norm(k: &Kernels, norm: &Norm<'_>, x: &[f32], delta: Option<&[f32]>) -> (Vec<f32>, Vec<f32>, Int8Row) {
    let (mut sum, mut out) = (x.to_vec(), vec![0.0; x.len()]);
    let int8 = int8_row(x.len(), |row| {
        k.add_norm_quantize(norm, &mut sum, delta, Some(&mut out), Some(row)).unwrap();
    });
    // The parts agree with the whole.
    let mut other = x.to_vec();
    let alone =
        int8_row(x.len(), |row| k.add_norm_quantize(norm, &mut other, delta, None, Some(row)).unwrap());
    assert_same_int8("norm without float result", &alone, &int8);
    let mut floats = vec![0.0; x.len()];
    k.add_norm_quantize(norm, &mut x.to_vec(), delta, Some(&mut floats), None).unwrap();
    assert_same("norm without int8 result", &floats, &out);
    assert_same_int8("norm then quantize", &int8_row(x.len(), |row| k.quantize(&out, row).unwrap()), &int8);
    (sum, out, int8)
}

fn check_norm(random: &mut Random, x: &[f32]) {
    let n = x.len();
    let case = NormCase::new(random, n);
    let norm = case.norm();
    let delta = (random.below(2) > 0).then(|| random.normals(n, 1.0));
    let levels = kernels();
    let (sum, out, int8) = run_norm(levels[0], &norm, x, delta.as_deref());
    for k in &levels[1..] {
        let got = run_norm(k, &norm, x, delta.as_deref());
        assert_same(&format!("residual {}", k.level()), &got.0, &sum);
        assert_same(&format!("norm {}", k.level()), &got.1, &out);
        assert_same_int8(&format!("norm {}", k.level()), &got.2, &int8);
    }
    if let Some(delta) = &delta {
        let plain: Vec<f32> = x.iter().zip(delta).map(|(a, b)| a + b).collect();
        assert_same("residual", &sum, &plain);
    }
    let exact = reference::norm(&norm, &sum);
    let peak = sum.iter().fold(0f64, |a, &v| a.max(f64::from(v).abs()));
    let mean = sum.iter().map(|&v| f64::from(v)).sum::<f64>() / n.max(1) as f64;
    let deviation = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => mean,
    };
    let variance = sum.iter().map(|&v| (f64::from(v) - deviation).powi(2)).sum::<f64>() / n.max(1) as f64
        + f64::from(norm.eps);
    // Each chain adds n / 64 terms, six more sums join them, and nine roundings follow; the mean of LayerNorm errs by as
    // many units of the largest input, which the division magnifies.
    let units = (n / 64 + 16) as f64 * UNIT;
    assert_close("norm", &out, &exact, |i| {
        let gain = norm.weight.map_or(1.0, |w| (f64::from(w[i]) + f64::from(norm.offset)).abs());
        let bias = norm.bias.map_or(0.0, |b| f64::from(b[i]).abs());
        let lost = if norm.kind == NormKind::Layer { peak / variance.sqrt() } else { 0.0 };
        units * (exact[i].abs() + bias + gain * lost) + 4.0 * UNIT * bias + 1e-30
    });
}

#[test]
fn norms_match_float64_on_every_level() {
    let mut random = Random(2);
    for n in LENGTHS {
        for scale in [1.0, 30.0, 1e-3] {
            for _ in 0..4 {
                let x = random.normals(n, scale);
                check_norm(&mut random, &x);
            }
        }
    }
}

#[test]
fn norms_of_special_values_agree() {
    let mut random = Random(3);
    let levels = kernels();
    for special in SPECIAL {
        let case = NormCase::new(&mut random, 70);
        let mut x = random.normals(70, 1.0);
        x[41] = special;
        let expected = run_norm(levels[0], &case.norm(), &x, None);
        for k in &levels[1..] {
            let got = run_norm(k, &case.norm(), &x, None);
            assert_same("special norm", &got.1, &expected.1);
            assert_same_int8("special norm", &got.2, &expected.2);
        }
        if !special.is_finite() {
            assert!(expected.1[41].is_nan() && expected.2.1[0].is_nan(), "{special} must stay visible");
        }
    }
}

#[test]
fn head_norms_are_norms_of_each_head() {
    let mut random = Random(4);
    for (heads, head_dim) in [(1, 1), (3, 64), (12, 20), (2, 130), (0, 8)] {
        let case = NormCase::new(&mut random, head_dim);
        let x = random.normals(heads * head_dim, 2.0);
        for k in kernels() {
            let mut got = x.clone();
            k.norm_heads(&case.norm(), &mut got, head_dim).unwrap();
            for (head, from) in got.chunks(head_dim).zip(x.chunks(head_dim)) {
                let mut out = vec![0.0; head_dim];
                k.add_norm_quantize(&case.norm(), &mut from.to_vec(), None, Some(&mut out), None).unwrap();
                assert_same(&format!("head norm {}", k.level()), head, &out);
            }
        }
    }
}

proptest! {
    #[test]
    fn norm_any_length(seed: u64, n in 1usize..900) {
        let mut random = Random(seed);
        let x = random.normals(n, 5.0);
        check_norm(&mut random, &x);
    }
}
