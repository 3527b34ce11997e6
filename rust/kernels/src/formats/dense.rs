//! A weight that is not palettized, in place as it lies in a checkpoint.

use crate::error::{KernelError, expect_len, product};

/// The element type of a dense weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl DenseType {
    /// All types.
    pub const ALL: [DenseType; 3] = [DenseType::F16, DenseType::Bf16, DenseType::F32];

    /// The name in reports and in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            DenseType::F16 => "f16",
            DenseType::Bf16 => "bf16",
            DenseType::F32 => "f32",
        }
    }

    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            DenseType::F16 | DenseType::Bf16 => 2,
            DenseType::F32 => 4,
        }
    }
}

/// A dense weight of `rows` outputs × `cols` inputs, row-major, little-endian, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    pub(crate) dtype: DenseType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: &'a [u8],
}

impl<'a> Dense<'a> {
    /// Wraps the bytes of a tensor.
    ///
    /// # Errors
    /// When their number is not rows × cols × element size.
    pub fn new(dtype: DenseType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, KernelError> {
        let bytes = product("dense weight", &[rows, cols, dtype.size()])?;
        expect_len("bytes of a dense weight", data.len(), bytes)?;
        Ok(Self { dtype, rows, cols, data })
    }

    /// Wraps float32 elements.
    ///
    /// # Errors
    /// When their number is not rows × cols.
    pub fn from_f32(rows: usize, cols: usize, data: &'a [f32]) -> Result<Self, KernelError> {
        // SAFETY: the bytes of initialised floats are initialised bytes, of lower alignment, in the same memory.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
        Self::new(DenseType::F32, rows, cols, bytes)
    }

    /// Wraps the bits of f16 or bf16 elements.
    ///
    /// # Errors
    /// When their number is not rows × cols, or `dtype` is not a 16-bit type.
    pub fn from_u16(
        dtype: DenseType,
        rows: usize,
        cols: usize,
        data: &'a [u16],
    ) -> Result<Self, KernelError> {
        if dtype.size() != 2 {
            return Err(KernelError::Invalid {
                what: "dense weight",
                reason: "16-bit elements need a 16-bit type",
            });
        }
        // SAFETY: the bytes of initialised integers are initialised bytes, of lower alignment, in the same memory.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
        Self::new(dtype, rows, cols, bytes)
    }

    /// The element type.
    pub fn dtype(&self) -> DenseType {
        self.dtype
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of one row.
    pub fn row_bytes(&self, row: usize) -> Option<&'a [u8]> {
        let n = self.cols * self.dtype.size();
        (row < self.rows).then(|| &self.data[row * n..(row + 1) * n])
    }
}
