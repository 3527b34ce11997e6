//! Operations on one row: against float64, the same bits on every level, and special values.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{
    ACT_BLOCK, Activation, Kernels, LogitStats, Norm, NormKind, QuantBuffer, QuantRowMut, padded_cols,
    reference,
};
use proptest::prelude::*;

const LENGTHS: [usize; 14] = [0, 1, 7, 15, 16, 17, 63, 64, 65, 255, 256, 257, 700, 2048];
const SPECIAL: [f32; 12] = [
    0.0,
    -0.0,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MAX,
    f32::MIN,
    1e-45,
    -1e-45,
    f32::MIN_POSITIVE,
    1e19,
    -1e30,
];

/// An int8 row as it was written: values with padding, scales, sums.
type Int8Row = (Vec<i8>, Vec<f32>, Vec<i32>);

fn int8_row(cols: usize, write: impl FnOnce(&mut QuantRowMut<'_>)) -> Int8Row {
    let mut buffer = QuantBuffer::new(1, cols).unwrap();
    let mut rows = buffer.as_rows_mut();
    let mut row = rows.row_mut(0).unwrap();
    row.values.fill(99);
    row.scales.fill(99.0);
    row.sums.fill(99);
    write(&mut row);
    (row.values.to_vec(), row.scales.to_vec(), row.sums.to_vec())
}

fn assert_same_int8(what: &str, got: &Int8Row, expected: &Int8Row) {
    assert_eq!(got.0, expected.0, "{what}: values");
    assert_same(what, &got.1, &expected.1);
    assert_eq!(got.2, expected.2, "{what}: sums");
}

fn reference_int8(x: &[f32]) -> Int8Row {
    let (mut values, mut scales, mut sums) = (vec![], vec![], vec![]);
    for block in x.chunks(ACT_BLOCK) {
        let (v, scale, sum) = reference::quantize(block);
        values.extend(v);
        scales.push(scale);
        sums.push(sum);
    }
    values.resize(padded_cols(x.len()), 0);
    (values, scales, sums)
}

fn check_quantize(x: &[f32]) {
    let expected = reference_int8(x);
    for k in kernels() {
        let got = int8_row(x.len(), |row| k.quantize(x, row).unwrap());
        assert_same_int8(&format!("quantize {}", k.level()), &got, &expected);
    }
}

#[test]
fn quantize_is_the_rule_of_the_format() {
    let mut random = Random(1);
    for n in LENGTHS {
        for scale in [1.0, 1e-37, 1e-36, 2e-36, 1e-40, 1e37, 3e-3] {
            check_quantize(&random.normals(n, scale));
        }
        for special in SPECIAL {
            let mut x = random.normals(n, 1.0);
            if n > 0 {
                x[random.below(n)] = special;
            }
            check_quantize(&x);
        }
    }
    // Halves go to the even neighbour.
    let mut ties: Vec<f32> = (0..=254).map(|i| i as f32 * 0.5).collect();
    ties.push(-127.0);
    check_quantize(&ties);
}

#[test]
fn what_int8_leaves_is_quantized_by_the_same_rule() {
    let mut random = Random(7);
    for n in LENGTHS {
        for scale in [1.0, 1e-36, 1e30] {
            let mut x = random.normals(n, scale);
            if n > 3 {
                x[2] *= 40.0; // one that the others have few steps beside
            }
            let k = kernels();
            let first = int8_row(n, |row| k[0].quantize(&x, row).unwrap());
            let rest: Vec<f32> =
                (0..n).map(|i| (-first.1[i / 256]).mul_add(f32::from(first.0[i]), x[i])).collect();
            let expected = int8_row(n, |row| k[0].quantize(&rest, row).unwrap());
            for k in k {
                let got = int8_row(n, |row| k.quantize_rest(&x, (&first.0, &first.1), row).unwrap());
                assert_same_int8(&format!("rest {}", k.level()), &got, &expected);
            }
            for (i, &x) in x.iter().enumerate() {
                let b = i / 256;
                let sum = f64::from(first.0[i]) * f64::from(first.1[b])
                    + f64::from(expected.0[i]) * f64::from(expected.1[b]);
                // Half a step of the rest, which is at most half a step of the row; and where all vanishes, what counts as zero.
                let step = f64::from(first.1[b]) / 254.0;
                assert!((sum - f64::from(x)).abs() <= 0.51 * step + 2e-36, "{i}: {sum} for {x}");
            }
        }
    }
    let mut x = random.normals(300, 1.0);
    x[280] = f32::NAN;
    for k in kernels() {
        let first = int8_row(300, |row| k.quantize(&x, row).unwrap());
        let rest = int8_row(300, |row| k.quantize_rest(&x, (&first.0, &first.1), row).unwrap());
        assert!(rest.1[0].is_finite() && rest.1[1].is_nan());
        let mut buffer = QuantBuffer::new(1, 300).unwrap();
        let mut rows = buffer.as_rows_mut();
        let mut row = rows.row_mut(0).unwrap();
        assert!(k.quantize_rest(&x, (&first.0[..299], &first.1), &mut row).is_err());
        assert!(k.quantize_rest(&x, (&first.0, &first.1[1..]), &mut row).is_err());
        assert!(k.quantize_rest(&x[1..], (&first.0, &first.1), &mut row).is_err());
    }
}

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

#[test]
fn rope_matches_float64_on_every_level() {
    let mut random = Random(5);
    let levels = kernels();
    for (heads, head_dim, pairs) in [(1, 2, 1), (4, 64, 32), (3, 80, 16), (2, 100, 50), (2, 96, 0), (5, 7, 3)]
    {
        for interleaved in [false, true] {
            let x = random.normals(heads * head_dim, 3.0);
            let angles: Vec<f32> = (0..pairs).map(|_| random.normal() * 10.0).collect();
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let mut expected = x.clone();
            levels[0].rope(&mut expected, head_dim, &cos, &sin, interleaved).unwrap();
            for k in &levels[1..] {
                let mut got = x.clone();
                k.rope(&mut got, head_dim, &cos, &sin, interleaved).unwrap();
                assert_same(&format!("rope {}", k.level()), &got, &expected);
            }
            let exact = reference::rope(&x, head_dim, &cos, &sin, interleaved);
            // A product and a fused sum: two roundings, each of at most |x1| + |x2|.
            assert_close("rope", &expected, &exact, |i| {
                let head = &x[i / head_dim * head_dim..][..head_dim];
                2.0 * UNIT * 2.0 * f64::from(head.iter().fold(0f32, |a, v| a.max(v.abs())))
            });
            for (got, from) in expected.chunks(head_dim).zip(x.chunks(head_dim)) {
                assert_same("channels that pass through", &got[2 * pairs..], &from[2 * pairs..]);
            }
        }
    }
}

/// Values that cover all magnitudes, both signs, and the places where formulas change.
fn sweep() -> Vec<f32> {
    let mut x: Vec<f32> = (0..40_000).map(|i| (i as f32 - 20_000.0) * 0.005).collect();
    for exponent in -149..128 {
        let v = 2f64.powi(exponent) as f32;
        x.extend([v, -v, v * 1.41, v * -1.7]);
    }
    x.extend([0.625, 0.62500006, -0.625, 14.5, -14.5, 14.500001, -14.500001]);
    x
}

/// `activation(x)`, the same bits on every level.
fn activated(activation: Activation, x: &[f32]) -> Vec<f32> {
    let levels = kernels();
    let run = |k: &Kernels| {
        let mut y = x.to_vec();
        k.activate(activation, &mut y).unwrap();
        y
    };
    let expected = run(levels[0]);
    for k in &levels[1..] {
        assert_same(&format!("{} {}", activation.name(), k.level()), &run(k), &expected);
    }
    expected
}

#[test]
fn activations_match_float64_on_every_level() {
    let x = sweep();
    for activation in Activation::ALL {
        let expected = activated(activation, &x);
        let exact: Vec<f64> = x.iter().map(|&v| reference::activation(activation, f64::from(v))).collect();
        // Relative to the result, the exponential errs by two units, the polynomial of gelu by its ten steps, and the
        // argument of an exponential by a few units of itself: its magnitude is at most log of the result. Where e^-x overflows
        // the result, which becomes 0, is below 89 / f32::MAX.
        assert_close(activation.name(), &expected, &exact, |i| {
            let argument = (exact[i] / f64::from(x[i])).abs().ln().abs().min(200.0);
            exact[i].abs() * (14.0 + 4.0 * argument) * UNIT + 89.0 / f64::from(f32::MAX)
        });
    }
}

#[test]
fn activations_of_special_values() {
    let x = [f32::NAN, f32::INFINITY, -0.0, 0.0, f32::MAX, f32::MIN, f32::NEG_INFINITY];
    for k in kernels() {
        for activation in Activation::ALL {
            let mut y = x;
            k.activate(activation, &mut y).unwrap();
            let what = format!("{} {}: {y:?}", activation.name(), k.level());
            assert!(y[0].is_nan() && y[1] == f32::INFINITY && y[2] == 0.0 && y[3] == 0.0, "{what}");
            assert!(y[4] >= f32::MAX && y[5] == 0.0, "{what}");
            assert!(y[6] == 0.0 || y[6].is_nan(), "{what}");
        }
    }
}

#[test]
fn gated_is_the_product_and_its_quantization() {
    let mut random = Random(6);
    let levels = kernels();
    for n in LENGTHS {
        for activation in Activation::ALL {
            let (gate, up) = (random.normals(n, 3.0), random.normals(n, 2.0));
            let mut act = gate.clone();
            levels[0].activate(activation, &mut act).unwrap();
            let product: Vec<f32> = act.iter().zip(&up).map(|(a, b)| a * b).collect();
            let int8 = reference_int8(&product);
            for k in &levels {
                let mut out = vec![0.0; n];
                k.gated(activation, &gate, &up, &mut out).unwrap();
                assert_same(&format!("gated {}", k.level()), &out, &product);
                let got = int8_row(n, |row| k.gated_quantize(activation, &gate, &up, row).unwrap());
                assert_same_int8(&format!("gated {}", k.level()), &got, &int8);
            }
        }
    }
}

#[test]
fn elementwise_operations() {
    let x = sweep();
    let y: Vec<f32> = x.iter().rev().copied().collect();
    let levels = kernels();
    for cap in [30.0f32, 50.0, 1.0] {
        let mut expected = x.clone();
        levels[0].softcap(&mut expected, cap).unwrap();
        let exact: Vec<f64> = x.iter().map(|&v| reference::softcap(f64::from(v), f64::from(cap))).collect();
        // Division, tanh (three units and the exponential's two), product; a subnormal quotient loses half its last place.
        assert_close("softcap", &expected, &exact, |i| {
            8.0 * UNIT * exact[i].abs() + (f64::from(cap) + 1.0) * 7.1e-46
        });
        for k in &levels {
            let mut got = x.clone();
            k.softcap(&mut got, cap).unwrap();
            assert_same(&format!("softcap {}", k.level()), &got, &expected);
        }
    }
    for k in levels {
        let mut got = x.clone();
        k.add(&mut got, &y).unwrap();
        assert_same("add", &got, &x.iter().zip(&y).map(|(a, b)| a + b).collect::<Vec<_>>());
        let mut got = x.clone();
        k.scale(&mut got, 0.3).unwrap();
        assert_same("scale", &got, &x.iter().map(|a| a * 0.3).collect::<Vec<_>>());
        let mut got = x.clone();
        got.extend(SPECIAL);
        let clipped: Vec<f32> = got.iter().map(|v| v.clamp(-8.0, 8.0)).collect();
        k.clip(&mut got, 8.0).unwrap();
        assert_same("clip", &got, &clipped);
    }
}

#[test]
fn logit_tables() {
    let mut random = Random(7);
    let levels = kernels();
    for n in LENGTHS {
        let mut x = random.normals(n, 8.0);
        if n > 20 {
            x[17] = f32::NEG_INFINITY;
        }
        let maxima: Vec<f32> =
            x.chunks(64).map(|c| c.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v))).collect();
        let max = maxima.iter().fold(f32::NEG_INFINITY, |a, &v| a.max(v));
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for k in &levels {
            let mut table = vec![0.0; n.div_ceil(64)];
            let stats = k.logit_maxima(&x, &mut table).unwrap();
            assert_eq!(stats, LogitStats { max, has_nan: false });
            assert_same("maxima", &table, &maxima);
            let (mut terms, mut sums) = (vec![0.0; n], vec![0.0; n.div_ceil(256)]);
            k.logit_terms(&x, max, 0.7, &mut terms, &mut sums).unwrap();
            let exact: Vec<f64> =
                x.iter().map(|&v| ((f64::from(v) - f64::from(max)) / f64::from(0.7f32)).exp()).collect();
            assert_close("terms", &terms, &exact, |i| {
                let argument = if exact[i] > 0.0 { exact[i].ln().abs() } else { 0.0 };
                exact[i] * (4.0 + 3.0 * argument) * UNIT + 1e-44
            });
            let totals: Vec<f64> =
                terms.chunks(256).map(|c| c.iter().map(|&v| f64::from(v)).sum::<f64>()).collect();
            assert_close("sums", &sums, &totals, |i| 24.0 * UNIT * totals[i]);
            let (terms0, sums0) = first.get_or_insert((terms.clone(), sums.clone()));
            assert_same("terms", &terms, terms0);
            assert_same("sums", &sums, sums0);
            if n > 0 {
                let mut broken = x.clone();
                broken[n - 1] = f32::NAN;
                assert!(k.logit_maxima(&broken, &mut table).unwrap().has_nan);
            }
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight: Some(&[1.0; 8]), bias: None, offset: 0.0 };
    let bias = Norm { bias: Some(&[1.0; 9]), ..norm };
    let mut buffer = QuantBuffer::new(1, 9).unwrap();
    for k in kernels() {
        let mut rows = buffer.as_rows_mut();
        let mut row = rows.row_mut(0).unwrap();
        assert!(k.quantize(&[0.0; 8], &mut row).is_err());
        assert!(k.gated_quantize(Activation::Silu, &[0.0; 9], &[0.0; 8], &mut row).is_err());
        assert!(k.add_norm_quantize(&norm, &mut [0.0; 8], None, None, Some(&mut row)).is_err());
        row.cols = usize::MAX;
        assert!(k.quantize(&[0.0; 9], &mut row).is_err());
        assert!(k.add_norm_quantize(&norm, &mut [0.0; 9], None, None, None).is_err());
        assert!(k.add_norm_quantize(&bias, &mut [0.0; 8], None, None, None).is_err());
        assert!(k.add_norm_quantize(&norm, &mut [0.0; 8], Some(&[0.0; 7]), None, None).is_err());
        assert!(k.add_norm_quantize(&norm, &mut [0.0; 8], None, Some(&mut [0.0; 9]), None).is_err());
        assert!(k.norm_heads(&norm, &mut [0.0; 8], 0).is_err());
        assert!(k.norm_heads(&norm, &mut [0.0; 12], 8).is_err());
        assert!(k.norm_heads(&norm, &mut [0.0; 12], 4).is_err());
        assert!(k.rope(&mut [0.0; 8], 4, &[0.0; 3], &[0.0; 3], false).is_err());
        assert!(k.rope(&mut [0.0; 8], 4, &[0.0; 2], &[0.0; 1], false).is_err());
        assert!(k.rope(&mut [0.0; 9], 4, &[0.0; 2], &[0.0; 2], true).is_err());
        assert!(k.gated(Activation::Gelu, &[0.0; 4], &[0.0; 4], &mut [0.0; 5]).is_err());
        assert!(k.add(&mut [0.0; 4], &[0.0; 5]).is_err());
        assert!(k.softcap(&mut [0.0; 4], -1.0).is_err());
        assert!(k.clip(&mut [0.0; 4], f32::NAN).is_err());
        assert!(k.logit_maxima(&[0.0; 65], &mut [0.0]).is_err());
        assert!(k.logit_terms(&[0.0; 65], 0.0, 1.0, &mut [0.0; 65], &mut [0.0; 2]).is_err());
    }
}

proptest! {
    #[test]
    fn quantize_any_bits(bits in prop::collection::vec(any::<u32>(), 0..600)) {
        check_quantize(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
    }

    #[test]
    fn quantize_any_finite(x in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL, 0..600)) {
        check_quantize(&x);
    }

    #[test]
    fn norm_any_length(seed: u64, n in 1usize..900) {
        let mut random = Random(seed);
        let x = random.normals(n, 5.0);
        check_norm(&mut random, &x);
    }

    #[test]
    fn any_bits_activate_alike(bits in prop::collection::vec(any::<u32>(), 1..100)) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        for activation in Activation::ALL {
            activated(activation, &x);
        }
    }
}
