//! Sums of outer products, `c[r, n] += Σ_j a[j, r] · b[j, n]`, in float32 and float64: second moments and the linear algebra
//! of palettizing.
//!
//! The order of every sum is that of j. In float32 each term is one fused multiply-add into a sum of its own, which is added to `c`
//! at the end; in float64 product and sum are rounded by themselves and the sum starts from `c`. Plain loops over arrays
//! become vector code where they are instantiated, with the same bits, since no two terms of a sum are reordered.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use crate::simd::{LANES, Simd};

/// The factors of a sum of outer products.
#[derive(Debug, Clone, Copy)]
pub struct Outer<'a, T> {
    /// `[terms, rows]`, each term's values `a_stride` elements behind those of the one before.
    pub a: &'a [T],
    /// Elements from one term to the next.
    pub a_stride: usize,
    /// `[terms, cols]`, likewise.
    pub b: &'a [T],
    /// Elements from one term to the next.
    pub b_stride: usize,
    /// Number of outer products that are summed.
    pub terms: usize,
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub cols: usize,
}

/// Rows of a block of the result that stays in registers, and lanes of float64.
const ROWS_F64: usize = 8;
const LANES_F64: usize = 8;

/// `R` rows × `V` vectors.
#[inline(always)]
fn block_f32<S: Simd, const R: usize, const V: usize>(
    s: S,
    p: &Outer<'_, f32>,
    row: usize,
    col: usize,
    c: &mut [f32],
    stride: usize,
) {
    let mut acc = [[s.zero(); V]; R];
    for j in 0..p.terms {
        let a = &p.a[j * p.a_stride + row..][..R];
        let b = &p.b[j * p.b_stride + col..][..V * LANES];
        for v in 0..V {
            // SAFETY: `b` was cut to V * 16 elements.
            let values = unsafe { s.f32_at(b.as_ptr().add(v * LANES).cast()) };
            for r in 0..R {
                acc[r][v] = s.fma(s.splat(a[r]), values, acc[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            let to = &mut c[(row + r) * stride + col + v * LANES..][..LANES];
            let sum = s.add(s.load_part(to), acc[r][v]);
            s.store_part(to, sum);
        }
    }
}

/// The columns that fill no vector.
#[inline(always)]
fn edge_f32<S: Simd>(s: S, p: &Outer<'_, f32>, row: usize, col: usize, c: &mut [f32], stride: usize) {
    let width = p.cols - col;
    let mut acc = s.zero();
    for j in 0..p.terms {
        let values = s.load_part(&p.b[j * p.b_stride + col..][..width]);
        acc = s.fma(s.splat(p.a[j * p.a_stride + row]), values, acc);
    }
    let to = &mut c[row * stride + col..][..width];
    let sum = s.add(s.load_part(to), acc);
    s.store_part(to, sum);
}

#[inline(always)]
fn rows_f32<S: Simd, const R: usize, const V: usize>(
    s: S,
    p: &Outer<'_, f32>,
    row: usize,
    c: &mut [f32],
    stride: usize,
) {
    let mut col = 0;
    while col + V * LANES <= p.cols {
        block_f32::<S, R, V>(s, p, row, col, c, stride);
        col += V * LANES;
    }
    while col + LANES <= p.cols {
        block_f32::<S, R, 1>(s, p, row, col, c, stride);
        col += LANES;
    }
    if col < p.cols {
        for r in row..row + R {
            edge_f32(s, p, r, col, c, stride);
        }
    }
}

#[inline(always)]
fn all_f32<S: Simd, const R: usize, const V: usize>(s: S, p: &Outer<'_, f32>, c: &mut [f32], stride: usize) {
    let mut row = 0;
    while row + R <= p.rows {
        rows_f32::<S, R, V>(s, p, row, c, stride);
        row += R;
    }
    while row < p.rows {
        rows_f32::<S, 1, V>(s, p, row, c, stride);
        row += 1;
    }
}

#[inline(always)]
fn outer_f32<S: Simd>(s: S, p: &Outer<'_, f32>, c: &mut [f32], stride: usize) {
    if S::REGISTERS >= 32 {
        all_f32::<S, 8, 3>(s, p, c, stride);
    } else if S::REGISTERS >= 8 {
        all_f32::<S, 4, 1>(s, p, c, stride);
    } else {
        all_f32::<S, 1, 1>(s, p, c, stride);
    }
}

/// `R` rows × `L` lanes.
#[inline(always)]
fn block_f64<const R: usize, const L: usize>(
    p: &Outer<'_, f64>,
    row: usize,
    col: usize,
    c: &mut [f64],
    stride: usize,
) {
    let mut acc = [[0.0; L]; R];
    for r in 0..R {
        acc[r].copy_from_slice(&c[(row + r) * stride + col..][..L]);
    }
    for j in 0..p.terms {
        let a: &[f64] = &p.a[j * p.a_stride + row..][..R];
        let b: &[f64] = &p.b[j * p.b_stride + col..][..L];
        for r in 0..R {
            for l in 0..L {
                acc[r][l] += a[r] * b[l];
            }
        }
    }
    for r in 0..R {
        c[(row + r) * stride + col..][..L].copy_from_slice(&acc[r]);
    }
}

#[inline(always)]
fn rows_f64<const R: usize>(p: &Outer<'_, f64>, row: usize, c: &mut [f64], stride: usize) {
    let mut col = 0;
    while col + LANES_F64 <= p.cols {
        block_f64::<R, LANES_F64>(p, row, col, c, stride);
        col += LANES_F64;
    }
    while col < p.cols {
        block_f64::<R, 1>(p, row, col, c, stride);
        col += 1;
    }
}

#[inline(always)]
fn outer_f64<S: Simd>(_: S, p: &Outer<'_, f64>, c: &mut [f64], stride: usize) {
    let mut row = 0;
    while row + ROWS_F64 <= p.rows {
        rows_f64::<ROWS_F64>(p, row, c, stride);
        row += ROWS_F64;
    }
    while row < p.rows {
        rows_f64::<1>(p, row, c, stride);
        row += 1;
    }
}

/// `y += factor · x`, product and sum each rounded to float64.
#[inline(always)]
fn add_scaled<S: Simd>(_: S, y: &mut [f64], factor: f64, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += factor * f64::from(x);
    }
}

instantiate! {
    OuterF32, "f32", "rows" => sum_f32 = outer_f32, (p: &Outer<'_, f32>, c: &mut [f32], stride: usize);
    OuterF64, "f64", "rows" => sum_f64 = outer_f64, (p: &Outer<'_, f64>, c: &mut [f64], stride: usize);
    AddScaled, "f64", "row" => add = add_scaled, (y: &mut [f64], factor: f64, x: &[f32]);
}
