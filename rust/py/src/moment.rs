//! Second moments for `pocketlm.palettize`: in the making, and factored.

use std::sync::{Arc, Mutex, PoisonError};

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pocketlm_engine::EngineError;
use pocketlm_engine::palettize::{Factored, SecondMoment};
use pyo3::prelude::*;

use crate::arguments::{Integer, copied, threads as asked};
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
    fn new(width: Integer) -> PyResult<Self> {
        let width = width.to("width")?;
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
        threads: Option<Integer>,
    ) -> PyResult<()> {
        let threads = asked(threads)?;
        if x.shape()[1] != self.width {
            let reason = format!("has {} columns, not {}", x.shape()[1], self.width);
            return Err(to_python(EngineError::parameter("x", reason)));
        }
        let x = copied("x", &x)?;
        let weights = weights.map(|weights| copied("weights", &weights)).transpose()?;
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
        threads: Option<Integer>,
    ) -> PyResult<Self> {
        let (kind, threads) = (palette_kind(kind)?, asked(threads)?);
        if moment.shape()[0] != moment.shape()[1] {
            let reason = format!("has shape {:?}, not that of a square", moment.shape());
            return Err(to_python(EngineError::parameter("moment", reason)));
        }
        let moment = copied("moment", &moment)?;
        let inner = py.detach(|| Factored::new(moment, damping, kind, threads)).map_err(to_python)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Number of inputs.
    #[getter]
    fn size(&self) -> usize {
        self.inner.size()
    }
}
