//! One tile: row scales, codebook and codes that together come close to 16 rows of weights.
//!
//! The scales start from each row's root mean square; several ratios of grid to rms are tried, because a narrow grid clips
//! and a wide one is coarse. From the best, two steps alternate: the codebook that is optimal for the scales
//! ([`Solver`]), and the scales that are optimal for codebook and codes (weighted least squares, then rounded to f16 and
//! used as rounded). Neither step can raise the error, and a rounding that would is not taken.

use half::f16;

use super::codebook::{Grid, Histogram, MAX_CELLS, MAX_CODES, Solver, nearest_codes};
use super::{ClusterError, Fit, Target};
use crate::formats::{Kind, TILE};

/// Largest entry of the codebook in units of the row's rms, to begin with. The search starts at the third of each list, which
/// suits normally distributed weights, and climbs towards lighter or heavier tails.
const REACHES: [(Kind, [f64; 8]); 3] = [
    (Kind::P2, [1.2, 1.4, 1.6, 1.8, 2.1, 2.6, 3.6, 5.0]),
    (Kind::P3, [1.7, 2.0, 2.3, 2.7, 3.3, 4.2, 6.0, 8.5]),
    (Kind::P4, [2.1, 2.4, 2.8, 3.3, 4.0, 5.0, 6.5, 9.0]),
];
const START: usize = 2;
/// Rounds of alternation at most, and the relative gain below which they end.
const ROUNDS: usize = 4;
const LEAST_GAIN: f64 = 1e-4;

/// Fits tiles of one palettized kind. Holds the scratch, so keep one for each thread.
#[derive(Debug, Clone)]
pub struct Clusterer {
    kind: Kind,
    grid: Grid,
    reaches: [f64; 8],
    solver: Solver,
    histogram: Box<Histogram>,
    best: State,
    trial: State,
    moments: [Moments; TILE],
    importance: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    scale: [f16; TILE],
    codebook: [i8; MAX_CODES],
    error: f64,
}

/// Weighted sums of a row: its energy Σhw², and with the current codes Σhwc and Σhc².
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    energy: f64,
    cross: f64,
    square: f64,
}

impl Moments {
    /// Σh(w - sc)².
    fn error(&self, scale: f64) -> f64 {
        self.energy + scale * (scale * self.square - 2.0 * self.cross)
    }
}

impl Clusterer {
    /// For tiles of `kind`; none where the kind has no codebook.
    pub fn new(kind: Kind) -> Option<Self> {
        let (_, reaches) = REACHES.into_iter().find(|(other, _)| *other == kind)?;
        let (low, high) = kind.grid();
        let grid = Grid::new(low, high)?;
        let state = State { scale: [f16::ZERO; TILE], codebook: [0; MAX_CODES], error: f64::INFINITY };
        Some(Self {
            kind,
            grid,
            reaches,
            solver: Solver::default(),
            histogram: Box::new(Histogram::new(grid)),
            best: state,
            trial: state,
            moments: [Moments::default(); TILE],
            importance: Vec::new(),
        })
    }

    /// Fits `target` and writes codes (`[rows, cols]`, a byte each), codebook (`[2^bits]`, ascending) and scales (`[rows]`).
    ///
    /// # Errors
    /// When a weight is not finite, or so large that its row's scale is beyond f16.
    pub fn fit(
        &mut self,
        target: &Target<'_>,
        codes: &mut [u8],
        codebook: &mut [i8],
        scale: &mut [f16],
    ) -> Result<Fit, ClusterError> {
        target.effective_importance(&mut self.importance);
        let importance = std::mem::take(&mut self.importance);
        let target = target.with_importance(&importance);
        let energy = self.begin(&target)?;
        for round in 0..ROUNDS {
            let before = self.best.error;
            self.rescale(&target);
            if self.best.error > before * (1.0 - LEAST_GAIN) && round > 0 {
                break;
            }
        }
        let entries = &self.best.codebook[..self.kind.codebook_len()];
        codebook.copy_from_slice(entries);
        scale.copy_from_slice(&self.best.scale[..target.rows]);
        let error = self.assign(&target, codes);
        self.importance = importance;
        Ok(Fit { error, energy })
    }

    /// Takes the best of the initial scales. Returns Σhw² of the tile.
    fn begin(&mut self, target: &Target<'_>) -> Result<f64, ClusterError> {
        let mut rms = [0.0; TILE];
        let mut total = 0.0;
        for (row, (rms, moments)) in rms.iter_mut().zip(&mut self.moments).enumerate().take(target.rows) {
            let (mut energy, mut weight) = (0.0, 0.0);
            for (col, (&w, h)) in target.row(row).enumerate() {
                if !w.is_finite() {
                    return Err(ClusterError::NotFinite { row, col });
                }
                energy += f64::from(w) * f64::from(w) * h;
                weight += h;
            }
            *moments = Moments { energy, ..Moments::default() };
            *rms = (energy / weight).sqrt();
            total += energy;
        }
        self.best.error = f64::INFINITY;
        self.try_reach(target, &rms, START)?;
        let mut tail = START + 1;
        while tail < self.reaches.len() && self.try_reach(target, &rms, tail)? {
            tail += 1;
        }
        let mut tail = START;
        while tail > 0 && self.try_reach(target, &rms, tail - 1)? {
            tail -= 1;
        }
        Ok(total)
    }

