//! No step raises the error, and errors are what the stored weights give.

use half::f16;
use proptest::prelude::*;

use super::refit::Shape;
use super::*;
use crate::cluster::{Fit, Importance};
use crate::formats::{Palette, dequantize, pack};

/// A damped second moment of random inputs, and its factors by the textbook.
struct Moment {
    moment: Vec<f32>,
    factor: Vec<f32>,
    pivots: Vec<f64>,
    order: Order,
}

impl Moment {
    fn of(kind: Kind, cols: usize, inputs: &[f32], damping: f64) -> Self {
        let mut h = vec![0.0f64; cols * cols];
        for x in inputs.chunks_exact(cols) {
            for i in 0..cols {
                for j in 0..cols {
                    h[i * cols + j] += f64::from(x[i]) * f64::from(x[j]);
                }
            }
        }
        let mean = (0..cols).map(|i| h[i * cols + i]).sum::<f64>() / cols as f64;
        (0..cols).for_each(|i| h[i * cols + i] += damping * mean + 1e-6);
        Self::factored(kind, cols, &h)
    }

    fn factored(kind: Kind, cols: usize, h: &[f64]) -> Self {
        let moment: Vec<f32> = h.iter().map(|&x| x as f32).collect();
        let order = Order::new(kind, cols);
        let at = |i: usize, j: usize| f64::from(moment[order.columns()[i] * cols + order.columns()[j]]);
        let mut a: Vec<f64> = (0..cols * cols).map(|n| at(n / cols, n % cols)).collect();
        let (mut factor, mut pivots) = (vec![0.0; cols * cols], vec![0.0; cols]);
        for k in (0..cols).rev() {
            pivots[k] = a[k * cols + k];
            for i in 0..k {
                factor[i * cols + k] = (a[i * cols + k] / pivots[k]) as f32;
            }
            for i in 0..k {
                for j in 0..k {
                    a[i * cols + j] -= a[i * cols + k] * a[j * cols + k] / pivots[k];
                }
            }
        }
        Self { moment, factor, pivots, order }
    }

    fn hessian(&self) -> Hessian<'_> {
        Hessian::new(&self.moment, &self.factor, &self.pivots, &self.order).unwrap()
    }

    /// Σ_r weight_r (w - ŵ) H (w - ŵ)ᵀ.
    fn error(&self, rows: usize, weights: &[f32], stored: &[f64], row_weights: &[f32]) -> f64 {
        let cols = self.pivots.len();
        let mut total = 0.0;
        for r in 0..rows {
            let e: Vec<f64> =
                (0..cols).map(|k| f64::from(weights[r * cols + k]) - stored[r * cols + k]).collect();
            for i in 0..cols {
                for j in 0..cols {
                    total += f64::from(row_weights[r]) * e[i] * f64::from(self.moment[i * cols + j]) * e[j];
                }
            }
        }
        total
    }
}

struct Made {
    codes: Vec<u8>,
    codebook: Vec<i8>,
    scale: Vec<f16>,
    fit: Fit,
}

fn made(kind: Kind, rows: usize, weights: &[f32], moment: &Moment, row_weights: &[f32]) -> Made {
    let cols = weights.len() / rows;
    let hessian = moment.hessian();
    let importance: Vec<f32> =
        row_weights.iter().flat_map(|w| hessian.diagonal().map(move |h| w * h)).collect();
    let target = Target::new(rows, cols, weights, Importance::Elements(&importance)).unwrap();
    let kernels = Kernels::best().unwrap();
    let mut made = Made {
        codes: vec![0; rows * kind.codes_per_row(cols)],
        codebook: vec![0; kind.codebook_len()],
        scale: vec![f16::ZERO; rows],
        fit: Fit::default(),
    };
    let (codes, scale) = (&mut made.codes, &mut made.scale);
    made.fit = match Compensator::new(kernels, kind) {
        Some(mut c) => c.fit(&target, &hessian, row_weights, codes, &mut made.codebook, scale).unwrap(),
        None => compensate_int8(kernels, &target, &hessian, row_weights, codes, scale).unwrap(),
    };
    made
}

/// The weights that files then hold, exactly.
fn stored(kind: Kind, rows: usize, cols: usize, made: &Made) -> Vec<f64> {
    let codes = pack(kind, rows, cols, &made.codes).unwrap();
    let scale: Vec<u16> = made.scale.iter().map(|s| s.to_bits()).collect();
    let palette = Palette::new(kind, rows, cols, &codes, &made.codebook, &scale).unwrap();
    palette.check_values().unwrap();
    let mut out = vec![0.0; rows * cols];
    dequantize(&palette, &mut out).unwrap();
    let value = |i: usize| f64::from(palette.value(i / cols, i % cols)) * made.scale[i / cols].to_f64();
    (0..rows * cols).map(value).collect()
}

