//! Codebook and row scales that are best for given codes, in closed form, then restricted to what files hold.
//!
//! In terms of the entries c and the scale s of a row the error is s² c M cᵀ - 2 s c·b + w H wᵀ, with M the sums of H over pairs
//! of codes and b the sums of w H over codes. Both are small, so that whole tiles are solved exactly: a positive definite
//! system for the entries (ridge 1e-7), a quotient for each scale.

// Counted loops over small matrices, as the formulas have them.
#![allow(clippy::needless_range_loop)]

use half::f16;

use super::Tile;
use super::sums::Sums;
use crate::formats::{Kind, TILE};

/// Most components: entries times inputs of a code.
const MOST: usize = 32;
/// Factors by which all entries are tried to be larger or smaller against the scales: the grid is finer for larger entries, but
/// they clip sooner.
const STRETCHES: [f64; 7] = [1.0, 0.75, 0.85, 0.93, 1.07, 1.16, 1.3];
/// Alternations of entries and scales.
const TURNS: usize = 3;
const RIDGE: f64 = 1e-7;

/// What a codebook may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    entries: usize,
    low: f64,
    high: f64,
    /// Whether entries are to ascend; the order of pairs is settled at the end.
    ascending: bool,
}

impl Shape {
    pub fn of(kind: Kind) -> Self {
        let (low, high) = kind.grid();
        Self {
            entries: kind.codebook_len(),
            low: low.into(),
            high: high.into(),
            ascending: kind != Kind::P2v,
        }
    }

    /// Unknowns of a codebook.
    pub fn components(self) -> usize {
        self.entries
    }
}

type Matrix = [[f64; MOST]; MOST];
type Vector = [f64; MOST];

/// The small systems of a tile.
#[derive(Debug)]
pub(super) struct Refit {
    shape: Shape,
    /// M of each row.
    squares: Box<[Matrix; TILE]>,
    /// b of each row.
    crosses: [Vector; TILE],
    /// The component of each input of a row.
    places: Vec<usize>,
}

/// Entries and scales on trial.
#[derive(Debug, Clone, Copy)]
struct Trial {
    entries: Vector,
    scale: [f64; TILE],
    error: f64,
}