    /// Solves with scales from one of the reaches; whether it is the best so far.
    fn try_reach(
        &mut self,
        target: &Target<'_>,
        rms: &[f64; TILE],
        index: usize,
    ) -> Result<bool, ClusterError> {
        let unit = self.reaches[index] / f64::from(self.grid.high());
        for (row, scale) in self.trial.scale[..target.rows].iter_mut().enumerate() {
            *scale = f16::from_f64(rms[row] * unit);
            if scale.is_infinite() {
                return if index == START { Err(ClusterError::TooLarge { row }) } else { Ok(false) };
            }
        }
        Ok(self.solve(target))
    }

    /// The optimal codebook for the scales on trial; keeps both if they are better than the best, and says so.
    fn solve(&mut self, target: &Target<'_>) -> bool {
        self.histogram.clear();
        for row in 0..target.rows {
            let scale = self.trial.scale[row].to_f64();
            if scale != 0.0 {
                let (inverse, square) = (1.0 / scale, scale * scale);
                self.histogram.extend(target.row(row).map(|(&w, h)| (f64::from(w) * inverse, h * square)));
            }
        }
        let entries = self.kind.codebook_len();
        let energy: f64 = self.moments[..target.rows].iter().map(|row| row.energy).sum();
        self.trial.error = energy + self.solver.solve(&self.histogram, &mut self.trial.codebook[..entries]);
        let better = self.trial.error < self.best.error;
        if better {
            self.best = self.trial;
        }
        better
    }

    /// Scales that fit the best codes, and the codebook that fits these scales.
    fn rescale(&mut self, target: &Target<'_>) {
        let values = self.cell_values();
        for row in 0..target.rows {
            let old = self.best.scale[row].to_f64();
            let inverse = if old == 0.0 { 0.0 } else { 1.0 / old };
            let (mut cross, mut square) = (0.0, 0.0);
            for (&w, h) in target.row(row) {
                let w = f64::from(w);
                let value = values[self.grid.cell(w * inverse)];
                let weighted = h * value;
                cross += weighted * w;
                square += weighted * value;
            }
            let moments = &mut self.moments[row];
            (moments.cross, moments.square) = (cross, square);
            let new = f16::from_f64(cross / square);
            let better = new.is_finite() && moments.error(new.to_f64()) < moments.error(old);
            self.trial.scale[row] = if better { new } else { self.best.scale[row] };
        }
        self.solve(target);
    }

    /// For each cell the value of its nearest entry.
    fn cell_values(&self) -> [f64; MAX_CELLS] {
        let entries = &self.best.codebook[..self.kind.codebook_len()];
        nearest_codes(self.grid, entries).map(|code| f64::from(entries[usize::from(code)]))
    }

    /// Writes the codes and returns the exact weighted error.
    fn assign(&mut self, target: &Target<'_>, codes: &mut [u8]) -> f64 {
        let entries = &self.best.codebook[..self.kind.codebook_len()];
        let table = nearest_codes(self.grid, entries);
        let mut error = 0.0;
        for (row, codes) in codes.chunks_exact_mut(target.cols).enumerate() {
            let scale = self.best.scale[row].to_f64();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            for ((&w, h), code) in target.row(row).zip(codes) {
                let w = f64::from(w);
                *code = table[self.grid.cell(w * inverse)];
                let difference = w - scale * f64::from(entries[usize::from(*code)]);
                error += h * difference * difference;
            }
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Importance;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_step_raises_the_error(
            weights in prop::collection::vec(-4f32..4.0, 5 * 40),
            importance in prop::collection::vec(0f32..9.0, 40),
            kind in prop::sample::select(vec![Kind::P2, Kind::P3, Kind::P4]),
        ) {
            let target = Target::new(5, 40, &weights, Importance::Columns(&importance)).unwrap();
            let mut factors = Vec::new();
            target.effective_importance(&mut factors);
            let target = target.with_importance(&factors);
            let mut clusterer = Clusterer::new(kind).unwrap();
            clusterer.begin(&target).unwrap();
            for _ in 0..6 {
                let before = clusterer.best.error;
                clusterer.rescale(&target);
                // Whatever was tried, what is kept has not become worse; and what was tried is no worse but for rounding.
                prop_assert!(clusterer.best.error <= before);
                prop_assert!(clusterer.trial.error <= before * (1.0 + 1e-9));
                let mut codes = vec![0; 5 * 40];
                let exact = clusterer.assign(&target, &mut codes);
                prop_assert!((exact - clusterer.best.error).abs() <= 1e-9 * (exact + 1.0));
            }
        }
    }
}
