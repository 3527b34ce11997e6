//! Random numbers by counting: each depends on (seed, position) and on nothing drawn before.

/// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection that mixes all bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1), in steps of 2^-53.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    // The seed's stream starts at a mixed place, so that neighbouring seeds do not share numbers.
    let start = mix(seed.wrapping_add(STEP));
    let z = mix(mix(start.wrapping_add(position.wrapping_mul(STEP))) ^ start);
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn numbers_are_uniform_in_both_directions() {
        let n = 200_000u32;
        let along: Vec<f64> = (0..n).map(|p| uniform(42, u64::from(p))).collect();
        let across: Vec<f64> = (0..n).map(|s| uniform(u64::from(s), 7)).collect();
        for draws in [along, across] {
            let mut counts = [0u32; 100];
            let mut pairs = [[0u32; 10]; 10];
            for (i, &u) in draws.iter().enumerate() {
                counts[(u * 100.0) as usize] += 1;
                let next = draws[(i + 1) % draws.len()];
                pairs[(u * 10.0) as usize][(next * 10.0) as usize] += 1;
            }
            // Chi-square with 99 degrees of freedom: mean 99, standard deviation 14; five of them.
            for counts in [counts.as_slice(), pairs.as_flattened()] {
                let expected = f64::from(n) / 100.0;
                let chi: f64 = counts.iter().map(|&c| (f64::from(c) - expected).powi(2) / expected).sum();
                assert!((30.0..170.0).contains(&chi), "chi-square {chi}");
            }
        }
    }
}
