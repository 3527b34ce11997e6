//! One tensor: what it is, where its bytes are, and whether its values are numbers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use pocketlm_kernels::{Dense, DenseType, Kind, Palette};
use safetensors::tensor::Dtype;
use xxhash_rust::xxh3::Xxh3;

use super::bytes::Bytes;
use super::error::StoreError;

pub(super) fn dense_type(dtype: Dtype) -> Option<DenseType> {
    match dtype {
        Dtype::F32 => Some(DenseType::F32),
        Dtype::F16 => Some(DenseType::F16),
        Dtype::BF16 => Some(DenseType::Bf16),
        _ => None,
    }
}

/// Bits of the elements of a shape, or `None` where any product of its sizes overflows: sizes behind a 0 count too.
pub(super) fn bits(shape: &[usize], element: usize) -> Option<usize> {
    let bits = shape.iter().try_fold(element, |product, &size| product.checked_mul(size.max(1)))?;
    Some(if shape.contains(&0) { 0 } else { bits })
}

/// What a tensor is made of.
#[derive(Debug, Clone)]
pub enum TensorData {
    /// Row-major elements, as in a Hugging Face checkpoint. In a mapped file they are aligned to nothing.
    Dense {
        /// Type of an element.
        dtype: DenseType,
        /// `product(shape) * dtype.size()` bytes, little-endian.
        bytes: Bytes,
    },
    /// Codes into small codebooks, one codebook for 16 rows.
    Palette {
        /// Bits and layout of the codes.
        kind: Kind,
        /// `[tiles, kind.bytes_per_tile(cols)]`, aligned to 64 bytes.
        codes: Bytes,
        /// `[tiles, kind.codebook_len()]` int8; empty for p8.
        codebook: Bytes,
        /// `[rows]` f16, aligned to 2 bytes, all finite.
        scale: Bytes,
    },
    /// A type that the engine does not compute with (masks, indices). Kept so that listings are complete.
    Opaque {
        /// Name of the type, as in the file.
        dtype: Arc<str>,
        /// The elements.
        bytes: Bytes,
    },
}

/// A tensor of the store.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub(super) name: Arc<str>,
    pub(super) file: Option<Arc<Path>>,
    pub(super) shape: Vec<usize>,
    pub(super) data: TensorData,
}

impl Tensor {
    /// Name in the checkpoint (of a palettized tensor: without `.codes`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds it; none for tensors added from memory.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Logical shape: that of the matrix, however it is stored.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The stored parts.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// Number of weights.
    pub fn elements(&self) -> usize {
        // `bits` has computed it when the tensor was made, so it cannot overflow.
        self.shape.iter().product()
    }

    /// Name of the kind: `p2` to `p8`, `f32`, `f16`, `bf16`, or the file's own name of another type.
    pub fn kind_name(&self) -> &str {
        match &self.data {
            TensorData::Dense { dtype, .. } => dtype.name(),
            TensorData::Palette { kind, .. } => kind.name(),
            TensorData::Opaque { dtype, .. } => dtype,
        }
    }

    /// Bytes of all stored parts.
    pub fn bytes(&self) -> usize {
        match &self.data {
            TensorData::Dense { bytes, .. } | TensorData::Opaque { bytes, .. } => bytes.len(),
            TensorData::Palette { codes, codebook, scale, .. } => codes.len() + codebook.len() + scale.len(),
        }
    }

    /// The palette, as kernels read it.
    ///
    /// # Errors
    /// When the tensor is not palettized.
    pub fn palette(&self) -> Result<Palette<'_>, StoreError> {
        let (TensorData::Palette { kind, codes, codebook, scale }, [rows, cols]) =
            (&self.data, &self.shape[..])
        else {
            return Err(self.error(format!("is of kind {}, not palettized", self.kind_name())));
        };
        let scale = scale.as_u16().ok_or_else(|| self.error("its scales are not aligned"))?;
        Palette::new(*kind, *rows, *cols, codes.as_slice(), codebook.as_i8(), scale)
            .map_err(|error| self.error(error))
    }

    /// The elements as a matrix: `[shape[0], product of the rest]`; a vector is one row.
    ///
    /// # Errors
    /// When the tensor is not of a type that kernels compute with.
    pub fn dense(&self) -> Result<Dense<'_>, StoreError> {
        let TensorData::Dense { dtype, bytes } = &self.data else {
            return Err(self.error(format!("is of kind {}, must be f32, f16 or bf16", self.kind_name())));
        };
        let (rows, cols) = match &self.shape[..] {
            [] => (1, 1),
            [cols] => (1, *cols),
            [rows, rest @ ..] => (*rows, rest.iter().product()),
        };
        Dense::new(*dtype, rows, cols, bytes.as_slice()).map_err(|error| self.error(error))
    }

    /// [`Bytes::release`] of all parts.
    pub fn release(&self) {
        match &self.data {
            TensorData::Dense { bytes, .. } | TensorData::Opaque { bytes, .. } => bytes.release(),
            TensorData::Palette { codes, .. } => codes.release(),
        }
    }

    /// A number that two tensors share only if they are equal: of name, kind, shape and all bytes (XXH3, 128 bits).
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(self.name.as_bytes());
        part(self.kind_name().as_bytes());
        for &size in &self.shape {
            part(&(size as u64).to_le_bytes());
        }
        match &self.data {
            TensorData::Dense { bytes, .. } | TensorData::Opaque { bytes, .. } => part(bytes.as_slice()),
            TensorData::Palette { codes, codebook, scale, .. } => {
                [codes, codebook, scale].into_iter().for_each(|bytes| part(bytes.as_slice()));
            }
        }
        hash.digest128()
    }

    /// A [`StoreError::Weight`] about this tensor.
    pub fn error(&self, reason: impl fmt::Display) -> StoreError {
        StoreError::weight(&self.name, self.file(), reason.to_string())
    }
}
