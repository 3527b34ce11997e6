//! Errors of the engine as the exceptions of `pocketlm.errors`.

use pocketlm_engine::EngineError;
use pocketlm_engine::store::StoreError;
use pyo3::prelude::*;

/// The Python exception of an engine's error. The classes are imported only now: they are Python's.
pub(crate) fn to_python(error: impl Into<EngineError>) -> PyErr {
    let error = error.into();
    Python::attach(|py| exception(py, class_of(&error), &error.to_string()).unwrap_or_else(|failure| failure))
}

/// A `ParameterError` about an argument.
pub(crate) fn parameter(name: &str, reason: impl Into<String>) -> PyErr {
    to_python(EngineError::Parameter { name: name.into(), reason: reason.into() })
}

fn exception(py: Python<'_>, class: &str, message: &str) -> PyResult<PyErr> {
    let instance = py.import("pocketlm.errors")?.getattr(class)?.call1((message,))?;
    Ok(PyErr::from_value(instance))
}

fn class_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Store(StoreError::Format { .. }) => "FileFormatError",
        EngineError::Store(StoreError::Missing { .. }) => "MissingFileError",
        EngineError::Store(StoreError::Io { .. }) => "StorageError",
        EngineError::Store(StoreError::Weight { .. }) => "WeightError",
        EngineError::Graph { .. } => "ConfigError",
        EngineError::Parameter { .. } => "ParameterError",
        EngineError::ContextLength { .. } => "ContextLengthError",
        EngineError::Memory { .. } | EngineError::CacheFull { .. } => "MemoryLimitError",
        EngineError::Unsupported(_) => "UnsupportedError",
        EngineError::Logits(_) => "WeightError",
        EngineError::Internal(_) => "InternalError",
    }
}
