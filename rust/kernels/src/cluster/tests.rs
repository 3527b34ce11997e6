//! Properties of the search against brute force, and of whole tiles.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::formats::{Kind, Palette, dequantize, pack};

const CODEBOOK_KINDS: [Kind; 4] = [Kind::P2, Kind::P2v, Kind::P3, Kind::P4];

/// Σh(v - nearest)² of points.
fn error_of(points: &[(f64, f64)], codebook: &[i8]) -> f64 {
    let nearest = |v: f64| codebook.iter().map(|&c| (v - f64::from(c)).powi(2)).fold(f64::INFINITY, f64::min);
    points.iter().map(|&(v, h)| h * nearest(v)).sum()
}

/// Every choice of `count` levels out of `low..=high`.
fn choices(low: i8, high: i8, count: usize) -> Vec<Vec<i8>> {
    if count == 0 {
        return vec![vec![]];
    }
    let rest = |first: i8| {
        choices(first + 1, high, count - 1).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (low..=high).flat_map(rest).collect()
}

/// Codes, codebook, scales and fit of a tile.
struct Fitted {
    codes: Vec<u8>,
    codebook: Vec<i8>,
    scale: Vec<f16>,
    fit: Fit,
}

fn fit(kind: Kind, rows: usize, weights: &[f32], importance: Importance<'_>) -> Result<Fitted, ClusterError> {
    let target = Target::new(rows, weights.len() / rows, weights, importance).unwrap();
    let mut codes = vec![0; rows * kind.codes_per_row(weights.len() / rows)];
    let mut codebook = vec![0; kind.codebook_len()];
    let mut scale = vec![f16::ZERO; rows];
    let fit = Fitter::new(kind).fit(&target, &mut codes, &mut codebook, &mut scale)?;
    Ok(Fitted { codes, codebook, scale, fit })
}

/// The weights that kernels will see.
fn decoded(kind: Kind, rows: usize, cols: usize, fitted: &Fitted) -> Vec<f32> {
    let codes = pack(kind, rows, cols, &fitted.codes).unwrap();
    let scale: Vec<u16> = fitted.scale.iter().map(|s| s.to_bits()).collect();
    let palette = Palette::new(kind, rows, cols, &codes, &fitted.codebook, &scale).unwrap();
    palette.check_values().unwrap();
    let mut out = vec![0.0; rows * cols];
    dequantize(&palette, &mut out).unwrap();
    out
}

/// Clustering as it is usually done: real centres, then rounded to the grid.
fn rounded_k_means(points: &[(f64, f64)], low: i8, high: i8, count: usize) -> Vec<i8> {
    let (least, most) =
        points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &(v, _)| (a.min(v), b.max(v)));
    let mut centers: Vec<f64> =
        (0..count).map(|i| least + (most - least) * (i as f64 + 0.5) / count as f64).collect();
    for _ in 0..50 {
        let mut sums = vec![(0.0, 0.0); count];
        for &(v, h) in points {
            let nearest = (0..count)
                .min_by(|&a, &b| (centers[a] - v).abs().total_cmp(&(centers[b] - v).abs()))
                .unwrap();
            sums[nearest] = (sums[nearest].0 + h, sums[nearest].1 + h * v);
        }
        for (center, (h, hv)) in centers.iter_mut().zip(sums) {
            *center = if h > 0.0 { hv / h } else { *center };
        }
    }
    centers.into_iter().map(|c| c.round().clamp(low.into(), high.into()) as i8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_codebook_is_the_best_of_all(
        points in prop::collection::vec((-6.0..6.0, 0.0..3.0), 1..40),
        low in -4i8..=0,
        levels in 2i8..=9,
        count in 1usize..=4,
    ) {
        let high = low + levels - 1;
        let count = count.min(levels as usize);
        let grid = Grid::new(low, high).unwrap();
        let mut histogram = Histogram::new(grid);
        histogram.extend(points.iter().copied());
        let mut codebook = vec![0; count];
        let gain = Solver::default().solve(&histogram, &mut codebook);
        prop_assert!(codebook.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(codebook.iter().all(|c| (low..=high).contains(c)));
        let energy: f64 = points.iter().map(|(v, h)| h * v * v).sum();
        let least = choices(low, high, count).iter().map(|c| error_of(&points, c)).fold(f64::INFINITY, f64::min);
        let tolerance = 1e-10 * (1.0 + energy);
        prop_assert!((error_of(&points, &codebook) - least).abs() <= tolerance);
        prop_assert!((gain + energy - least).abs() <= tolerance);
    }

    #[test]
    fn cells_know_their_nearest_entry(
        mut codebook in prop::collection::btree_set(-64i8..=63, 2..=16).prop_map(|set| set.into_iter().collect::<Vec<_>>()),
        value in -80.0..80.0,
    ) {
        codebook.sort_unstable();
        let grid = Grid::new(-64, 63).unwrap();
        let code = codebook::nearest_codes(grid, &codebook)[grid.cell(value)];
        let error = error_of(&[(value, 1.0)], &codebook[usize::from(code)..=usize::from(code)]);
        prop_assert!((error - error_of(&[(value, 1.0)], &codebook)).abs() <= 1e-9 * (1.0 + error));
    }

    #[test]
    fn a_fit_says_its_error_and_beats_rounded_k_means(
        rows in 1usize..=16,
        cols in 1usize..70,
        seed in prop::collection::vec((-1f32..1.0, 0f32..1.0), 16 * 70),
        shape in 1i32..=3,
        kind in prop::sample::select(Kind::ALL.to_vec()),
        per_element in any::<bool>(),
    ) {
        let n = rows * cols;
        let weights: Vec<f32> = seed[..n].iter().map(|(w, _)| w.powi(shape)).collect();
        let factors: Vec<f32> = seed[..n].iter().map(|&(_, h)| h).collect();
        let importance =
            if per_element { Importance::Elements(&factors) } else { Importance::Columns(&factors[..cols]) };
        let fitted = fit(kind, rows, &weights, importance).unwrap();
        let approximate = decoded(kind, rows, cols, &fitted);
        let mut h = Vec::new();
        Target::new(rows, cols, &weights, importance).unwrap().effective_importance(&mut h);
        let h = |i: usize| f64::from(if per_element { h[i] } else { h[i % cols] });
        let error: f64 = (0..n).map(|i| h(i) * (f64::from(weights[i]) - f64::from(approximate[i])).powi(2)).sum();
        let energy: f64 = (0..n).map(|i| h(i) * f64::from(weights[i]).powi(2)).sum();
        // The decoded products are rounded to f32, and the 8-bit error is found by cancellation in f64.
        prop_assert!((fitted.fit.error - error).abs() <= 1e-5 * error + 1e-9 * energy);
        prop_assert!((fitted.fit.energy - energy).abs() <= 1e-9 * energy);
        prop_assert!(error <= energy);

        if kind == Kind::P2v {
            let scalar = fit(Kind::P2, rows, &weights, importance).unwrap();
            // Where weights are so small that the scale's bits run out, a larger grid needs a smaller scale, rounded more coarsely.
            let rounded = f64::from(kind.grid().1) * 2f64.powi(-25);
            let weight: f64 = (0..n).map(h).sum();
            prop_assert!(fitted.fit.error <= scalar.fit.error * (1.0 + 1e-6) + weight * rounded.powi(2));
            let pairs: Vec<_> = (0..16).map(|c| (fitted.codebook[c], fitted.codebook[16 + c])).collect();
            prop_assert!(pairs.is_sorted());
        }

        if let Some(reach) = [(Kind::P2, 1.6), (Kind::P3, 2.3), (Kind::P4, 2.8)].iter().find(|(k, _)| *k == kind) {
            let (low, high) = kind.grid();
            let mut points = Vec::new();
            let mut lost = 0.0;
            for row in 0..rows {
                let row = row * cols..(row + 1) * cols;
                let weight: f64 = row.clone().map(h).sum();
                let energy: f64 = row.clone().map(|i| h(i) * f64::from(weights[i]).powi(2)).sum();
                let scale = f16::from_f64((energy / weight).sqrt() * reach.1 / f64::from(high)).to_f64();
                if scale == 0.0 {
                    lost += energy;
                    continue;
                }
                points.extend(row.map(|i| (f64::from(weights[i]) / scale, h(i) * scale * scale)));
            }
            if !points.is_empty() {
                let rounded = rounded_k_means(&points, low, high, kind.codebook_len());
                prop_assert!(fitted.fit.error <= (error_of(&points, &rounded) + lost) * (1.0 + 1e-9) + 1e-12);
            }
        }
    }
}

#[test]
fn zero_rows_and_constant_tiles_are_exact() {
    for kind in Kind::ALL {
        let zeros = fit(kind, 3, &[0.0; 3 * 40], Importance::Uniform).unwrap();
        assert_eq!(zeros.fit, Fit::default());
        assert!(decoded(kind, 3, 40, &zeros).iter().all(|&w| w == 0.0));
        let mut mixed = vec![0.75f32; 4 * 33];
        mixed[33..66].fill(0.0);
        mixed[66..99].fill(-0.75);
        let fitted = fit(kind, 4, &mixed, Importance::Uniform).unwrap();
        let approximate = decoded(kind, 4, 33, &fitted);
        for (w, a) in mixed.iter().zip(&approximate) {
            assert!((w - a).abs() <= w.abs() * 1e-3, "{kind:?}: {w} became {a}");
        }
    }
}

#[test]
fn tiny_weights_lose_precision_but_nothing_else() {
    for kind in Kind::ALL {
        for tiny in [1e-6f32, 1e-7, 1e-20, f32::from_bits(1)] {
            let weights: Vec<f32> = (0..2 * 64).map(|i| tiny * (i % 7) as f32).collect();
            let fitted = fit(kind, 2, &weights, Importance::Uniform).unwrap();
            assert!(fitted.fit.error <= fitted.fit.energy * (1.0 + 1e-12));
            assert!(decoded(kind, 2, 64, &fitted).iter().all(|w| w.is_finite()));
        }
    }
}

#[test]
fn weights_that_no_scale_can_hold_are_refused() {
    for kind in Kind::ALL {
        let mut weights = vec![0.5f32; 2 * 32];
        weights[40] = f32::NAN;
        assert_eq!(
            fit(kind, 2, &weights, Importance::Uniform).err(),
            Some(ClusterError::NotFinite { row: 1, col: 8 })
        );
        weights[40] = f32::NEG_INFINITY;
        assert_eq!(
            fit(kind, 2, &weights, Importance::Uniform).err(),
            Some(ClusterError::NotFinite { row: 1, col: 8 })
        );
        weights[32..].fill(f32::MAX);
        assert_eq!(
            fit(kind, 2, &weights, Importance::Uniform).err(),
            Some(ClusterError::TooLarge { row: 1 })
        );
        weights[32..].fill(1e5);
        assert!(fit(kind, 2, &weights, Importance::Uniform).unwrap().fit.error < 1e-3 * 64.0 * 1e10);
    }
}

#[test]
fn unusual_importance_still_leaves_a_fit() {
    let weights: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
    for kind in CODEBOOK_KINDS {
        let uniform = fit(kind, 2, &weights, Importance::Uniform).unwrap();
        for h in [0.0f32, 1e-38, 1e30] {
            let same = fit(kind, 2, &weights, Importance::Columns(&[h; 32])).unwrap();
            assert_eq!(
                decoded(kind, 2, 32, &same),
                decoded(kind, 2, 32, &uniform),
                "{kind:?} with importance {h}"
            );
        }
    }
    let bad = |h: f32| Target::new(2, 32, &weights, Importance::Columns(&[h; 32])).is_err();
    assert!(bad(-1.0) && bad(f32::NAN) && bad(f32::INFINITY));
    assert!(Target::new(2, 32, &weights, Importance::Elements(&[1.0; 32])).is_err());
    assert!(Target::new(17, 1, &weights[..17], Importance::Uniform).is_err());
    assert!(Target::new(2, 0, &[], Importance::Uniform).is_err());
}
