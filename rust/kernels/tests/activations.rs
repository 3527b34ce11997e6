//! Activations, alone and gated: against float64, the same bits on every level, and special values.

mod common;

use common::rows::{LENGTHS, sweep};
use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Activation, Kernels, reference};
use proptest::prelude::*;

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
fn gated_is_the_product() {
    let mut random = Random(6);
    let levels = kernels();
    for n in LENGTHS {
        for activation in Activation::ALL {
            let (gate, up) = (random.normals(n, 3.0), random.normals(n, 2.0));
            let mut act = gate.clone();
            levels[0].activate(activation, &mut act).unwrap();
            let product: Vec<f32> = act.iter().zip(&up).map(|(a, b)| a * b).collect();
            for k in &levels {
                let mut out = vec![0.0; n];
                k.gated(activation, &gate, &up, &mut out).unwrap();
                assert_same(&format!("gated {}", k.level()), &out, &product);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bits_activate_alike(bits in prop::collection::vec(any::<u32>(), 1..100)) {
        let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        for activation in Activation::ALL {
            activated(activation, &x);
        }
    }
}
