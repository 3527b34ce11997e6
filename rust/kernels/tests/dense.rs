//! Products with dense weights and lookup of their rows: against float64, and the same bits for any rows, range and level.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::{Dense, DenseType, KernelError, Kernels, PackedRows, Scratch, reference};
use proptest::prelude::*;

/// Bytes of `n` weights, behind `skew` bytes that break their alignment.
fn weights(random: &mut Random, dtype: DenseType, n: usize, skew: usize) -> Vec<u8> {
    let mut bytes = vec![0; skew];
    for _ in 0..n {
        let v = random.normal();
        match dtype {
            DenseType::F32 => bytes.extend(v.to_le_bytes()),
            DenseType::F16 => bytes.extend(half::f16::from_f32(v).to_le_bytes()),
            DenseType::Bf16 => bytes.extend(half::bf16::from_f32(v).to_le_bytes()),
        }
    }
    bytes
}

fn pack(k: &Kernels, x: &[f32], m: usize, stride: usize, cols: usize) -> Vec<f32> {
    let mut packed = vec![f32::NAN; PackedRows::floats(m, cols).unwrap()];
    k.pack_rows(x, m, stride, cols, &mut packed).unwrap();
    packed
}

fn check(seed: u64, dtype: DenseType, rows: usize, cols: usize, m: usize) {
    let mut random = Random(seed);
    let skew = random.below(5);
    let bytes = weights(&mut random, dtype, rows * cols, skew);
    let w = Dense::new(dtype, rows, cols, &bytes[skew..]).unwrap();
    let stride = cols + random.below(4);
    let x = random.normals(m * stride, 1.0);
    let levels = kernels();
    let mut expected = vec![f32::NAN; m * rows];
    levels[0].matmul_dense(&w, &x, m, stride, 0..rows, &mut expected).unwrap();
    let exact = reference::embed(dtype, &bytes[skew..]);
    for row in 0..m {
        let x = &x[row * stride..][..cols];
        let dots: Vec<(f64, f64)> = exact.chunks_exact(cols.max(1)).map(|w| reference::dot(w, x)).collect();
        if cols > 0 {
            let sums: Vec<f64> = dots.iter().map(|d| d.0).collect();
            // Each lane rounds once per term, and the tree four times.
            let roundings = (cols.div_ceil(16) + 4) as f64;
            assert_close(&format!("dense {}", dtype.name()), &expected[row * rows..][..rows], &sums, |i| {
                1.01 * roundings * UNIT * dots[i].1
            });
        }
    }
    for k in &levels {
        let mut got = vec![f32::NAN; m * rows];
        k.matmul_dense(&w, &x, m, stride, 0..rows, &mut got).unwrap();
        assert_same(&format!("dense {} {}", dtype.name(), k.level()), &got, &expected);
        let packed = pack(k, &x, m, stride, cols);
        let packed = PackedRows::new(m, cols, &packed).unwrap();
        let mut scratch = Scratch::new();
        for seen in ["packed", "packed, once more"] {
            got.fill(f32::NAN);
            k.matmul_packed(&w, &packed, 0..rows, &mut scratch, &mut got).unwrap();
            assert_same(&format!("{seen} {} {}", dtype.name(), k.level()), &got, &expected);
        }
        // Any range of outputs, any row alone.
        let from = random.below(rows + 1);
        let to = from + random.below(rows - from + 1);
        let mut part = vec![f32::NAN; m * (to - from)];
        k.matmul_packed(&w, &packed, from..to, &mut scratch, &mut part).unwrap();
        for row in 0..m {
            let range = row * (to - from)..(row + 1) * (to - from);
            assert_same("packed outputs", &part[range], &expected[row * rows + from..row * rows + to]);
        }
        k.matmul_dense(&w, &x, m, stride, from..to, &mut part).unwrap();
        for row in 0..m {
            let range = row * (to - from)..(row + 1) * (to - from);
            assert_same("a range of outputs", &part[range], &expected[row * rows + from..row * rows + to]);
            let mut one = vec![f32::NAN; rows];
            k.matmul_dense(&w, &x[row * stride..], 1, stride, 0..rows, &mut one).unwrap();
            assert_same("one row", &one, &expected[row * rows..][..rows]);
        }
        for row in 0..rows {
            let mut out = vec![f32::NAN; cols];
            k.embed_dense(&w, row, &mut out).unwrap();
            let exact: Vec<f32> = exact[row * cols..][..cols].iter().map(|&v| v as f32).collect();
            assert_same("embed", &out, &exact);
        }
    }
}