impl Refit {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            squares: Box::new([[[0.0; MOST]; MOST]; TILE]),
            crosses: [[0.0; MOST]; TILE],
            places: Vec::new(),
        }
    }

    /// Puts the best codebook and scales found into the tile; those that it has are among the candidates. Returns the error.
    pub fn refit(&mut self, tile: &mut Tile<'_>, sums: &Sums) -> f64 {
        self.sum_up(tile, sums);
        let mut entries = [0.0; MOST];
        for (to, &from) in entries.iter_mut().zip(tile.codebook.iter()) {
            *to = from.into();
        }
        let mut best = Trial { entries, scale: tile.scale, error: 0.0 };
        best.error = self.error(tile, sums, &best);
        let start = best;
        for stretch in STRETCHES {
            let mut trial = start;
            trial.scale = trial.scale.map(|scale| round_scale(scale / stretch));
            if trial.scale.iter().any(|scale| scale.is_infinite()) {
                // Beyond the largest f16.
                continue;
            }
            for turn in 0..TURNS {
                let from = if turn == 0 { self.solve(tile, &trial.scale) } else { trial.entries };
                self.to_grid(tile, &trial.scale, from, &mut trial.entries);
                self.rescale(tile.rows, &mut trial);
            }
            trial.error = self.error(tile, sums, &trial);
            if trial.error < best.error {
                best = trial;
            }
        }
        for (to, from) in tile.codebook.iter_mut().zip(best.entries) {
            *to = from as i8;
        }
        tile.scale = best.scale;
        best.error
    }

    /// M and b of every row.
    fn sum_up(&mut self, tile: &Tile<'_>, sums: &Sums) {
        let cols = tile.cols;
        for row in 0..tile.rows {
            self.places.clear();
            self.places.extend((0..cols).map(|col| tile.component(row, col)));
            let (square, cross) = (&mut self.squares[row], &mut self.crosses[row]);
            (*square, *cross) = ([[0.0; MOST]; MOST], [0.0; MOST]);
            for (component, line) in square.iter_mut().enumerate().take(self.shape.components()) {
                for (&place, y) in self.places.iter().zip(sums.of(row, component)) {
                    line[place] += y;
                }
            }
            for (&place, product) in self.places.iter().zip(&sums.products[row * cols..]) {
                cross[place] += product;
            }
        }
    }

    /// The weighted error of all rows.
    fn error(&self, tile: &Tile<'_>, sums: &Sums, trial: &Trial) -> f64 {
        (0..tile.rows)
            .map(|row| {
                let (square, cross) = self.forms(row, &trial.entries);
                let s = trial.scale[row];
                tile.row_weights[row] * (s * (s * square - 2.0 * cross) + sums.energy[row])
            })
            .sum()
    }

    /// c M cᵀ and c·b of a row.
    fn forms(&self, row: usize, entries: &Vector) -> (f64, f64) {
        let mut square = 0.0;
        for (line, x) in self.squares[row].iter().zip(entries) {
            square += x * dot(line, entries);
        }
        (square, dot(&self.crosses[row], entries))
    }

    /// The tile's system for the entries at given scales.
    fn system(&self, tile: &Tile<'_>, scale: &[f64; TILE]) -> (Matrix, Vector) {
        let (mut a, mut b) = ([[0.0; MOST]; MOST], [0.0; MOST]);
        for row in 0..tile.rows {
            let (cross, square) =
                (tile.row_weights[row] * scale[row], tile.row_weights[row] * scale[row].powi(2));
            for i in 0..self.shape.components() {
                b[i] += cross * self.crosses[row][i];
                for j in 0..self.shape.components() {
                    a[i][j] += square * self.squares[row][i][j];
                }
            }
        }
        (a, b)
    }

    /// The best entries, real numbers. An entry that no code uses stays undetermined, 0.
    fn solve(&self, tile: &Tile<'_>, scale: &[f64; TILE]) -> Vector {
        let (mut a, mut b) = self.system(tile, scale);
        let n = self.shape.components();
        let trace: f64 = (0..n).map(|i| a[i][i]).sum();
        let ridge = (RIDGE * trace / n as f64).max(f64::MIN_POSITIVE);
        // Gauss without pivoting: the ridge keeps the system positive definite.
        for i in 0..n {
            a[i][i] += ridge;
        }
        for i in 0..n {
            for j in i + 1..n {
                let factor = a[j][i] / a[i][i];
                for k in i..n {
                    a[j][k] -= factor * a[i][k];
                }
                b[j] -= factor * b[i];
            }
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| a[i][j] * b[j]).sum();
            b[i] = (b[i] - known) / a[i][i];
        }
        b
    }

    /// Whole numbers of the grid, ascending, near `from`, then improved one by one.
    fn to_grid(&self, tile: &Tile<'_>, scale: &[f64; TILE], from: Vector, entries: &mut Vector) {
        let n = self.shape.components();
        let (a, b) = self.system(tile, scale);
        let mut chosen = from;
        for (i, entry) in chosen.iter_mut().enumerate().take(n) {
            *entry = if a[i][i] > 0.0 { entry.round() } else { entries[i] };
        }
        self.ascend(&mut chosen[..n]);
        // Gradient / 2 of the error with respect to the entries.
        let mut gradient = [0.0; MOST];
        for i in 0..n {
            gradient[i] = dot(&a[i], &chosen) - b[i];
        }
        let mut changed = true;
        let mut passes = 0;
        while changed && passes < 32 {
            changed = false;
            passes += 1;
            for i in 0..n {
                if a[i][i] <= 0.0 {
                    continue;
                }
                let below = self.shape.ascending && i > 0;
                let above = self.shape.ascending && i + 1 < n;
                let low = if below { chosen[i - 1] + 1.0 } else { self.shape.low };
                let high = if above { chosen[i + 1] - 1.0 } else { self.shape.high };
                let new = (chosen[i] - gradient[i] / a[i][i]).round().clamp(low, high);
                let step = new - chosen[i];
                if step * (a[i][i] * step + 2.0 * gradient[i]) < 0.0 {
                    chosen[i] = new;
                    for (gradient, line) in gradient.iter_mut().zip(&a[i]) {
                        *gradient += line * step;
                    }
                    changed = true;
                }
            }
        }
        *entries = chosen;
    }

    /// Puts entries on the grid, strictly ascending where they are to be, changing as little as a pass up and a pass down can.
    fn ascend(&self, entries: &mut [f64]) {
        if !self.shape.ascending {
            entries.iter_mut().for_each(|entry| *entry = entry.clamp(self.shape.low, self.shape.high));
            return;
        }
        let n = entries.len();
        for i in 0..n {
            let low = if i > 0 { entries[i - 1] + 1.0 } else { self.shape.low };
            entries[i] = entries[i].clamp(low, low.max(self.shape.high));
        }
        for i in (0..n).rev() {
            let high = if i + 1 < n { entries[i + 1] - 1.0 } else { self.shape.high };
            entries[i] = entries[i].min(high);
        }
    }

    /// The best scale of each row, as f16, where it is no worse than the one that is there.
    fn rescale(&self, rows: usize, trial: &mut Trial) {
        for row in 0..rows {
            let (square, cross) = self.forms(row, &trial.entries);
            let error = |s: f64| s * (s * square - 2.0 * cross);
            let new = round_scale(cross / square);
            if square > 0.0 && new.is_finite() && error(new) < error(trial.scale[row]) {
                trial.scale[row] = new;
            }
        }
    }
}

/// To the nearest f16, which is what a file holds; a scale beyond the largest stays infinite.
pub(super) fn round_scale(scale: f64) -> f64 {
    f16::from_f64(scale).to_f64()
}

fn dot(a: &Vector, b: &Vector) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
