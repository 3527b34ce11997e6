//! `Continuation`: when a request's text ends, and what is guessed of it.

use std::sync::{Mutex, MutexGuard, TryLockError};

use pocketlm_engine::{Continuation, EngineError};
use pyo3::prelude::*;

use crate::arguments::token_ids;
use crate::errors::{parameter, to_python};

/// How a request goes on after its prompt.
#[pyclass(frozen, name = "Continuation", module = "pocketlm._core")]
pub(crate) struct PyContinuation {
    continuation: Mutex<Continuation>,
}

impl PyContinuation {
    pub(crate) fn new(continuation: Continuation) -> Self {
        Self { continuation: Mutex::new(continuation) }
    }

    /// Never waited for, as the sampler is not.
    pub(crate) fn lock(&self) -> PyResult<MutexGuard<'_, Continuation>> {
        self.continuation.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => parameter("continuation", "is in use by another item or step"),
            TryLockError::Poisoned(_) => {
                to_python(EngineError::Internal("an earlier failure left this request unusable".into()))
            }
        })
    }
}

#[pymethods]
impl PyContinuation {
    /// Guesses of a draft model at the next tokens, which took so many seconds.
    fn draft(&self, ids: &Bound<'_, PyAny>, seconds: f64) -> PyResult<()> {
        let ids = token_ids("ids", ids)?;
        self.lock()?.draft(&ids, seconds);
        Ok(())
    }

    /// The draft model was not asked, as it would not have paid.
    fn pass_draft(&self) -> PyResult<()> {
        self.lock()?.pass_draft();
        Ok(())
    }

    /// Tokens that were guessed and computed.
    #[getter]
    fn proposed(&self) -> PyResult<u64> {
        Ok(self.lock()?.counts().0)
    }

    /// Those of them that were right.
    #[getter]
    fn accepted(&self) -> PyResult<u64> {
        Ok(self.lock()?.counts().1)
    }
}
