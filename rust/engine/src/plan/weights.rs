//! The weights of a plan: matrices in place, vectors as f32.

use std::collections::BTreeMap;
use std::sync::Arc;

use pocketlm_kernels::{Dense, DenseType, NormKind, Palette};

use crate::error::EngineError;
use crate::graph::Weight;
use crate::store::{Bytes, Tensor, TensorData, WeightStore, widen};

/// A matrix as kernels read it.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// Codes into codebooks.
    Palette(Arc<Tensor>),
    /// Elements, row-major: the tensor's own, or the transpose of a tensor that is stored as [inputs, outputs].
    Dense { dtype: DenseType, rows: usize, cols: usize, bytes: Bytes },
}

impl Matrix {
    /// The palette, or a defect: callers know the kind, and the store checked the parts.
    pub fn palette(&self) -> Palette<'_> {
        match self {
            Self::Palette(tensor) => tensor.palette().unwrap_or_else(|error| panic!("{error}")),
            Self::Dense { .. } => panic!("not a palette"),
        }
    }

    /// The dense matrix, or a defect: callers know the kind.
    pub fn dense(&self) -> Dense<'_> {
        match self {
            Self::Dense { dtype, rows, cols, bytes } => {
                match Dense::new(*dtype, *rows, *cols, bytes.as_slice()) {
                    Ok(dense) => dense,
                    Err(error) => panic!("dense matrix: {error}"),
                }
            }
            Self::Palette(tensor) => panic!("{:?} is a palette", tensor.name()),
        }
    }

    /// Whether activations are quantized for it.
    pub fn is_palette(&self) -> bool {
        matches!(self, Self::Palette(_))
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        match self {
            Self::Palette(tensor) => tensor.shape()[0],
            Self::Dense { rows, .. } => *rows,
        }
    }

    /// Its elements, or its codes without codebooks and scales.
    pub fn main_bytes(&self) -> &[u8] {
        match self {
            Self::Palette(tensor) => match tensor.data() {
                TensorData::Palette { codes: bytes, .. }
                | TensorData::Dense { bytes, .. }
                | TensorData::Opaque { bytes, .. } => bytes.as_slice(),
            },
            Self::Dense { bytes, .. } => bytes.as_slice(),
        }
    }

    /// Bytes that a product with it reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Palette(tensor) => tensor.bytes(),
            Self::Dense { bytes, .. } => bytes.len(),
        }
    }
}

/// Gain and bias of a norm, with its numbers.
#[derive(Debug)]
pub(crate) struct NormVectors {
    pub kind: NormKind,
    pub eps: f32,
    pub weight: Option<usize>,
    pub bias: Option<usize>,
    pub offset: f32,
}

/// All weights that a plan reads.
#[derive(Debug, Default)]
pub(crate) struct Weights {
    pub matrices: Vec<Matrix>,
    pub vectors: Vec<Vec<f32>>,
    pub norms: Vec<NormVectors>,
    /// Matrices and vectors by the name under which they were found.
    known: BTreeMap<(Arc<str>, bool), usize>,
    known_vectors: BTreeMap<Arc<str>, usize>,
}

impl Weights {
    /// Finds a matrix, once.
    pub fn matrix(&mut self, store: &WeightStore, weight: &Weight) -> Result<usize, EngineError> {
        let tensor = find(store, weight)?;
        check_shape(tensor, weight)?;
        let key = (Arc::<str>::from(tensor.name()), weight.transposed);
        if let Some(&index) = self.known.get(&key) {
            return Ok(index);
        }
        let matrix = bind(tensor, weight)?;
        self.matrices.push(matrix);
        self.known.insert(key, self.matrices.len() - 1);
        Ok(self.matrices.len() - 1)
    }

    /// Finds a vector, once, as f32.
    pub fn vector(&mut self, store: &WeightStore, weight: &Weight) -> Result<usize, EngineError> {
        let tensor = find(store, weight)?;
        expect_shape(tensor, &weight.shape)?;
        let key = Arc::<str>::from(tensor.name());
        if let Some(&index) = self.known_vectors.get(&key) {
            return Ok(index);
        }
        let TensorData::Dense { dtype, bytes } = tensor.data() else {
            return Err(tensor
                .error(format!("is of kind {}, must be f32, f16 or bf16", tensor.kind_name()))
                .into());
        };
        self.vectors.push(widen(*dtype, bytes.as_slice()));
        self.known_vectors.insert(key, self.vectors.len() - 1);
        Ok(self.vectors.len() - 1)
    }

    /// Bytes of all matrices and vectors.
    pub fn bytes(&self) -> u64 {
        let matrices: usize = self.matrices.iter().map(Matrix::bytes).sum();
        let vectors: usize = self.vectors.iter().map(|vector| vector.len() * 4).sum();
        (matrices + vectors) as u64
    }
}

fn find<'a>(store: &'a WeightStore, weight: &Weight) -> Result<&'a Arc<Tensor>, EngineError> {
    match &weight.shared_with {
        Some(other) if !store.contains(&weight.name) => Ok(store.get(other)?),
        _ => Ok(store.get(&weight.name)?),
    }
}

fn expect_shape(tensor: &Tensor, wanted: &[usize]) -> Result<(), EngineError> {
    if tensor.shape() == wanted {
        return Ok(());
    }
    Err(tensor.error(format!("has shape {:?}, the model wants {wanted:?}", tensor.shape())).into())
}

/// A weight may be declared several times, each time in the shape that it has.
fn check_shape(tensor: &Tensor, weight: &Weight) -> Result<(), EngineError> {
    match (tensor.data(), &weight.shape[..]) {
        (TensorData::Dense { .. }, &[rows, cols]) if weight.transposed => expect_shape(tensor, &[cols, rows]),
        _ => expect_shape(tensor, &weight.shape),
    }
}

/// The matrix of a tensor whose shape was checked.
fn bind(tensor: &Arc<Tensor>, weight: &Weight) -> Result<Matrix, EngineError> {
    match tensor.data() {
        TensorData::Palette { .. } => {
            tensor.palette()?;
            Ok(Matrix::Palette(Arc::clone(tensor)))
        }
        TensorData::Dense { dtype, bytes } => {
            let [rows, cols] = weight.shape[..] else {
                return Err(tensor.error(format!("is declared with shape {:?}", weight.shape)).into());
            };
            let bytes = if weight.transposed {
                let what = format!("the transpose of {:?}", tensor.name());
                let source = bytes.as_slice();
                Bytes::written(source.len(), &what, |to| transpose(source, to, cols, rows, dtype.size()))?
            } else {
                bytes.clone()
            };
            let dtype = *dtype;
            Ok(Matrix::Dense { dtype, rows, cols, bytes })
        }
        TensorData::Opaque { .. } => {
            Err(tensor.error(format!("is of type {}, which is not computed with", tensor.kind_name())).into())
        }
    }
}

/// Writes the transpose of a matrix of `rows` x `cols` elements of `size` bytes.
fn transpose(source: &[u8], target: &mut [u8], rows: usize, cols: usize, size: usize) {
    for (row, line) in source.chunks_exact(cols * size).enumerate() {
        for (col, element) in line.chunks_exact(size).enumerate() {
            target[(col * rows + row) * size..][..size].copy_from_slice(element);
        }
    }
}
