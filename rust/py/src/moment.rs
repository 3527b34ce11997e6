//! Second moments for `pocketlm.palettize`: in the making, and factored.

use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pocketlm_engine::EngineError;
use pocketlm_engine::palettize::{Factored, SecondMoment};
use pocketlm_engine::pool::thread_count;
use pyo3::prelude::*;

use crate::errors::to_python;
use crate::store::palette_kind;

/// A second moment in the making: see `_core.pyi`.
#[pyclass(frozen, name = "SecondMoment", module = "pocketlm._core")]
pub(crate) struct PySecondMoment {
    width: usize,
    inner: Mutex<Option<SecondMoment>>,
}

#[pymethods]
impl PySecondMoment {
    #[new]
    fn new(width: usize) -> PyResult<Self> {
        let inner = SecondMoment::new(width).map_err(to_python)?;
        Ok(Self { width, inner: Mutex::new(Some(inner)) })
    }

    /// Adds the products of rows.
    #[pyo3(signature = (x, weights=None, *, threads=None))]
    fn add(
        &self,
        py: Python<'_>,
        x: PyReadonlyArray2<'_, f32>,
        weights: Option<PyReadonlyArray1<'_, f32>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        let threads = thread_count(threads).map_err(to_python)?;
        let x = x.as_array();
        if x.ncols() != self.width {
            let reason = format!("has {} columns, not {}", x.ncols(), self.width);
            return Err(to_python(EngineError::parameter("x", reason)));
        }
        // Copies: the arrays' owner may change them while the lock is released.
        let x: Vec<f32> = x.iter().copied().collect();
        let weights = weights.map(|weights| weights.as_array().iter().copied().collect::<Vec<f32>>());
        py.detach(|| {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let moment = inner.as_ref().ok_or_else(finished)?;
            moment.add(&x, weights.as_deref(), threads)
        })
        .map_err(to_python)
    }

    /// The moment as an array.
    fn finish(&self, py: Python<'_>, factor: f32) -> PyResult<Py<PyAny>> {
        let values = py
            .detach(|| {
                let moment = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
                moment.ok_or_else(finished)?.finish(factor)
            })
            .map_err(to_python)?;
        Ok(PyArray1::from_vec(py, values).reshape([self.width, self.width])?.into_any().unbind())
    }
}

fn finished() -> EngineError {
    EngineError::parameter("moment", "is finished already")
}

/// A damped second moment with its factors: see `_core.pyi`.
#[pyclass(frozen, name = "Hessian", module = "pocketlm._core")]
pub(crate) struct PyHessian {
    pub(crate) inner: Arc<Factored>,
}

#[pymethods]
impl PyHessian {
    #[new]
    #[pyo3(signature = (moment, kind, *, damping, threads=None))]
    fn new(
        py: Python<'_>,
        moment: PyReadonlyArray2<'_, f32>,
        kind: &str,
        damping: f64,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let (kind, threads) = (palette_kind(kind)?, thread_count(threads).map_err(to_python)?);
        let moment = moment.as_array();
        if moment.nrows() != moment.ncols() {
            let reason = format!("has shape [{}, {}], not that of a square", moment.nrows(), moment.ncols());
            return Err(to_python(EngineError::parameter("moment", reason)));
        }
        let moment: Vec<f32> = moment.iter().copied().collect();
        let inner = py.detach(|| Factored::new(moment, damping, kind, threads)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Number of inputs.
    #[getter]
    fn size(&self) -> usize {
        self.inner.size()
    }
}
