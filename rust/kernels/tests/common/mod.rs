//! What the tests of float kernels share.
#![allow(dead_code)]

pub mod rows;

use pocketlm_kernels::{Kernels, Level};

/// The kernels of every level that this machine has; scalar first. Prints the levels that it does not have.
pub fn kernels() -> Vec<&'static Kernels> {
    let (have, lack): (Vec<Level>, Vec<Level>) = Level::ALL.into_iter().partition(|l| l.is_available());
    static PRINTED: std::sync::Once = std::sync::Once::new();
    let lack: Vec<&str> = lack.iter().map(|l| l.name()).collect();
    PRINTED.call_once(|| println!("levels not exercised here: {}", lack.join(", ")));
    have.into_iter().map(|level| Kernels::get(level).expect("an available level has kernels")).collect()
}

/// The kernels of the best level, for tests of what does not depend on the level.
pub fn best() -> &'static Kernels {
    kernels()[kernels().len() - 1]
}

/// A counter-based generator of test values (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }
}

/// Bits of floats with every NaN alike: the sign and payload of NaN are unspecified.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }).collect()
}

/// Asserts equal bits, and says where they differ.
pub fn assert_same(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (a, b)) in bits(got).iter().zip(bits(expected)).enumerate() {
        assert!(
            *a == b,
            "{what}: element {i} is {:?} ({a:#010x}), not {:?} ({b:#010x})",
            got[i],
            expected[i]
        );
    }
}

/// Asserts |got - expected| <= bound for each element, and prints the worst one.
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    let ratio = |i: usize| {
        let error = (f64::from(got[i]) - expected[i]).abs();
        let overflow =
            expected[i].abs() > f64::from(f32::MAX) && f64::from(got[i]) == expected[i].signum() / 0.0;
        if error == 0.0 || overflow { 0.0 } else { error / bound(i) }
    };
    if let Some(worst) = (0..got.len()).max_by(|&a, &b| ratio(a).total_cmp(&ratio(b))) {
        let r = ratio(worst);
        assert!(
            r <= 1.0,
            "{what}: worst element {worst}: got {:e}, expected {:e}, error {r} times the bound {:e}",
            got[worst],
            expected[worst],
            bound(worst)
        );
    }
}

/// Unit roundoff of float32.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
