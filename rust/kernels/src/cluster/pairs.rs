//! One tile whose codes stand for pairs of weights: sixteen pairs of grid levels, and row scales.
//!
//! The scalar fit of as many bits comes first: its scales make rows comparable, and all pairs of its entries are a codebook
//! that the result must not fall behind. From it, and from several k-means++ starts, k-means finds centers on a sample of
//! the tile; the best ones are put on the grid, and then three steps alternate over the whole tile: codes that are nearest,
//! entries that are best on the grid (the weighted mean, rounded: the error of each axis is a parabola), and scales by
//! weighted least squares. Vector quantization of weights by their importance is that of GPTVQ (van Baalen and others,
//! arXiv 2402.15319), without its compensation.

use half::f16;

use super::plane::{CENTERS, Centers, KMeans, Points, Random};
use super::{ClusterError, Clusterer, Fit, Target};
use crate::formats::{Kind, TILE};

/// Points of the sample that starts are compared on, and how many starts there are beside the scalar codebook.
const SAMPLE: usize = 2048;
const STARTS: u64 = 4;
/// Rounds of alternation at most, and the relative gain below which they end.
const ROUNDS: usize = 16;
const LEAST_GAIN: f64 = 3e-4;
/// Inputs whose weights are paired, k with k + 4.
const SPAN: usize = 8;

/// Fits tiles of pairs. Holds the scratch, so keep one for each thread.
#[derive(Debug, Clone)]
pub struct PairClusterer {
    scalar: Clusterer,
    means: KMeans,
    points: Points,
    sample: Points,
    codes: Vec<u8>,
    errors: Vec<f32>,
    scalar_codes: Vec<u8>,
    importance: Vec<f32>,
}

/// Codebook and scales.
#[derive(Debug, Clone, Copy)]
struct Palette {
    entries: [[i8; CENTERS]; 2],
    scale: [f16; TILE],
}

impl PairClusterer {
    /// For tiles of `kind`; none where its codes do not stand for pairs.
    pub fn new(kind: Kind) -> Option<Self> {
        match kind {
            Kind::P2v => Some(Self {
                scalar: Clusterer::new(Kind::P2)?,
                means: KMeans::default(),
                points: Points::default(),
                sample: Points::default(),
                codes: Vec::new(),
                errors: Vec::new(),
                scalar_codes: Vec::new(),
                importance: Vec::new(),
            }),
            _ => None,
        }
    }

    /// Fits `target` and writes codes (`[rows, codes of a row]`, a byte each), codebook (`[32]`, first elements, then second ones;
    /// pairs ascend) and scales (`[rows]`).
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
        let (mut product, scalar) = self.product(target)?;
        target.effective_importance(&mut self.importance);
        let importance = std::mem::take(&mut self.importance);
        let target = target.with_importance(&importance);
        let mut best = product;
        self.load(&target, &product.scale);
        self.search(&mut best);
        if self.polish(&target, &mut best) > scalar.error {
            self.polish(&target, &mut product);
            best = product;
        }
        best.sort();
        self.assign(&target, &best);
        codes.copy_from_slice(&self.codes);
        let error = self.error(&target, &best);
        codebook[..CENTERS].copy_from_slice(&best.entries[0]);
        codebook[CENTERS..].copy_from_slice(&best.entries[1]);
        scale.copy_from_slice(&best.scale[..target.rows]);
        self.importance = importance;
        Ok(Fit { error, energy: scalar.energy })
    }

    /// The scalar fit, as all pairs of its entries on the finer grid.
    fn product(&mut self, target: &Target<'_>) -> Result<(Palette, Fit), ClusterError> {
        let mut entries = [0; 4];
        let mut scale = [f16::ZERO; TILE];
        self.scalar_codes.resize(target.rows * target.cols, 0);
        let fit = self.scalar.fit(target, &mut self.scalar_codes, &mut entries, &mut scale[..target.rows])?;
        let finer = (i32::from(Kind::P2v.grid().1) + 1) / (i32::from(Kind::P2.grid().1) + 1);
        let entry = |index: usize| (i32::from(entries[index]) * finer) as i8;
        let palette = Palette {
            entries: [std::array::from_fn(|c| entry(c / 4)), std::array::from_fn(|c| entry(c % 4))],
            scale: scale.map(|scale| f16::from_f64(scale.to_f64() / f64::from(finer))),
        };
        Ok((palette, fit))
    }

    /// The tile's pairs in units of the rows' scales, row by row. Importances are relative to the largest.
    fn load(&mut self, target: &Target<'_>, scale: &[f16; TILE]) {
        self.points.clear();
        let squares = scale.map(|scale| scale.to_f64().powi(2));
        let mut largest = 0f64;
        for (row, square) in squares.iter().enumerate().take(target.rows) {
            largest = target.row(row).fold(largest, |largest, (_, h)| largest.max(h * square));
        }
        let unit = if largest > 0.0 { 1.0 / largest } else { 0.0 };
        for (row, square) in squares.iter().enumerate().take(target.rows) {
            let inverse = if *square > 0.0 { 1.0 / scale[row].to_f64() } else { 0.0 };
            pairs(target, row, |values, weights| {
                let v = values.map(|w| (w * inverse) as f32);
                self.points.push(v, weights.map(|h| (h * square * unit) as f32));
            });
        }
    }

    /// The best of several starts, on a sample of the points, put on the grid: its largest entry at the grid's end.
    fn search(&mut self, palette: &mut Palette) {
        self.sample.sample(&self.points, SAMPLE, &mut Random(0));
        let mut best = palette.entries.map(|axis| axis.map(f32::from));
        let mut least = self.means.improve(&self.sample, &mut best);
        for seed in 0..STARTS {
            let mut centers = self.means.start(&self.sample, &mut Random(seed));
            let error = self.means.improve(&self.sample, &mut centers);
            if error < least {
                (least, best) = (error, centers);
            }
        }
        let high = f32::from(Kind::P2v.grid().1);
        let reach = best.iter().flatten().fold(0f32, |reach, c| reach.max(c.abs()));
        let unit = reach / high;
        let scale = palette.scale.map(|scale| f16::from_f64(scale.to_f64() * f64::from(unit)));
        if unit > 0.0 && unit.is_finite() && scale.iter().all(|scale| scale.is_finite()) {
            *palette = Palette { entries: best.map(|axis| axis.map(|c| level(f64::from(c / unit)))), scale };
        }
    }

    /// Alternates codes, entries and scales; none of these steps raises the error, which is returned.
    fn polish(&mut self, target: &Target<'_>, palette: &mut Palette) -> f64 {
        let mut error = f64::INFINITY;
        for _ in 0..ROUNDS {
            self.assign(target, palette);
            for (c, sums) in self.points.sums(&self.codes).into_iter().enumerate() {
                for (axis, [h, hv]) in sums.into_iter().enumerate() {
                    if h > 0.0 {
                        palette.entries[axis][c] = level(hv / h);
                    }
                }
            }
            let before = error;
            error = self.rescale(target, palette);
            if error >= before * (1.0 - LEAST_GAIN) {
                break;
            }
        }
        error
    }

    fn assign(&mut self, target: &Target<'_>, palette: &Palette) {
        self.load(target, &palette.scale);
        let centers: Centers = palette.entries.map(|axis| axis.map(f32::from));
        self.points.assign(&centers, &mut self.codes, &mut self.errors);
    }

    /// The scale of each row that is best for codes and entries, where its rounding is no worse than the old one. Returns the error.
    fn rescale(&self, target: &Target<'_>, palette: &mut Palette) -> f64 {
        let mut error = 0.0;
        let row_len = self.codes.len() / target.rows;
        for (row, codes) in self.codes.chunks_exact(row_len).enumerate() {
            let moments = moments(target, row, codes, palette);
            let scale = &mut palette.scale[row];
            let new = f16::from_f64(moments.cross / moments.square);
            if new.is_finite() && moments.error(new) < moments.error(*scale) {
                *scale = new;
            }
            error += moments.error(*scale);
        }
        error
    }

    /// The weighted squared error, weight by weight: without the cancellation of sums.
    fn error(&self, target: &Target<'_>, palette: &Palette) -> f64 {
        let mut error = 0.0;
        for (row, codes) in self.codes.chunks_exact(self.codes.len() / target.rows).enumerate() {
            let scale = palette.scale[row].to_f64();
            coded_pairs(target, row, codes, palette, |w, h, c| {
                error += h * (w - scale * c) * (w - scale * c)
            });
        }
        error
    }
}

