//! The other operations on one row: against float64, the same bits on every level; and what lengths each refuses.

mod common;

use common::rows::{LENGTHS, SPECIAL, sweep};
use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Activation, LogitStats, Norm, NormKind, QuantBuffer, reference};

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
