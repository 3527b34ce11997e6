//! Moments, factors and whole compensated weights: right, the same for any number of threads, refusals by name.

use pocketlm_kernels::{Dense, Kind, Palette};

use super::*;

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn moment(width: usize, threads: usize) -> Vec<f32> {
    let sum = SecondMoment::new(width).unwrap();
    for call in 0..2 {
        let mut x = values(300 * width, call);
        for row in x.chunks_exact_mut(width) {
            (1..width).for_each(|k| row[k] += 0.7 * row[k - 1]);
        }
        sum.add(&x, None, threads).unwrap();
    }
    sum.finish(1.0 / 600.0).unwrap()
}

#[test]
fn moments_are_sums_of_products() {
    for width in [1, 5, 239, 240, 241, 500] {
        let (tokens, x) = (5, values(5 * width, 1));
        let weights = values(tokens, 2);
        for weighted in [false, true] {
            let sum = SecondMoment::new(width).unwrap();
            sum.add(&x, weighted.then_some(&weights), 2).unwrap();
            let found = sum.finish(0.5).unwrap();
            for i in 0..width {
                for j in 0..width {
                    let term = |t: usize| {
                        let s = if weighted { f64::from(weights[t]) } else { 1.0 };
                        0.5 * s * f64::from(x[t * width + i]) * f64::from(x[t * width + j])
                    };
                    let exact: f64 = (0..tokens).map(term).sum();
                    let size: f64 = (0..tokens).map(|t| term(t).abs()).sum();
                    assert!(
                        (f64::from(found[i * width + j]) - exact).abs() <= 1e-6 * size,
                        "{width}: {i}, {j}"
                    );
                }
            }
        }
    }
    assert_eq!(moment(300, 1), moment(300, 3));
}

