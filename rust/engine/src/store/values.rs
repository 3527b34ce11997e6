//! Values of a tensor as float32, however it is stored. For listings, interpreters and vectors; kernels read in place.

use std::ops::Range;

use half::{bf16, f16};
use pocketlm_kernels::{DenseType, KernelError, Kernels, Palette};

use super::error::StoreError;
use super::tensor::{Tensor, TensorData};

impl Tensor {
    /// Rows of the tensor as float32 (rows are the first dimension; a vector is one row), row-major.
    ///
    /// # Errors
    /// When `rows` is not within the tensor, or its type is not one that the engine computes with.
    pub fn rows_f32(&self, rows: Range<usize>) -> Result<Vec<f32>, StoreError> {
        let (count, cols) = match &self.data {
            TensorData::Palette { .. } => (self.shape[0], self.shape[1]),
            _ => self.dense().map(|dense| (dense.rows(), dense.cols()))?,
        };
        if rows.start > rows.end || rows.end > count {
            return Err(self.error(format!("rows {rows:?} of {count}")));
        }
        match &self.data {
            TensorData::Dense { dtype, bytes } => {
                let row = cols * dtype.size();
                Ok(widen(*dtype, &bytes.as_slice()[rows.start * row..rows.end * row]))
            }
            _ => decode(&self.palette()?, rows).map_err(|error| self.error(error)),
        }
    }

    /// All values as float32.
    ///
    /// # Errors
    /// When the type is not one that the engine computes with.
    pub fn to_f32(&self) -> Result<Vec<f32>, StoreError> {
        let rows = match &self.shape[..] {
            [rows, _, ..] => *rows,
            _ => 1,
        };
        self.rows_f32(0..rows)
    }
}

/// Little-endian elements as float32, exactly.
pub fn widen(dtype: DenseType, bytes: &[u8]) -> Vec<f32> {
    let words = || bytes.as_chunks().0.iter().map(|&word| u16::from_le_bytes(word));
    match dtype {
        DenseType::F32 => bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
        DenseType::F16 => words().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        DenseType::Bf16 => words().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}

fn decode(palette: &Palette<'_>, rows: Range<usize>) -> Result<Vec<f32>, KernelError> {
    let kernels = Kernels::best()?;
    let mut out = vec![0.0; (rows.end - rows.start) * palette.cols()];
    for (row, out) in rows.zip(out.chunks_exact_mut(palette.cols())) {
        kernels.embed_palette(palette, row, out)?;
    }
    Ok(out)
}
