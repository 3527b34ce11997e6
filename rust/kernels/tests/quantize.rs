//! Rows to int8, and what int8 leaves of them: the rule of the format on every level, for any bits.

mod common;

use common::rows::{LENGTHS, SPECIAL, assert_same_int8, int8_row, reference_int8};
use common::{Random, kernels};
use pocketlm_kernels::QuantBuffer;
use proptest::prelude::*;

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

proptest! {
    #[test]
    fn quantize_any_bits(bits in prop::collection::vec(any::<u32>(), 0..600)) {
        check_quantize(&bits.into_iter().map(f32::from_bits).collect::<Vec<_>>());
    }

    #[test]
    fn quantize_any_finite(x in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL, 0..600)) {
        check_quantize(&x);
    }
}
