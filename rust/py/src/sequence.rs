//! `Sequence`: the tokens that an engine has seen.

use std::sync::Arc;

use pocketlm_engine::Sequence;
use pyo3::prelude::*;

use crate::arguments::Integer;
use crate::errors::to_python;

/// Tokens whose keys and values the engine keeps.
#[pyclass(frozen, name = "Sequence", module = "pocketlm._core")]
pub(crate) struct PySequence {
    pub(crate) sequence: Arc<Sequence>,
}

#[pymethods]
impl PySequence {
    #[getter]
    fn length(&self) -> usize {
        self.sequence.length()
    }

    /// A sequence with the same tokens, sharing memory until one writes.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let sequence = py.detach(|| self.sequence.fork()).map_err(to_python)?;
        Ok(Self { sequence: Arc::new(sequence) })
    }

    /// Forgets the tokens from `length` on.
    fn truncate(&self, py: Python<'_>, length: Integer) -> PyResult<()> {
        let length = length.to("length")?;
        py.detach(|| self.sequence.truncate(length)).map_err(to_python)
    }

    /// Gives the memory back.
    fn free(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.sequence.free()).map_err(to_python)
    }
}
