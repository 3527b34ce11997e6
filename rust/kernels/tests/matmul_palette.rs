//! Every kernel of the palettized product, on every level that this machine runs, against the definition.

mod weights;

use pocketlm_kernels::registry::{KernelFn, Op, Row, find, rows};
use pocketlm_kernels::{Kernels, Kind, Level, Palette, QuantBuffer, QuantRows, Scratch, TILE};
use proptest::prelude::*;
use std::ops::Range;
use weights::{Draw, Rng, Weight, activations, define};

const KS: [usize; 16] = [0, 1, 15, 16, 17, 31, 32, 33, 64, 255, 256, 257, 288, 512, 513, 1030];

fn kernels(kind: Kind) -> impl Iterator<Item = &'static Row> {
    rows().filter(move |r| r.op() == Op::MatmulPalette && r.kind == kind.name() && r.level.is_available())
}

/// Calls the kernel of a row. None when the variant is not for so many rows of activations.
fn call(
    row: &Row,
    w: &Palette,
    x: &QuantRows,
    tiles: Range<usize>,
    scratch: &mut Scratch,
) -> Option<Vec<f32>> {
    if x.rows() == 0 || (row.variant == "1" && x.rows() != 1) {
        return None;
    }
    let KernelFn::MatmulPalette(kernel) = row.func else { return None };
    let mut out = vec![f32::NAN; x.rows() * tiles.len() * TILE];
    // SAFETY: the level is available, the row is of the weight's kind, x has rows of the weight's inputs, the
    // tiles exist, and out has the right length.
    unsafe { kernel(w, x, tiles, scratch, &mut out) };
    Some(out)
}

/// All kernels of a kind give exactly the definition, over all tiles and over a part of them.
fn check(kind: Kind, n: usize, k: usize, m: usize, draw: Draw, seed: u64, scratch: &mut Scratch) {
    let mut rng = Rng(seed);
    let weight = Weight::new(kind, n, k, draw, &mut rng);
    let buffer = activations(m, k, draw, &mut rng);
    let (w, x, expected) = (weight.palette(), buffer.as_rows(), define(&weight, &buffer));
    let part = w.tiles() / 3..w.tiles().div_ceil(2);
    for row in kernels(kind) {
        for tiles in [0..w.tiles(), part.clone()] {
            let Some(out) = call(row, &w, &x, tiles.clone(), scratch) else { continue };
            for (i, &y) in out.iter().enumerate() {
                let width = tiles.len() * TILE;
                let (at, output) = (i / width, tiles.start * TILE + i % width);
                let case = || {
                    format!("{} {kind:?} {} n={n} k={k} m={m} at ({at}, {output})", row.level, row.variant)
                };
                if output >= n {
                    assert!(y == 0.0, "{}: {y} beyond the last output", case());
                    continue;
                }
                let (exact, double, magnitude) = expected[at * n + output];
                assert_eq!(y.to_bits(), exact.to_bits(), "{}: {y} for {exact}", case());
                // One rounding per block and one for the scale, each at most 2^-24 of the sum of magnitudes.
                let bound = (k / 256 + 3) as f64 * 2f64.powi(-24) * magnitude + f64::from(f32::MIN_POSITIVE);
                assert!((f64::from(y) - double).abs() <= bound, "{}: {y} for {double}", case());
            }
        }
    }
}

#[test]
fn levels_not_exercised_here_are_named() {
    let missing: Vec<_> = Level::ALL.iter().filter(|l| !l.is_available()).map(|l| l.name()).collect();
    println!("unexercised levels: {}", if missing.is_empty() { "none".into() } else { missing.join(", ") });
    for kind in Kind::ALL {
        for level in Level::available() {
            assert!(kernels(kind).any(|r| r.level == level), "{level} has no {kind:?} kernel");
            for variant in ["1", "2-16", "many"] {
                let found = find(Op::MatmulPalette, kind.name(), variant, level);
                assert!(found.is_some(), "{level} lacks {kind:?} for {variant} rows");
            }
        }
    }
}

#[test]
fn every_kernel_is_exact_at_odd_sizes() {
    let mut scratch = Scratch::new();
    for kind in Kind::ALL {
        for (i, &k) in KS.iter().enumerate() {
            for (j, n) in [1, 15, 16, 17, 33, 80].into_iter().enumerate() {
                let m = [1, 2, 3, 5, 7, 9, 11, 13, 16, 17, 19, 23][(i + j) % 12];
                check(kind, n, k, m, Draw::Any, (i * 100 + j) as u64, &mut scratch);
            }
        }
    }
}

#[test]
fn every_number_of_rows_is_exact() {
    let mut scratch = Scratch::new();
    for kind in Kind::ALL {
        for m in 0..=40 {
            check(kind, 53, 321, m, Draw::Any, m as u64, &mut scratch);
        }
        // Beyond the rows whose sums are kept at once.
        check(kind, 70, 257, 500, Draw::Any, 3, &mut scratch);
        // Many blocks.
        check(kind, 17, 2100, 40, Draw::Bell, 4, &mut scratch);
    }
}

#[test]
fn extremes_of_the_grid_do_not_saturate() {
    let mut scratch = Scratch::new();
    for kind in Kind::ALL {
        for seed in 0..8 {
            for m in [1, 2, 16, 18] {
                check(kind, 32, 1024, m, Draw::Extreme, seed, &mut scratch);
            }
        }
    }
}

