//! Rows to int8, and what int8 leaves of them: the rule of the format on every level, for any bits.

mod common;

use common::rows::{LENGTHS, SPECIAL, assert_same_int8, int8_row, reference_int8};
use common::{Random, kernels};
use pocketlm_kernels::{GROUP, QuantBuffer, padded_cols, reference, row_stride};
use proptest::prelude::*;

fn check_quantize(x: &[f32]) {
    let expected = reference_int8(x);
    assert!(reference::largest_group(&expected.0) <= GROUP);
    for k in kernels() {
        let got = int8_row(x.len(), |row| k.quantize(x, row).unwrap());
        assert_same_int8(&format!("quantize {}", k.level()), &got, &expected);
    }
    for (x, (values, scale)) in x.chunks(256).zip(expected.0.chunks(256).zip(&expected.1)) {
        let amax = x.iter().fold(0f64, |a, v| a.max(f64::from(v.abs())));
        if !scale.is_finite() || *scale == 0.0 {
            continue;
        }
        // At most doubled, since a group has four values of up to 127; off by half a step, and some roundings of up to 127 steps.
        let scale = f64::from(*scale);
        assert!((0.999_999..=510.0 / 256.0 * 1.000_001).contains(&(scale * 127.0 / amax)), "{scale} {amax}");
        for (x, q) in x.iter().zip(values) {
            assert!((f64::from(*x) / scale - f64::from(*q)).abs() <= 0.500_1, "{x} {q} {scale}");
        }
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
fn rows_are_no_multiple_of_512_bytes_apart() {
    for cols in 0..9000 {
        let (stride, least) = (row_stride(cols), padded_cols(cols));
        assert!(stride == least || (least % 512 == 0 && stride == least + 256), "{cols}: {stride}");
        assert!(stride % 64 == 0 && stride % 512 != 0, "{cols}: {stride}");
    }
}

#[test]
fn groups_of_large_values_get_larger_steps() {
    let step = |x: &[f32]| {
        check_quantize(x);
        reference_int8(x).1[0] * 127.0
    };
    for n in [8, 14, 15, 16, 254, 256] {
        let mut x = vec![0.0; n];
        x[0] = 127.0;
        let last = (n - 1) / 8 * 8;
        // Two and a bit of one sign in a group are not too many; nor are neighbours of other groups, or the other sign.
        let others = [(0, 127.0), (1, 127.0), (2, 127.0), (3, 127.0), (4, 4.0), (5, -127.0)];
        for (at, value) in others {
            x[last + at] = value;
        }
        assert_eq!(step(&x), 127.0, "{n}");
        x[last + 4] = 5.0;
        assert_eq!(step(&x), 127.0 * 261.0 / 256.0, "{n}");
        x[last..last + 6].copy_from_slice(&[-127.0, -127.0, 0.0, 0.0, 127.0, -5.0]);
        assert_eq!(step(&x), 127.0 * 261.0 / 256.0, "{n}");
    }
    assert_eq!(step(&[127.0; 300]), 127.0 * 510.0 / 256.0);
    check_quantize(&[f32::MAX; 300]);
    check_quantize(&[-127.0 * f32::MIN_POSITIVE; 300]);
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
                // Half a step of the rest, and where all vanishes, what counts as zero. What is left is at most half a step of the row;
                // 63.75 steps of the rest or more are that.
                let (step, rest) = (f64::from(first.1[b]), f64::from(expected.1[b]));
                assert!((sum - f64::from(x)).abs() <= 0.51 * rest + 2e-36, "{i}: {sum} for {x}");
                assert!(rest <= step / 127.5 * 1.000_01, "{rest} {step}");
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

proptest! {
    /// Values without tails, some groups of which have one sign: most blocks get larger steps.
    #[test]
    fn quantize_uniform(x in prop::collection::vec(-1f32..1.0, 1..600), signs in prop::collection::vec(-1i8..=1, 75)) {
        let x: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, v)| match signs[i / 8] {
                0 => *v,
                sign => v.abs() * f32::from(sign),
            })
            .collect();
        check_quantize(&x);
    }

    #[test]
    fn quantize_any_bits(bits in prop::collection::vec(any::<u32>(), 0..600)) {
        check_quantize(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
    }

    #[test]
    fn quantize_any_finite(x in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL, 0..600)) {
        check_quantize(&x);
    }
}