#[test]
fn odd_shapes() {
    for dtype in DenseType::ALL {
        for (i, cols) in [0, 1, 15, 16, 17, 31, 33, 64, 100, 257].into_iter().enumerate() {
            for (rows, m) in [(1, 1), (5, 2), (8, 4), (13, 5), (25, 9), (6, 17)] {
                check(i as u64, dtype, rows, cols, m);
            }
        }
        check(99, dtype, 14, 3000, 50);
    }
}

/// Some levels have other tiles for few rows of 16-bit matrices of 2 MiB and more (`LARGE` in `ops/dense.rs`).
#[test]
fn large_matrices_give_the_same_bits() {
    const M: usize = 17;
    for (dtype, rows, cols, gap) in [
        (DenseType::Bf16, 1021, 1037, 0),
        (DenseType::Bf16, 1025, 1024, 3),
        (DenseType::F16, 130, 8200, 1),
        (DenseType::F16, 70_001, 15, 0),
        (DenseType::F32, 523, 1037, 0),
    ] {
        let mut random = Random(cols as u64);
        let bytes = weights(&mut random, dtype, rows * cols, 1);
        assert!(bytes.len() > 2 << 20);
        let w = Dense::new(dtype, rows, cols, &bytes[1..]).unwrap();
        let stride = cols + gap;
        let x = random.normals(M * stride, 1.0);
        let levels = kernels();
        let mut expected = vec![f32::NAN; M * rows];
        levels[0].matmul_dense(&w, &x, M, stride, 0..rows, &mut expected).unwrap();
        for k in &levels[1..] {
            for m in 1..=M {
                let mut got = vec![f32::NAN; m * rows];
                k.matmul_dense(&w, &x, m, stride, 0..rows, &mut got).unwrap();
                let name = format!("{m} rows {} {}", dtype.name(), k.level());
                assert_same(&name, &got, &expected[..m * rows]);
                // The last outputs, behind which nothing is to be asked for, and an odd number of them.
                let from = rows - 5;
                let mut part = vec![f32::NAN; m * 5];
                k.matmul_dense(&w, &x, m, stride, from..rows, &mut part).unwrap();
                for row in 0..m {
                    assert_same(&name, &part[row * 5..][..5], &expected[row * rows + from..(row + 1) * rows]);
                }
            }
        }
    }
}

#[test]
fn every_16_bit_value_is_read_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    for (dtype, read) in [
        (DenseType::F16, (|b| half::f16::from_bits(b).to_f32()) as fn(u16) -> f32),
        (DenseType::Bf16, |b| half::bf16::from_bits(b).to_f32()),
    ] {
        let w = Dense::from_u16(dtype, 1, all.len(), &all).unwrap();
        let expected: Vec<f32> = all.iter().map(|&b| read(b)).collect();
        for k in kernels() {
            let mut out = vec![0.0; all.len()];
            k.embed_dense(&w, 0, &mut out).unwrap();
            assert_same(&format!("{} {}", dtype.name(), k.level()), &out, &expected);
        }
    }
}