impl Palette {
    /// Puts pairs into ascending order.
    fn sort(&mut self) {
        let [first, second] = self.entries;
        let mut pairs: [(i8, i8); CENTERS] = std::array::from_fn(|c| (first[c], second[c]));
        pairs.sort_unstable();
        self.entries = [pairs.map(|pair| pair.0), pairs.map(|pair| pair.1)];
    }
}

/// The nearest level of the grid.
fn level(value: f64) -> i8 {
    let (low, high) = Kind::P2v.grid();
    value.round_ties_even().clamp(low.into(), high.into()) as i8
}

/// Calls `visit` with the two weights of each pair of a row and their importances; what is beyond the row is 0.
fn pairs(target: &Target<'_>, row: usize, mut visit: impl FnMut([f64; 2], [f64; 2])) {
    let mut weights = target.row(row);
    loop {
        let mut span = [(0.0, 0.0); SPAN];
        let mut have = 0;
        for (slot, (&w, h)) in span.iter_mut().zip(&mut weights) {
            *slot = (f64::from(w), h);
            have += 1;
        }
        if have == 0 {
            return;
        }
        let (first, second) = span.split_at(SPAN / 2);
        for (a, b) in first.iter().zip(second) {
            visit([a.0, b.0], [a.1, b.1]);
        }
        if have < SPAN {
            return;
        }
    }
}

/// Weighted sums of a row: Σhw², Σhwc and Σhc² of its entries c.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    energy: f64,
    cross: f64,
    square: f64,
}

impl Moments {
    /// Σh(w - sc)².
    fn error(&self, scale: f16) -> f64 {
        let s = scale.to_f64();
        (self.energy + s * (s * self.square - 2.0 * self.cross)).max(0.0)
    }
}

fn moments(target: &Target<'_>, row: usize, codes: &[u8], palette: &Palette) -> Moments {
    let mut sums = Moments::default();
    coded_pairs(target, row, codes, palette, |w, h, c| {
        sums.energy += h * w * w;
        sums.cross += h * w * c;
        sums.square += h * c * c;
    });
    sums
}

/// Calls `visit` with each weight of a row, pair by pair, its importance, and the entry that stands for it.
fn coded_pairs(
    target: &Target<'_>,
    row: usize,
    codes: &[u8],
    palette: &Palette,
    mut visit: impl FnMut(f64, f64, f64),
) {
    let mut codes = codes.iter();
    pairs(target, row, |values, weights| {
        let code = codes.next().map_or(0, |&code| usize::from(code) % CENTERS);
        for axis in 0..2 {
            visit(values[axis], weights[axis], f64::from(palette.entries[axis][code]));
        }
    });
}
