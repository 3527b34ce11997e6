//! What the first step would wait for, done beforehand.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Engine;
use crate::error::EngineError;
use crate::plan::Matrix;
use crate::pool::ThreadPool;
use crate::store::{Bytes, TensorData};

impl Engine {
    /// Reads the weights' pages in and starts the threads.
    ///
    /// # Errors
    /// When the engine is closed, or a worker fails.
    pub fn prewarm(&self) -> Result<(), EngineError> {
        let parts = weight_bytes(self)?;
        let next = AtomicUsize::new(0);
        ThreadPool::global().run(self.threads(), |_| {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                part.prefetch();
            }
        })
    }
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