#[test]
fn nan_and_infinity_reach_only_their_own_outputs() {
    let mut data = vec![1.0f32; 40 * 33];
    data[7 * 33 + 20] = f32::NAN;
    data[9 * 33 + 32] = f32::INFINITY;
    let w = Dense::from_f32(40, 33, &data).unwrap();
    let mut x = vec![1.0f32; 33 * 6];
    x[33 * 3 + 32] = 0.0;
    for k in kernels() {
        let mut out = vec![0.0; 40 * 6];
        k.matmul_dense(&w, &x, 6, 33, 0..40, &mut out).unwrap();
        let (packed, mut again) = (pack(k, &x, 6, 33, 33), vec![0.0; 40 * 6]);
        let packed = PackedRows::new(6, 33, &packed).unwrap();
        k.matmul_packed(&w, &packed, 0..40, &mut Scratch::new(), &mut again).unwrap();
        assert_same("packed", &again, &out);
        for (i, v) in out.iter().enumerate() {
            match (i / 40, i % 40) {
                (_, 7) | (3, 9) => assert!(v.is_nan()),
                (_, 9) => assert_eq!(*v, f32::INFINITY),
                (3, _) => assert_eq!(*v, 32.0),
                _ => assert_eq!(*v, 33.0),
            }
        }
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let data = [0.0f32; 12];
    let w = Dense::from_f32(3, 4, &data).unwrap();
    let mut out = [0.0; 6];
    for k in kernels() {
        k.matmul_dense(&w, &[0.0; 8], 2, 4, 0..3, &mut out).unwrap();
        let mut run = |x: &[f32], m, stride, range, n| k.matmul_dense(&w, x, m, stride, range, &mut out[..n]);
        assert!(matches!(run(&[0.0; 7], 2, 4, 0..3, 6), Err(KernelError::Length { .. })));
        assert!(run(&[0.0; 8], 2, 3, 0..3, 6).is_err());
        assert!(run(&[0.0; 8], 2, 4, 0..3, 5).is_err());
        assert!(run(&[0.0; 8], 2, 4, 1..4, 6).is_err());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 2..1;
        assert!(run(&[0.0; 8], 2, 4, reversed.clone(), 0).is_err());
        assert!(run(&[0.0; 8], usize::MAX, 4, 0..3, 6).is_err());
        assert!(run(&[0.0; 8], 2, usize::MAX, 0..3, 6).is_err());
        let (data, mut scratch) = (pack(k, &[0.0; 8], 2, 4, 4), Scratch::new());
        let packed = PackedRows::new(2, 4, &data).unwrap();
        k.matmul_packed(&w, &packed, 0..3, &mut scratch, &mut out).unwrap();
        for (range, n) in [(0..3, 5), (1..4, 6), (0..usize::MAX, 6), (reversed, 0)] {
            assert!(k.matmul_packed(&w, &packed, range, &mut scratch, &mut out[..n]).is_err());
        }
        for (rows, cols, n) in [(2, 3, 6), (3, 2, 9)] {
            let data = pack(k, &[0.0; 8], rows, cols, cols);
            let packed = PackedRows::new(rows, cols, &data).unwrap();
            assert!(k.matmul_packed(&w, &packed, 0..3, &mut scratch, &mut vec![0.0; n]).is_err());
            assert!(PackedRows::new(rows, cols, &data[1..]).is_err());
            assert!(PackedRows::new(rows + 6, cols, &data).is_err());
        }
        let mut to = data.clone();
        let wrong =
            [(3, 3, 3), (2, 1, 2), (usize::MAX, 4, 4), (2, usize::MAX, 4), (2, 9, usize::MAX), (8, 1, 1)];
        for (rows, stride, cols) in wrong {
            assert!(k.pack_rows(&[0.0; 8], rows, stride, cols, &mut to).is_err(), "{rows} {stride} {cols}");
        }
        assert!(k.pack_rows(&[0.0; 8], 2, 4, 4, &mut to[1..]).is_err());
        assert!(scratch.reserve(usize::MAX, 1).is_err());
        assert!(scratch.reserve(1 << 50, 1).is_err());
        // Rows without inputs take no memory and no time, however many they are said to be.
        k.pack_rows(&[], usize::MAX, 0, 0, &mut []).unwrap();
        let none = PackedRows::new(6, 0, &[]).unwrap();
        let mut zeros = [f32::NAN; 6];
        let empty = Dense::from_f32(1, 0, &[]).unwrap();
        k.matmul_packed(&empty, &none, 0..1, &mut Scratch::new(), &mut zeros).unwrap();
        assert_eq!(zeros, [0.0; 6]);
        assert!(k.embed_dense(&w, 3, &mut [0.0; 4]).is_err());
        assert!(k.embed_dense(&w, 2, &mut [0.0; 3]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_shape(seed: u64, dtype in 0usize..3, rows in 1usize..40, cols in 0usize..300, m in 1usize..20) {
        check(seed, DenseType::ALL[dtype], rows, cols, m);
    }
}
