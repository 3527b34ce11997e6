//! The safe methods of [`Kernels`] for products of many rows with dense weights.

use std::ops::Range;

use super::PackedRows;
use super::api_rows::{at_least, check_outputs, span};
use crate::error::{KernelError, expect_len, product};
use crate::formats::Dense;
use crate::kernels::Kernels;
use crate::scratch::Scratch;

impl Kernels {
    /// Packs `m` rows of `cols` activations, which begin `stride` apart in `x`, for [`Kernels::matmul_packed`]. Groups of
    /// [`PackedRows::GROUP`] rows may be packed apart from one another, each to its place.
    ///
    /// # Errors
    /// When a length or the stride does not fit: `to` must have [`PackedRows::floats`].
    pub fn pack_rows(
        &self,
        x: &[f32],
        m: usize,
        stride: usize,
        cols: usize,
        to: &mut [f32],
    ) -> Result<(), KernelError> {
        at_least("activations", x.len(), span("activations", m, stride, cols)?)?;
        PackedRows::new(m, cols, to)?;
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the level was detected before the table was built; both lengths were checked above.
        unsafe { (self.float.pack_rows)(x, m, stride, cols, to) };
        Ok(())
    }

    /// Dense weights × packed float32 activations: what [`Kernels::matmul_dense`] computes of the same rows, in the same bits, and on
    /// some levels faster where rows are many ([`Kernels::packs_rows`]). `out` is row-major `[x.rows(), outputs.len()]`. `scratch`
    /// grows if it was not [made](Scratch::reserve) for as many rows and inputs.
    ///
    /// # Errors
    /// When the inputs differ in number, the range leaves the weight, `out` has the wrong length, or there is no memory.
    pub fn matmul_packed(
        &self,
        w: &Dense<'_>,
        x: &PackedRows<'_>,
        outputs: Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_outputs(w, &outputs)?;
        expect_len("columns of packed rows", x.cols(), w.cols())?;
        let len = product("out of matmul_packed", &[x.rows(), outputs.len()])?;
        expect_len("out of matmul_packed", out.len(), len)?;
        if w.cols() == 0 || out.is_empty() {
            out.fill(0.0);
            return Ok(());
        }
        let memory = scratch.by_lane(x.rows(), x.cols())?;
        let kernel = self.float.matmul_packed[w.dtype() as usize];
        // SAFETY: the level was detected before the table was built; the kernel is of the weight's type; inputs, outputs and the
        // length of `out` were checked above, and the memory is for these rows.
        unsafe { kernel(w, x, outputs, memory, out) };
        Ok(())
    }
}
