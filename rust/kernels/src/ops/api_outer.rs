//! The safe methods of [`Kernels`] for sums of outer products.

use super::Outer;
use crate::error::{KernelError, expect_len, product};
use crate::kernels::Kernels;

/// Whether `count` runs of `width` elements, `stride` apart, lie within `len`.
fn expect_runs(
    what: &'static str,
    len: usize,
    count: usize,
    stride: usize,
    width: usize,
) -> Result<(), KernelError> {
    let needed = match count.checked_sub(1) {
        None => 0,
        Some(last) => product(what, &[last, stride])?
            .checked_add(width)
            .ok_or(KernelError::Invalid { what, reason: "its size overflows" })?,
    };
    if stride < width || len < needed {
        return Err(KernelError::Length { what, expected: needed.max(width), got: len });
    }
    Ok(())
}

fn check<T>(p: &Outer<'_, T>, c: usize, stride: usize) -> Result<(), KernelError> {
    expect_runs("left factors of outer products", p.a.len(), p.terms, p.a_stride, p.rows)?;
    expect_runs("right factors of outer products", p.b.len(), p.terms, p.b_stride, p.cols)?;
    expect_runs("sum of outer products", c, p.rows, stride, p.cols)
}

impl Kernels {
    /// `c[r, n] += Σ_j a[j, r] · b[j, n]` in float32; `c` is `[rows, cols]` with rows `stride` elements apart. The sum is made by fused
    /// multiply-adds in order of j from 0, then added to `c`.
    ///
    /// # Errors
    /// When a slice is too short, or a stride is less than what it is to step over.
    pub fn outer_f32(&self, p: &Outer<'_, f32>, c: &mut [f32], stride: usize) -> Result<(), KernelError> {
        check(p, c.len(), stride)?;
        // SAFETY: the level was detected before the table was built, and the lengths were checked above.
        unsafe { (self.float.outer_f32)(p, c, stride) };
        Ok(())
    }

    /// The same in float64, from `c` on, every product and every sum rounded by itself.
    ///
    /// # Errors
    /// As [`Kernels::outer_f32`].
    pub fn outer_f64(&self, p: &Outer<'_, f64>, c: &mut [f64], stride: usize) -> Result<(), KernelError> {
        check(p, c.len(), stride)?;
        // SAFETY: as in `outer_f32`.
        unsafe { (self.float.outer_f64)(p, c, stride) };
        Ok(())
    }

    /// `y += factor · x`, product and sum each rounded to float64.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn add_scaled(&self, y: &mut [f64], factor: f64, x: &[f32]) -> Result<(), KernelError> {
        expect_len("x of add_scaled", x.len(), y.len())?;
        // SAFETY: the level was detected before the table was built, and the length was checked above.
        unsafe { (self.float.add_scaled)(y, factor, x) };
        Ok(())
    }
}