#[test]
fn factors_multiply_to_the_damped_moment() {
    for size in [1, 3, 63, 64, 65, 200] {
        let plain = moment(size, 1);
        let made = Factored::new(plain.clone(), 0.02, Kind::P4, 2).unwrap();
        assert_eq!(made.factor, Factored::new(plain.clone(), 0.02, Kind::P4, 1).unwrap().factor);
        let mean = (0..size).map(|i| f64::from(plain[i * (size + 1)])).sum::<f64>() / size as f64;
        let u = |i: usize, k: usize| match i.cmp(&k) {
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Less => f64::from(made.factor[i * size + k]),
            std::cmp::Ordering::Greater => 0.0,
        };
        for i in 0..size {
            for j in i..size {
                let product: f64 = (j..size).map(|k| u(i, k) * made.pivots[k] * u(j, k)).sum();
                let damping = if i == j { 0.02 * mean } else { 0.0 };
                let expected = f64::from(plain[i * size + j]) + damping;
                assert!((product - expected).abs() <= 1e-5 * mean, "{size}: {i}, {j}: {product} {expected}");
            }
        }
    }
    let zeros = Factored::new(vec![0.0; 9], 0.01, Kind::P4, 1).unwrap();
    assert_eq!(zeros.moment, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn what_is_no_moment_is_refused() {
    let refused =
        |moment: &[f32], damping: f64| Factored::new(moment.to_vec(), damping, Kind::P4, 1).is_err();
    assert!(!refused(&[2.0, 1.0, 1.0, 2.0], 0.01));
    for moment in [&[][..], &[1.0, 0.0], &[1.0, f32::NAN, f32::NAN, 1.0], &[1.0, 0.5, 0.4, 1.0]] {
        assert!(refused(moment, 0.01), "{moment:?}");
    }
    assert!(refused(&[1.0, 2.0, 2.0, 1.0], 0.01), "not semidefinite");
    assert!(refused(&[-1.0], 0.01) && refused(&[1.0], 0.0) && refused(&[1.0], f64::NAN));
    assert!(SecondMoment::new(0).is_err());
    // 6 TB are promised by some systems, and taken by none; elsewhere nobody tells what there is.
    let widths: &[usize] = if cfg!(target_os = "linux") { &[1 << 20, usize::MAX] } else { &[usize::MAX] };
    for &width in widths {
        assert!(matches!(SecondMoment::new(width), Err(EngineError::Memory { .. })));
    }
    let sum = SecondMoment::new(3).unwrap();
    assert!(sum.add(&[1.0; 4], None, 1).is_err() && sum.add(&[1.0; 6], Some(&[1.0]), 1).is_err());
}

#[test]
fn threads_groups_and_storage_order_do_not_matter() {
    let (rows, cols) = (37, 45);
    let plain = values(rows * cols, 5);
    let mut turned = vec![0.0; plain.len()];
    plain.iter().enumerate().for_each(|(i, &w)| turned[i % cols * rows + i / cols] = w);
    let weights: Vec<f32> = (0..rows).map(|i| 0.5 + i as f32 / 10.0).collect();
    let dense = Dense::from_f32(rows, cols, &plain).unwrap();
    let source = Source { name: "w", file: None, dense, transposed: false, importance: None };
    let transposed =
        Source { dense: Dense::from_f32(cols, rows, &turned).unwrap(), transposed: true, ..source };
    for kind in Kind::ALL {
        let hessian = Factored::new(moment(cols, 1), 0.01, kind, 1).unwrap();
        let run = |source: &Source<'_>, of: Range<usize>, threads: usize| {
            let weights = &weights[of.clone()];
            compensate(source, kind, of, &hessian, weights, threads, &mut |_| true).unwrap().unwrap()
        };
        let one = run(&source, 0..rows, 1);
        assert_eq!(one, run(&source, 0..rows, 3));
        assert_eq!(one, run(&transposed, 0..rows, 2));
        let (first, second) = (run(&source, 0..32, 2), run(&source, 32..rows, 2));
        assert_eq!(one.codes, [first.codes, second.codes].concat());
        assert_eq!(one.codebook, [first.codebook, second.codebook].concat());
        assert_eq!(one.scale, [first.scale, second.scale].concat());
        let bits: Vec<u16> = one.scale.iter().map(|s| s.to_bits()).collect();
        Palette::new(kind, rows, cols, &one.codes, &one.codebook, &bits).unwrap().check_values().unwrap();
        let go_on = &mut |_| true;
        for (of, count) in [(0..38, 38), (1..rows, rows - 1), (16..16, 0), (0..rows, rows - 1)] {
            let given = vec![1.0; count];
            assert!(compensate(&source, kind, of, &hessian, &given, 1, go_on).is_err());
        }
        assert!(compensate(&source, kind, 0..16, &hessian, &[0.0; 16], 1, go_on).is_err());
        assert!(compensate(&source, kind, 0..16, &hessian, &[f32::NAN; 16], 1, go_on).is_err());
        let other = Factored::new(moment(cols + 1, 1), 0.01, kind, 1).unwrap();
        assert!(compensate(&source, kind, 0..16, &other, &[1.0; 16], 1, go_on).is_err());
        assert_eq!(compensate(&source, kind, 0..16, &hessian, &[1.0; 16], 1, &mut |_| false), Ok(None));
    }
}

#[test]
fn weights_near_the_largest_scale_are_fitted_or_refused() {
    let cols = 32;
    for (seed, kind) in (0..20).flat_map(|seed| Kind::ALL.map(|kind| (seed, kind))) {
        let hessian = Factored::new(moment(cols, 1), 0.01, kind, 1).unwrap();
        let plain = values(TILE * cols, seed);
        let most = plain.iter().fold(0.0f32, |most, w| most.max(w.abs()));
        // The largest entry times the largest f16, and some less.
        let limit = f32::from(kind.grid().1) * 65504.0;
        for part in [0.5, 0.75, 0.8, 0.9, 1.0, 1.1] {
            let weights: Vec<f32> = plain.iter().map(|w| w / most * limit * part).collect();
            let dense = Dense::from_f32(TILE, cols, &weights).unwrap();
            let source = Source { name: "w", file: None, dense, transposed: false, importance: None };
            let found = compensate(&source, kind, 0..TILE, &hessian, &[1.0; TILE], 1, &mut |_| true);
            assert!(!matches!(found, Err(EngineError::Internal(_))), "{kind:?} {seed} {part}: {found:?}");
        }
    }
}