fn ordinary() -> impl Strategy<Value = Draw> {
    prop::sample::select(&[Draw::Any, Draw::Bell][..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_is_exact(
        kind in 0..Kind::ALL.len(), n in 1usize..150, k in 1usize..800, m in 1usize..40, draw in ordinary(), seed: u64
    ) {
        check(Kind::ALL[kind], n, k, m, draw, seed, &mut Scratch::new());
    }

    #[test]
    fn a_batch_is_its_rows(
        kind in 0..Kind::ALL.len(), n in 1usize..70, k in 1usize..600, m in 2usize..40, draw in ordinary(), seed: u64
    ) {
        let mut rng = Rng(seed);
        let weight = Weight::new(Kind::ALL[kind], n, k, draw, &mut rng);
        let buffer = activations(m, k, draw, &mut rng);
        let (w, mut scratch) = (weight.palette(), Scratch::new());
        let width = w.tiles() * TILE;
        let mut all: Option<Vec<u32>> = None;
        for level in Level::available() {
            let kernels = Kernels::get(level).unwrap();
            let mut batch = vec![f32::NAN; m * width];
            kernels.matmul_palette(&w, &buffer.as_rows(), 0..w.tiles(), &mut scratch, &mut batch).unwrap();
            for (i, expected) in batch.chunks_exact(width).enumerate() {
                let mut single = vec![f32::NAN; width];
                let row = buffer.as_rows().slice(i, 1).unwrap();
                kernels.matmul_palette(&w, &row, 0..w.tiles(), &mut scratch, &mut single).unwrap();
                prop_assert_eq!(&single[..], expected);
            }
            let bits: Vec<u32> = batch.iter().map(|y| y.to_bits()).collect();
            prop_assert_eq!(all.get_or_insert_with(|| bits.clone()), &bits);
        }
    }
}

#[test]
fn nan_scales_reach_the_outputs_and_nothing_else() {
    let mut rng = Rng(1);
    let weight = Weight::new(Kind::P4, 16, 300, Draw::Any, &mut rng);
    let mut buffer = activations(20, 300, Draw::Any, &mut rng);
    buffer.as_rows_mut().row_mut(7).unwrap().scales[1] = f32::NAN;
    for level in Level::available() {
        let mut out = vec![0.0; 20 * 16];
        let kernels = Kernels::get(level).unwrap();
        let w = weight.palette();
        kernels.matmul_palette(&w, &buffer.as_rows(), 0..1, &mut Scratch::new(), &mut out).unwrap();
        for (i, y) in out.iter().enumerate() {
            assert_eq!(y.is_nan(), i / 16 == 7, "{level} output {i}");
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let mut rng = Rng(2);
    let weight = Weight::new(Kind::P4, 40, 64, Draw::Any, &mut rng);
    let (w, mut scratch) = (weight.palette(), Scratch::new());
    let (good, narrow) = (QuantBuffer::new(2, 64).unwrap(), QuantBuffer::new(2, 63).unwrap());
    let kernels = Kernels::best().unwrap();
    let mut call = |x: &QuantBuffer, tiles: Range<usize>, len: usize| {
        kernels.matmul_palette(&w, &x.as_rows(), tiles, &mut scratch, &mut vec![0.0; len])
    };
    assert!(call(&good, 0..3, 96).is_ok());
    assert!(call(&good, 1..1, 0).is_ok());
    assert!(call(&narrow, 0..3, 96).is_err());
    assert!(call(&good, 0..4, 128).is_err());
    assert!(call(&good, 0..3, 95).is_err());
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = call(&good, 2..1, 0);
    assert!(reversed.is_err());
    assert!(QuantRows::new(1, 64, 63, &[0; 63], &[0.0], &[0]).is_err());
    assert!(QuantRows::new(2, 64, 64, &[0; 127], &[0.0; 2], &[0; 2]).is_err());
    assert!(QuantRows::new(2, 64, 64, &[0; 128], &[0.0; 1], &[0; 2]).is_err());
    assert!(QuantRows::new(usize::MAX, 64, 64, &[], &[], &[]).is_err());
    assert!(QuantBuffer::new(usize::MAX, 64).is_err());
    assert!(QuantBuffer::new(1, usize::MAX).is_err());
    assert!(good.as_rows().slice(1, 2).is_err() && good.as_rows().slice(2, usize::MAX).is_err());
}

#[test]
fn embedding_rows_are_the_dequantized_weights() {
    let mut rng = Rng(5);
    for kind in Kind::ALL {
        let weight = Weight::new(kind, 21, 77, Draw::Any, &mut rng);
        let w = weight.palette();
        let mut all = vec![0.0; 21 * 77];
        pocketlm_kernels::formats::dequantize(&w, &mut all).unwrap();
        for level in Level::available() {
            let kernels = Kernels::get(level).unwrap();
            for n in 0..21 {
                let mut row = vec![0.0; 77];
                kernels.embed_palette(&w, n, &mut row).unwrap();
                assert_eq!(row, all[n * 77..(n + 1) * 77]);
                let scale = half::f16::from_bits(weight.scale[n]).to_f32();
                assert!((0..77).all(|k| row[k] == f32::from(w.value(n, k)) * scale));
            }
            assert!(kernels.embed_palette(&w, 21, &mut [0.0; 77]).is_err());
            assert!(kernels.embed_palette(&w, 0, &mut [0.0; 76]).is_err());
        }
    }
}

#[test]
fn values_off_the_grid_are_found() {
    let mut weight = Weight::new(Kind::P3, 17, 32, Draw::Any, &mut Rng(8));
    assert!(weight.palette().check_values().is_ok());
    weight.codebook[3] = 32;
    assert!(weight.palette().check_values().is_err());
    weight.codebook[3] = 0;
    weight.scale[16] = 0xfc00;
    assert!(weight.palette().check_values().is_err());
}
