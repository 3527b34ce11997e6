//! What guesses cost: the time of steps with and without them, as measured while generating.
//!
//! Nothing here changes a result. It decides only whether tokens are computed together or one after another.

/// Most guesses whose cost is told apart.
const WIDEST: usize = 32;
/// Steps without guesses that must have been timed before the first guess.
const ENOUGH: u32 = 3;
/// What one more row is thought to add to a step of one, before it was measured.
const PRIOR: f64 = 0.12;

/// Times of steps, for several sizes of the batch.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    /// For 1 text, 2, up to 4, up to 8, and so on.
    batches: [Batch; 7],
}

#[derive(Debug, Default)]
struct Batch {
    plain: Average,
    /// Time of a step with so many guesses in all (one more than the index) over that of a plain one.
    ratios: [Average; WIDEST],
}

/// A moving average that follows quickly at first, and which no single value moves far: a thread that lost its core for a while says
/// nothing about the next step.
#[derive(Debug, Default, Clone, Copy)]
struct Average {
    value: f64,
    count: u32,
}

impl Average {
    fn add(&mut self, value: f64) {
        self.count = self.count.saturating_add(1);
        let value = if self.count > 2 { value.clamp(0.5 * self.value, 2.0 * self.value) } else { value };
        self.value += (value - self.value) * (1.0 / f64::from(self.count)).max(0.1);
    }

    /// An average that begins with a value which is expected, and counts as two.
    fn expecting(value: f64) -> Self {
        Self { value, count: 2 }
    }
}

impl Costs {
    fn batch(texts: usize) -> usize {
        texts.clamp(1, 64).next_power_of_two().ilog2() as usize
    }

    /// Takes note of a step in which `texts` sequences had one token each and `guesses` in all.
    pub fn note(&mut self, texts: usize, guesses: usize, seconds: f64) {
        let batch = &mut self.batches[Self::batch(texts)];
        if guesses == 0 {
            batch.plain.add(seconds);
            // What was dear may have become cheap (in a longer text a row more costs relatively less): it is forgotten slowly.
            let prior = PRIOR / texts.max(1) as f64;
            for (index, ratio) in batch.ratios.iter_mut().enumerate() {
                let expected = 1.0 + prior * (index + 1) as f64;
                if ratio.count > 0 && ratio.value > expected {
                    ratio.value -= 0.005 * (ratio.value - expected);
                }
            }
        } else if batch.plain.count > 0 && batch.plain.value > 0.0 {
            // Rows together never take longer than one after another: what is above was not ours.
            let ratio = (seconds / batch.plain.value).clamp(0.7, 1.0 + guesses as f64);
            let expected = self.ratio(texts, guesses);
            let known = &mut self.batches[Self::batch(texts)].ratios[guesses.min(WIDEST) - 1];
            if known.count == 0 {
                *known = Average::expecting(expected);
            }
            known.add(ratio);
        }
    }

    /// Seconds of a step without guesses, if enough are known.
    pub fn plain(&self, texts: usize) -> Option<f64> {
        let plain = self.batches[Self::batch(texts)].plain;
        (plain.count >= ENOUGH && plain.value > 0.0).then_some(plain.value)
    }

    /// Time of a step with so many guesses over that of a plain one.
    pub fn ratio(&self, texts: usize, guesses: usize) -> f64 {
        if guesses == 0 {
            return 1.0;
        }
        let ratios = &self.batches[Self::batch(texts)].ratios;
        let at = guesses.min(WIDEST) - 1;
        let known = |index: &usize| ratios[*index].count > 0;
        let nearest = (0..=at).rev().find(known).into_iter().chain((at + 1..WIDEST).find(known));
        let nearest = nearest.min_by_key(|index| index.abs_diff(at));
        let slope = nearest
            .map_or(PRIOR / texts.max(1) as f64, |index| (ratios[index].value - 1.0) / (index + 1) as f64);
        1.0 + slope.max(0.0) * guesses as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_widths_are_judged_by_their_neighbours() {
        let mut costs = Costs::default();
        costs.note(1, 4, 9.0);
        assert_eq!(costs.plain(1), None);
        for _ in 0..200 {
            costs.note(1, 0, 1.0);
            costs.note(1, 4, 1.4);
        }
        assert_eq!(costs.plain(1), Some(1.0));
        let close = |guesses, ratio: f64| (costs.ratio(1, guesses) - ratio).abs() < 1e-6;
        assert!(close(4, 1.4) && close(8, 1.8) && close(1, 1.1) && close(0, 1.0));
        assert!(costs.plain(usize::MAX).is_none());
        // Other batches have their own.
        assert!(costs.plain(3).is_none() && costs.ratio(4, 4) < 1.2);
        // One slow step among many says little.
        costs.note(1, 0, 1000.0);
        assert!(costs.plain(1).unwrap() < 1.2);
    }
}
