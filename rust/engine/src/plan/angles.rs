//! Cosines and sines of the rotary embedding's angles, for any position.

/// Positions whose angles are looked up directly; those of a multiple of it come from the other table.
const STEP: usize = 256;
/// Positions that the tables reach to. Behind them the second angle is computed, to the same bits.
const REACH: usize = 32 << 10;

/// A position's angle is that of a multiple of [`STEP`] plus that of the rest, so that two small tables and the addition
/// theorems replace a sine and a cosine for each pair of channels, which small models feel. All in f64, whose errors are far
/// below an f32's.
#[derive(Debug)]
pub(crate) struct Angles {
    frequencies: Vec<f64>,
    scale: f64,
    /// Of positions 0 to `STEP`: all cosines, then all sines of each.
    fine: Vec<f64>,
    /// Of multiples of `STEP`.
    coarse: Vec<f64>,
}

impl Angles {
    /// Tables for a model of so many positions; `frequencies` in radians per token, `scale` is a factor on cosine and sine.
    pub fn new(frequencies: &[f64], scale: f64, positions: usize) -> Self {
        let mut angles = Self { frequencies: frequencies.to_vec(), scale, fine: vec![], coarse: vec![] };
        angles.fine = (0..STEP.min(positions)).flat_map(|position| angles.row(position)).collect();
        let multiples = (0..positions.min(REACH)).step_by(STEP);
        angles.coarse = multiples.flat_map(|position| angles.row(position)).collect();
        angles
    }

    /// Cosines and sines of all pairs.
    fn row(&self, position: usize) -> Vec<f64> {
        let angles = || self.frequencies.iter().map(|frequency| position as f64 * frequency);
        angles().map(f64::cos).chain(angles().map(f64::sin)).collect()
    }

    /// Writes the cosine and sine of each pair at `position`, times the scale. Both have as many elements as there are pairs.
    pub fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        let pairs = self.frequencies.len();
        let (multiple, rest) = (position / STEP, position % STEP);
        let (fine_cos, fine_sin) = self.fine[2 * pairs * rest..][..2 * pairs].split_at(pairs);
        let mut put = |i: usize, coarse_cos: f64, coarse_sin: f64| {
            cos[i] = ((coarse_cos * fine_cos[i] - coarse_sin * fine_sin[i]) * self.scale) as f32;
            sin[i] = ((coarse_sin * fine_cos[i] + coarse_cos * fine_sin[i]) * self.scale) as f32;
        };
        if let Some(coarse) = self.coarse.get(2 * pairs * multiple..2 * pairs * (multiple + 1)) {
            let (coarse_cos, coarse_sin) = coarse.split_at(pairs);
            (0..pairs).for_each(|i| put(i, coarse_cos[i], coarse_sin[i]));
        } else {
            let angle = |i: usize| (multiple * STEP) as f64 * self.frequencies[i];
            (0..pairs).for_each(|i| put(i, angle(i).cos(), angle(i).sin()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_those_of_sine_and_cosine_in_and_behind_the_tables() {
        let frequencies: Vec<f64> = (0..32).map(|i| 10_000f64.powf(-f64::from(i) / 32.0)).collect();
        let (scale, positions) = (1.25, 100_000);
        let long = Angles::new(&frequencies, scale, positions);
        let short = Angles::new(&frequencies, scale, 3000);
        let (mut cos, mut sin) = ([0f32; 32], [0f32; 32]);
        for position in [0, 1, 2, 255, 256, 257, 511, 2999, 32_767, 32_768, 33_000, 99_999] {
            long.fill(position, &mut cos, &mut sin);
            for (i, frequency) in frequencies.iter().enumerate() {
                let (exact_sin, exact_cos) = (position as f64 * frequency).sin_cos();
                // Half a unit of f32, and what is lost in f64: products of this size are rounded to 2^-53 of them.
                let allowed = scale * (0.5 * 2f64.powi(-24) + 4.0 * position as f64 * 2f64.powi(-53));
                assert!((f64::from(cos[i]) - scale * exact_cos).abs() <= 2.0 * allowed, "{position} {i}");
                assert!((f64::from(sin[i]) - scale * exact_sin).abs() <= 2.0 * allowed, "{position} {i}");
            }
            if position < 3000 {
                let (mut other_cos, mut other_sin) = ([0f32; 32], [0f32; 32]);
                short.fill(position, &mut other_cos, &mut other_sin);
                assert_eq!((cos, sin), (other_cos, other_sin));
            }
        }
    }

    #[test]
    fn few_positions_and_no_pairs_are_no_trouble() {
        let one = Angles::new(&[1.0], 1.0, 1);
        let (mut cos, mut sin) = ([0f32], [0f32]);
        one.fill(0, &mut cos, &mut sin);
        assert_eq!((cos, sin), ([1.0], [0.0]));
        Angles::new(&[], 1.0, 10).fill(9, &mut [], &mut []);
    }
}