/// Rows, columns, weights, row weights and inputs, correlated.
fn cases() -> impl Strategy<Value = (usize, usize, Vec<f32>, Vec<f32>, Vec<f32>)> {
    (1usize..=16, 1usize..50).prop_flat_map(|(rows, cols)| {
        let weights = prop::collection::vec(-1f32..1.0, rows * cols);
        let row_weights = prop::collection::vec(0.1f32..4.0, rows);
        let inputs = prop::collection::vec(-1f32..1.0, 20 * cols).prop_map(move |mut x| {
            for row in x.chunks_exact_mut(cols) {
                (1..cols).for_each(|k| row[k] += 0.8 * row[k - 1]);
            }
            x
        });
        (Just(rows), Just(cols), weights, row_weights, inputs)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_fit_says_the_error_of_what_is_stored(
        (rows, cols, weights, row_weights, inputs) in cases(),
        kind in prop::sample::select(Kind::ALL.to_vec()),
    ) {
        let moment = Moment::of(kind, cols, &inputs, 0.01);
        let made = made(kind, rows, &weights, &moment, &row_weights);
        match kind {
            Kind::P2v => {
                let pair = |c: usize| (made.codebook[c], made.codebook[16 + c]);
                prop_assert!((1..16).all(|c| pair(c - 1) <= pair(c)));
            }
            _ => prop_assert!(made.codebook.windows(2).all(|pair| pair[0] < pair[1])),
        }
        let error = moment.error(rows, &weights, &stored(kind, rows, cols, &made), &row_weights);
        let energy = moment.error(rows, &weights, &vec![0.0; rows * cols], &row_weights);
        prop_assert!((made.fit.error - error).abs() <= 1e-9 * energy, "{} is {error}", made.fit.error);
        prop_assert!((made.fit.energy - energy).abs() <= 1e-9 * energy);
        prop_assert!(error <= energy);
    }

    #[test]
    fn no_step_raises_the_error(
        (rows, cols, weights, row_weights, inputs) in cases(),
        kind in prop::sample::select(vec![Kind::P2, Kind::P2v, Kind::P3, Kind::P4]),
        codes in prop::collection::vec(any::<u8>(), 16 * 50),
    ) {
        let moment = Moment::of(kind, cols, &inputs, 0.01);
        let hessian = moment.hessian();
        let kernels = Kernels::best().unwrap();
        // From any codes at all, not just good ones.
        let mut codes: Vec<u8> = codes[..rows * kind.codes_per_row(cols)].iter().map(|c| c % kind.codes() as u8).collect();
        let (low, high) = kind.grid();
        let step = (i32::from(high) - i32::from(low)) / kind.codebook_len() as i32;
        let mut codebook: Vec<i8> = (0..kind.codebook_len()).map(|i| (i32::from(low) + i as i32 * step) as i8).collect();
        let mut tile = Tile {
            rows, cols, pairs: kind == Kind::P2v, weights: &weights,
            row_weights: [1.0; TILE],
            codes: &mut codes, codebook: &mut codebook,
            scale: [f16::from_f64(1.5 / f64::from(high)).to_f64(); TILE],
        };
        for (to, &from) in tile.row_weights.iter_mut().zip(&row_weights) {
            *to = from.into();
        }
        let mut sums = Sums::new(Shape::of(kind).components());
        let mut refit = Refit::new(Shape::of(kind));
        sums.begin(kernels, &weights, rows, cols, &hessian).unwrap();
        sums.gather(kernels, &tile, &hessian).unwrap();
        let error = |tile: &Tile<'_>| {
            let value = |i: usize| tile.scale[i / cols] * f64::from(tile.codebook[tile.component(i / cols, i % cols)]);
            let stored: Vec<f64> = (0..rows * cols).map(value).collect();
            moment.error(rows, &weights, &stored, &row_weights)
        };
        let mut before = error(&tile);
        for _ in 0..3 {
            sums.residuals(&tile);
            descent::descend(kernels, &mut tile, &hessian, &mut sums).unwrap();
            let after = error(&tile);
            prop_assert!(after <= before * (1.0 + 1e-9), "descent: {before} to {after}");
            let said = refit.refit(&mut tile, &sums);
            let refitted = error(&tile);
            prop_assert!(refitted <= after * (1.0 + 1e-9), "refit: {after} to {refitted}");
            prop_assert!((said - refitted).abs() <= 1e-9 * (before + refitted) + 1e-12);
            before = refitted;
        }
    }

    #[test]
    fn the_sweep_leaves_the_error_that_its_targets_say(
        (rows, cols, weights, _, inputs) in cases(),
    ) {
        let moment = Moment::of(Kind::P8, cols, &inputs, 0.05);
        let mut targets = vec![0.0; rows * cols];
        let (mut values, mut said) = (vec![0.0; rows * cols], 0.0);
        sweep::sweep_with(Kernels::best().unwrap(), rows, &weights, &moment.hessian(), &mut targets, |row, unit, target| {
            let (col, place) = (moment.order.columns()[unit.place], unit.place);
            let value = target[0].round();
            values[row * cols + col] = value;
            said += moment.pivots[place] * (target[0] - value) * (target[0] - value);
            [value, 0.0]
        }).unwrap();
        let error = moment.error(rows, &weights, &values, &vec![1.0; rows]);
        // The factor is float32.
        prop_assert!((error - said).abs() <= 1e-4 * (error + said) + 1e-9, "{error} is not {said}");
    }

    #[test]
    fn without_correlations_codes_are_the_nearest(
        (rows, cols, weights, row_weights, inputs) in cases(),
        kind in prop::sample::select(vec![Kind::P2, Kind::P3, Kind::P4]),
    ) {
        let mut h = vec![0.0; cols * cols];
        (0..cols).for_each(|i| h[i * cols + i] = 0.01 + f64::from(inputs[i]).powi(2));
        let moment = Moment::factored(kind, cols, &h);
        let hessian = moment.hessian();
        let importance: Vec<f32> = row_weights.iter().flat_map(|w| hessian.diagonal().map(move |h| w * h)).collect();
        let target = Target::new(rows, cols, &weights, Importance::Elements(&importance)).unwrap();
        let kernels = Kernels::best().unwrap();
        let mut plain = Made { codes: vec![0; rows * cols], codebook: vec![0; kind.codebook_len()], scale: vec![f16::ZERO; rows], fit: Fit::default() };
        plain.fit = Fitter::new(kind).fit(&target, &mut plain.codes, &mut plain.codebook, &mut plain.scale).unwrap();
        let mut codes = plain.codes.clone();
        let mut tile = Tile {
            rows, cols, pairs: false, weights: &weights, row_weights: [1.0; TILE],
            codes: &mut codes, codebook: &mut plain.codebook, scale: [0.0; TILE],
        };
        for (to, from) in tile.scale.iter_mut().zip(&plain.scale) {
            *to = from.to_f64();
        }
        sweep::sweep(kernels, &mut tile, &hessian, &mut vec![0.0; rows * cols]).unwrap();
        for (i, &w) in weights.iter().enumerate() {
            let distance = |code: u8| {
                (f64::from(w) - tile.scale[i / cols] * f64::from(tile.codebook[usize::from(code)])).abs()
            };
            prop_assert!((distance(tile.codes[i]) - distance(plain.codes[i])).abs() <= 1e-12);
        }
        // And the whole fit ends no worse than the clustering by itself.
        let whole = made(kind, rows, &weights, &moment, &row_weights);
        prop_assert!(whole.fit.error <= plain.fit.error * (1.0 + 1e-6) + 1e-12);
    }
}

#[test]
fn compensation_is_worth_its_while() {
    let (rows, cols) = (16, 96);
    let weights: Vec<f32> =
        (0..rows * cols).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
    let mut inputs: Vec<f32> = (0..400 * cols).map(|i| (i * 104_729 % 2003) as f32 / 1001.5 - 1.0).collect();
    for row in inputs.chunks_exact_mut(cols) {
        (1..cols).for_each(|k| row[k] = 0.9 * row[k - 1] + 0.45 * row[k]);
    }
    for kind in Kind::ALL {
        let moment = Moment::of(kind, cols, &inputs, 0.01);
        let compensated = made(kind, rows, &weights, &moment, &[1.0; 16]);
        let importance: Vec<f32> = moment.hessian().diagonal().collect();
        let target = Target::new(rows, cols, &weights, Importance::Columns(&importance)).unwrap();
        let mut plain = Made {
            codes: vec![0; rows * kind.codes_per_row(cols)],
            codebook: vec![0; kind.codebook_len()],
            scale: vec![f16::ZERO; rows],
            fit: Fit::default(),
        };
        Fitter::new(kind).fit(&target, &mut plain.codes, &mut plain.codebook, &mut plain.scale).unwrap();
        let before = moment.error(rows, &weights, &stored(kind, rows, cols, &plain), &[1.0; 16]);
        assert!(compensated.fit.error < 0.7 * before, "{kind:?}: {} of {before}", compensated.fit.error);
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let moment = Moment::of(Kind::P4, 8, &[0.5; 8], 0.1);
    assert!(Hessian::new(&moment.moment[1..], &moment.factor, &moment.pivots, &moment.order).is_err());
    assert!(Hessian::new(&moment.moment, &moment.factor, &moment.pivots[1..], &moment.order).is_err());
    let kernels = Kernels::best().unwrap();
    let weights = [0.5; 2 * 9];
    let target = Target::new(2, 9, &weights, Importance::Uniform).unwrap();
    let (mut codes, mut codebook, mut scale) = ([0; 18], [0; 16], [f16::ZERO; 2]);
    let mut compensator = Compensator::new(kernels, Kind::P4).unwrap();
    let error = compensator.fit(&target, &moment.hessian(), &[1.0; 2], &mut codes, &mut codebook, &mut scale);
    assert!(matches!(error, Err(CompensateError::Kernel(_))));
}
