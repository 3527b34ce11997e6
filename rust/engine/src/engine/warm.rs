//! What the first step would wait for, done beforehand.

use std::sync::atomic::{AtomicUsize, Ordering};

use pocketlm_kernels::Kind;

use super::Engine;
use crate::error::EngineError;
use crate::plan::Matrix;
use crate::pool::ThreadPool;
use crate::store::{Bytes, TensorData};

impl Engine {
    /// Reads the weights' pages in, starts the threads, and chooses the kernels for prompts of any length.
    ///
    /// # Errors
    /// When the engine is closed, or a worker fails.
    pub fn prewarm(&self) -> Result<(), EngineError> {
        let parts = weight_bytes(self)?;
        for kind in palettes(self)? {
            self.inner.facts.kernels.prompt_kernel(kind, 16);
            self.inner.facts.kernels.prompt_kernel(kind, usize::MAX);
        }
        let next = AtomicUsize::new(0);
        ThreadPool::global().run(self.threads(), |_| {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                part.prefetch();
            }
        })
    }
}

/// Every kind of palettized weights.
fn palettes(engine: &Engine) -> Result<Vec<Kind>, EngineError> {
    let mut locked = engine.inner.lock()?;
    let matrices = &locked.state()?.plan.weights.matrices;
    let kind = |matrix: &Matrix| match matrix {
        Matrix::Palette(tensor) => match tensor.data() {
            TensorData::Palette { kind, .. } => Some(*kind),
            _ => None,
        },
        Matrix::Dense { .. } => None,
    };
    Ok(Kind::ALL.into_iter().filter(|&wanted| matrices.iter().any(|m| kind(m) == Some(wanted))).collect())
}

/// Every matrix's bytes; vectors were read when the engine was made.
fn weight_bytes(engine: &Engine) -> Result<Vec<Bytes>, EngineError> {
    let mut locked = engine.inner.lock()?;
    let mut parts = Vec::new();
    for matrix in &locked.state()?.plan.weights.matrices {
        match matrix {
            Matrix::Dense { bytes, .. } => parts.push(bytes.clone()),
            Matrix::Palette(tensor) => {
                if let TensorData::Palette { codes, codebook, scale, .. } = tensor.data() {
                    parts.extend([codes.clone(), codebook.clone(), scale.clone()]);
                }
            }
        }
    }
    Ok(parts)
}
