//! One tensor: what it is, where its bytes are, and whether its values are numbers.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use super::bytes::Bytes;
use super::error::StoreError;
use super::kind::PaletteKind;

/// Types of dense tensors that the engine computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl DenseType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Lower-case name, as in recipes and listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    pub(super) fn from_dtype(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }
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
        kind: PaletteKind,
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
        // Checked against the bytes when the tensor was made, so it cannot overflow.
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
            TensorData::Palette {
                codes,
                codebook,
                scale,
                ..
            } => codes.len() + codebook.len() + scale.len(),
        }
    }

    /// A [`StoreError::Weight`] about this tensor.
    pub fn error(&self, reason: impl fmt::Display) -> StoreError {
        StoreError::weight(&self.name, self.file(), reason.to_string())
    }
}
