//! Sums of outer products: against float64, the same bits on every level and however rows are grouped.

mod common;

use common::{Random, UNIT, assert_close, assert_same, kernels};
use pocketlm_kernels::Outer;

const SHAPES: [(usize, usize, usize); 8] =
    [(0, 3, 5), (1, 1, 1), (7, 8, 48), (64, 16, 65), (3, 17, 31), (256, 9, 100), (5, 1, 200), (40, 24, 7)];

#[test]
fn float32_sums_are_close_and_the_same_on_every_level() {
    let mut random = Random(3);
    for (terms, rows, cols) in SHAPES {
        let (a_stride, b_stride, stride) = (rows + 3, cols + 1, cols + 2);
        let a = random.normals(terms * a_stride, 1.0);
        let b = random.normals(terms * b_stride, 1.0);
        let start = random.normals(rows * stride, 1.0);
        let p = Outer { a: &a, a_stride, b: &b, b_stride, terms, rows, cols };
        let mut first: Option<Vec<f32>> = None;
        for k in kernels() {
            let mut c = start.clone();
            k.outer_f32(&p, &mut c, stride).unwrap();
            let term = |i: usize, j: usize| {
                (f64::from(a[j * a_stride + i / stride]), f64::from(b[j * b_stride + i % stride]))
            };
            let inside = |i: usize| i % stride < cols;
            let expected: Vec<f64> = (0..c.len())
                .map(|i| {
                    let sum: f64 =
                        (0..terms).filter(|_| inside(i)).map(|j| term(i, j)).map(|(a, b)| a * b).sum();
                    f64::from(start[i]) + sum
                })
                .collect();
            assert_close(&format!("outer_f32 {}", k.level()), &c, &expected, |i| {
                let size: f64 =
                    (0..terms).filter(|_| inside(i)).map(|j| term(i, j)).map(|(a, b)| (a * b).abs()).sum();
                (terms + 2) as f64 * UNIT * (size + f64::from(start[i]).abs())
            });
            assert_same(&format!("outer_f32 {}", k.level()), &c, first.get_or_insert_with(|| c.clone()));
        }
    }
}

#[test]
fn float64_sums_are_the_plain_loop_bit_for_bit() {
    let mut random = Random(4);
    for (terms, rows, cols) in SHAPES {
        let (a_stride, b_stride, stride) = (rows, cols + 4, cols);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
        let a = wide(random.normals(terms * a_stride, 1.0));
        let b = wide(random.normals(terms * b_stride, 0.3));
        let start = wide(random.normals(rows * stride, 1.0));
        let mut expected = start.clone();
        for j in 0..terms {
            for r in 0..rows {
                for n in 0..cols {
                    expected[r * stride + n] += a[j * a_stride + r] * b[j * b_stride + n];
                }
            }
        }
        let x = random.normals(cols, 2.0);
        for k in kernels() {
            let mut c = start.clone();
            let p = Outer { a: &a, a_stride, b: &b, b_stride, terms, rows, cols };
            k.outer_f64(&p, &mut c, stride).unwrap();
            assert_eq!(c, expected, "outer_f64 {}", k.level());
            if let Some(row) = c.get_mut(..cols).filter(|_| rows > 0) {
                k.add_scaled(row, 0.37, &x).unwrap();
                let plain: Vec<f64> = (0..cols).map(|n| expected[n] + 0.37 * f64::from(x[n])).collect();
                assert_eq!(row, plain, "add_scaled {}", k.level());
            }
        }
    }
}

#[test]
fn short_slices_are_refused() {
    let (a, b) = ([1.0f32; 12], [1.0f32; 20]);
    for k in kernels() {
        let p = Outer { a: &a, a_stride: 3, b: &b, b_stride: 5, terms: 4, rows: 3, cols: 5 };
        assert!(k.outer_f32(&p, &mut [0.0; 15], 5).is_ok());
        assert!(k.outer_f32(&p, &mut [0.0; 14], 5).is_err());
        assert!(k.outer_f32(&p, &mut [0.0; 15], 4).is_err());
        assert!(k.outer_f32(&Outer { terms: 5, ..p }, &mut [0.0; 15], 5).is_err());
        assert!(k.outer_f32(&Outer { rows: 4, ..p }, &mut [0.0; 20], 5).is_err());
        assert!(k.outer_f32(&Outer { a_stride: usize::MAX, ..p }, &mut [0.0; 15], 5).is_err());
        assert!(k.outer_f32(&p, &mut [0.0; 15], usize::MAX).is_err());
        assert!(k.add_scaled(&mut [0.0; 3], 1.0, &a[..2]).is_err());
    }
}
