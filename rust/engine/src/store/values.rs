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
                let mut out = self.room(rows.len() * cols)?;
                extend(&mut out, *dtype, &bytes.as_slice()[rows.start * row..rows.end * row]);
                Ok(out)
            }
            _ => {
                let mut out = self.room(rows.len() * cols)?;
                out.resize(rows.len() * cols, 0.0);
                decode(&self.palette()?, rows, &mut out).map_err(|error| self.error(error))?;
                Ok(out)
            }
        }
    }

    /// An empty vector with room for `count` values, which may be many times the bytes of the file.
    fn room(&self, count: usize) -> Result<Vec<f32>, StoreError> {
        let mut out = Vec::new();
        match out.try_reserve_exact(count) {
            Ok(()) => Ok(out),
            Err(_) => Err(self.error(format!("there is no memory for {count} values of 4 bytes"))),
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
    let mut out = Vec::with_capacity(bytes.len() / dtype.size());
    extend(&mut out, dtype, bytes);
    out
}

fn extend(out: &mut Vec<f32>, dtype: DenseType, bytes: &[u8]) {
    let words = || bytes.as_chunks().0.iter().map(|&word| u16::from_le_bytes(word));
    match dtype {
        DenseType::F32 => out.extend(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word))),
        DenseType::F16 => out.extend(words().map(|bits| f16::from_bits(bits).to_f32())),
        DenseType::Bf16 => out.extend(words().map(|bits| bf16::from_bits(bits).to_f32())),
    }
}

fn decode(palette: &Palette<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), KernelError> {
    let kernels = Kernels::best()?;
    rows.zip(out.chunks_exact_mut(palette.cols()))
        .try_for_each(|(row, out)| kernels.embed_palette(palette, row, out))
}

#[cfg(test)]
mod tests {
    use super::super::{Bytes, WeightStore};
    use super::*;

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let mut store = WeightStore::new();
        store.add_dense("tensor", DenseType::F16, &[1], Bytes::copy(&[0; 2])).unwrap();
        let tensor = store.get("tensor").unwrap();
        assert_eq!(tensor.room(7).unwrap().capacity(), 7);
        let message = tensor.room(1 << 60).unwrap_err().to_string();
        assert!(message.contains("\"tensor\"") && message.contains("memory"), "{message}");
    }
}
