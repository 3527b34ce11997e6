//! Looks for NaN and infinity at the speed of memory.

use pocketlm_kernels::DenseType;

use super::error::StoreError;
use super::tensor::{Tensor, TensorData};

/// Elements looked at before the next decision: long enough for vectors, short enough to stop soon.
const CHUNK: usize = 4096;

impl Tensor {
    /// An error that names the tensor and the index of its first value that is not finite.
    ///
    /// Reads every element of a dense tensor. Of a palettized one the scales are read (codes and codebooks are integers).
    pub fn check_finite(&self) -> Result<(), StoreError> {
        let found = match &self.data {
            TensorData::Dense { dtype, bytes } => first_not_finite(*dtype, bytes.as_slice()),
            TensorData::Palette { scale, .. } => {
                if let Some(row) = first_not_finite(DenseType::F16, scale.as_slice()) {
                    return Err(self.error(format!("the scale of row {row} is not finite")));
                }
                None
            }
            TensorData::Opaque { .. } => None,
        };
        match found {
            Some(index) => {
                Err(self.error(format!("the value at {:?} is not finite", unravel(index, &self.shape))))
            }
            None => Ok(()),
        }
    }
}

/// Index of the first element whose exponent bits are all ones.
pub(super) fn first_not_finite(dtype: DenseType, bytes: &[u8]) -> Option<usize> {
    match dtype {
        DenseType::F32 => search(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        DenseType::F16 => search(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        DenseType::Bf16 => search(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
    }
}

#[inline]
fn search<const SIZE: usize>(bytes: &[u8], bad: impl Fn([u8; SIZE]) -> bool) -> Option<usize> {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    elements.chunks(CHUNK).enumerate().find_map(|(index, chunk)| {
        // Without an early exit the loop becomes vector instructions.
        let any = chunk.iter().fold(false, |any, &element| any | bad(element));
        any.then(|| chunk.iter().position(|&element| bad(element)).map(|at| index * CHUNK + at)).flatten()
    })
}

fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut position: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let at = index % size;
            index /= size;
            at
        })
        .collect();
    position.reverse();
    position
}
