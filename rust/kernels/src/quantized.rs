//! Activations in int8: blocks of 256 inputs with one float32 scale each.

use crate::error::{KernelError, expect_len, product};

/// Inputs that share one activation scale.
pub const ACT_BLOCK: usize = 256;

/// The largest group of int8 activations. Of each eight inputs those numbered 0, 1, 4 and 5, and those numbered 2, 3, 6 and 7, are two
/// groups; the positive values of each sum to at most this, and so do the magnitudes of its negative ones. With weights of seven
/// bits, raised to 0..=127, the products of a group then fit into 16 bits: 127 × 258 = 32,766.
pub const GROUP: i32 = 258;

/// Bytes that a row of int8 activations takes: the inputs, zero-padded to a multiple of 64.
pub const fn padded_cols(cols: usize) -> usize {
    cols.div_ceil(64) * 64
}

/// Bytes from one row of int8 activations to the next. Rows that are whole multiples of 512 bytes apart lie in so few sets of a first-level cache
/// that those of one block push one another out, and get 256 bytes more. (p4, 8,192 inputs, weights in a cache, one Zen 3 core, G operations
/// a second without and with: 8 rows 167 and 195, 16 rows in registers 73 and 176.)
pub const fn row_stride(cols: usize) -> usize {
    let padded = padded_cols(cols);
    if padded.is_multiple_of(512) { padded + 256 } else { padded }
}

/// Activation blocks of a row.
pub const fn blocks(cols: usize) -> usize {
    cols.div_ceil(ACT_BLOCK)
}

fn check(rows: usize, cols: usize, stride: usize, lens: [usize; 3]) -> Result<(), KernelError> {
    if cols > usize::MAX - 64 || stride < padded_cols(cols) {
        return Err(KernelError::Invalid {
            what: "stride of quantized rows",
            reason: "must be the number of columns, rounded up to a multiple of 64, or more",
        });
    }
    expect_len("values of quantized rows", lens[0], product("quantized rows", &[rows, stride])?)?;
    let count = product("quantized rows", &[rows, blocks(cols)])?;
    expect_len("scales of quantized rows", lens[1], count)?;
    expect_len("sums of quantized rows", lens[2], count)
}

/// Quantized activations, borrowed.
///
/// `values` is `[rows, stride]` int8 in [-127, 127], whose groups are no larger than [`GROUP`], zero from column `cols` to the next
/// multiple of 64; `scales` and `sums` are `[rows, blocks(cols)]`: the float32 scale of a block, and the sum of its int8 values.
/// Kernels trust the groups, `sums` and the zero padding for their results, never for memory safety.
#[derive(Debug, Clone, Copy)]
pub struct QuantRows<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    pub(crate) values: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i32],
}

impl<'a> QuantRows<'a> {
    /// Wraps slices.
    ///
    /// # Errors
    /// When a length or the stride does not fit.
    pub fn new(
        rows: usize,
        cols: usize,
        stride: usize,
        values: &'a [i8],
        scales: &'a [f32],
        sums: &'a [i32],
    ) -> Result<Self, KernelError> {
        check(rows, cols, stride, [values.len(), scales.len(), sums.len()])?;
        Ok(Self { rows, cols, stride, values, scales, sums })
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows `start..start + count`.
    ///
    /// # Errors
    /// When the range leaves the rows.
    pub fn slice(&self, start: usize, count: usize) -> Result<QuantRows<'a>, KernelError> {
        let end =
            start.checked_add(count).ok_or(KernelError::Overflow { what: "range of quantized rows" })?;
        if end > self.rows {
            return Err(KernelError::Range { what: "range of quantized rows", got: end, limit: self.rows });
        }
        let n = blocks(self.cols);
        Ok(QuantRows {
            rows: count,
            values: &self.values[start * self.stride..end * self.stride],
            scales: &self.scales[start * n..end * n],
            sums: &self.sums[start * n..end * n],
            ..*self
        })
    }

    /// One row: int8 values with padding (`[stride]`), scales and sums (`[blocks]`).
    pub fn row(&self, index: usize) -> Option<(&'a [i8], &'a [f32], &'a [i32])> {
        (index < self.rows).then(|| {
            let n = blocks(self.cols);
            (
                &self.values[index * self.stride..(index + 1) * self.stride],
                &self.scales[index * n..(index + 1) * n],
                &self.sums[index * n..(index + 1) * n],
            )
        })
    }
}

/// Quantized activations to be written; layout as in [`QuantRows`].
#[derive(Debug)]
pub struct QuantRowsMut<'a> {
    rows: usize,
    cols: usize,
    stride: usize,
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

/// One row of [`QuantRowsMut`]: what the quantize kernels write.
#[derive(Debug)]
pub struct QuantRowMut<'a> {
    /// Number of inputs.
    pub cols: usize,
    /// Int8 values, padding included: `padded_cols(cols)` or more.
    pub values: &'a mut [i8],
    /// Scale of each block.
    pub scales: &'a mut [f32],
    /// Sum of the int8 values of each block.
    pub sums: &'a mut [i32],
}

impl<'a> QuantRowsMut<'a> {
    /// Wraps slices; the layout is that of [`QuantRows`].
    ///
    /// # Errors
    /// When a length or the stride does not fit.
    pub fn new(
        rows: usize,
        cols: usize,
        stride: usize,
        values: &'a mut [i8],
        scales: &'a mut [f32],
        sums: &'a mut [i32],
    ) -> Result<Self, KernelError> {
        check(rows, cols, stride, [values.len(), scales.len(), sums.len()])?;
        Ok(Self { rows, cols, stride, values, scales, sums })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs per row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, to be written.
    pub fn row_mut(&mut self, index: usize) -> Option<QuantRowMut<'_>> {
        (index < self.rows).then(|| {
            let n = blocks(self.cols);
            QuantRowMut {
                cols: self.cols,
                values: &mut self.values[index * self.stride..(index + 1) * self.stride],
                scales: &mut self.scales[index * n..(index + 1) * n],
                sums: &mut self.sums[index * n..(index + 1) * n],
            }
        })
    }

    /// The same rows, to be read.
    pub fn as_rows(&self) -> QuantRows<'_> {
        QuantRows {
            rows: self.rows,
            cols: self.cols,
            stride: self.stride,
            values: self.values,
            scales: self.scales,
            sums: self.sums,
        }
    }
}

/// Quantized activations that own their memory.
#[derive(Debug, Clone, Default)]
pub struct QuantBuffer {
    rows: usize,
    cols: usize,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl QuantBuffer {
    /// Zeros for `rows` × `cols`.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn new(rows: usize, cols: usize) -> Result<Self, KernelError> {
        if cols > usize::MAX - 512 {
            return Err(KernelError::Overflow { what: "quantized rows" });
        }
        let bytes = product("quantized rows", &[rows, row_stride(cols)])?;
        let count = rows * blocks(cols);
        Ok(Self { rows, cols, values: vec![0; bytes], scales: vec![0.0; count], sums: vec![0; count] })
    }

    /// A view to read.
    pub fn as_rows(&self) -> QuantRows<'_> {
        QuantRows {
            rows: self.rows,
            cols: self.cols,
            stride: row_stride(self.cols),
            values: &self.values,
            scales: &self.scales,
            sums: &self.sums,
        }
    }

    /// A view to write.
    pub fn as_rows_mut(&mut self) -> QuantRowsMut<'_> {
        QuantRowsMut {
            rows: self.rows,
            cols: self.cols,
            stride: row_stride(self.cols),
            values: &mut self.values,
            scales: &mut self.scales,
            sums: &mut self.sums,
        }
    }
}
