//! The items of a step, and `StepResult`.

use std::sync::{Arc, MutexGuard};

use numpy::{PyArray1, PyArrayMethods};
use pocketlm_engine::{Continuation, Details, Logits, Sampler, Sequence, Written};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::arguments::token_ids;
use crate::continuation::PyContinuation;
use crate::errors::parameter;
use crate::sampler::PySampler;
use crate::sequence::PySequence;

/// What a step gives for one item.
#[pyclass(frozen, name = "StepResult", module = "pocketlm._core")]
pub(crate) struct PyStepResult {
    #[pyo3(get)]
    tokens: Vec<u32>,
    details: Vec<Details>,
    /// float32 [rows, vocab_size].
    #[pyo3(get)]
    logits: Option<Py<PyAny>>,
}

/// A token's log-probability, and the likeliest tokens with theirs.
type Logprob = (f32, Vec<(u32, f32)>);

#[pymethods]
impl PyStepResult {
    /// The last token.
    #[getter]
    fn token(&self) -> Option<u32> {
        self.tokens.last().copied()
    }

    /// The last token's log-probability.
    #[getter]
    fn logprob(&self) -> Option<f32> {
        self.details.last().and_then(|details| details.logprob)
    }

    /// The likeliest tokens in the place of the last one.
    #[getter]
    fn top(&self) -> Vec<(u32, f32)> {
        self.details.last().map(|details| details.top.clone()).unwrap_or_default()
    }

    /// Log-probability and likeliest tokens of each token, if the sampler reports them.
    #[getter]
    fn logprobs(&self) -> Vec<Logprob> {
        let known = |details: &Details| Some((details.logprob?, details.top.clone()));
        self.details.iter().filter_map(known).collect()
    }
}

impl PyStepResult {
    /// What an engine with so many logits has written.
    pub(crate) fn new(py: Python<'_>, written: Written, vocab: usize) -> PyResult<Self> {
        let Written { tokens, details, logits } = written;
        let logits = if logits.is_empty() {
            None
        } else {
            let rows = logits.len() / vocab;
            Some(PyArray1::from_vec(py, logits).reshape([rows, vocab])?.into_any().unbind())
        };
        Ok(Self { tokens, details, logits })
    }
}

/// An item of a step, owned while the interpreter is released.
pub(crate) struct Item {
    pub sequence: Arc<Sequence>,
    pub ids: Vec<u32>,
    sampler: Option<Py<PySampler>>,
    pub logits: Logits,
    continuation: Option<Py<PyContinuation>>,
}

impl Item {
    pub fn new(item: &Bound<'_, PyAny>) -> PyResult<Self> {
        let item = item.cast::<PyTuple>().map_err(|_| parameter("items", "must be tuples"))?;
        let part = |index| item.get_item(index);
        if !(4..=5).contains(&item.len()) {
            return Err(parameter("items", format!("have {} members, must have 4 or 5", item.len())));
        }
        let sequence: Bound<'_, PySequence> = part(0)?.extract()?;
        let (ids, sampler, logits) = (part(1)?, part(2)?.extract()?, part(3)?.extract::<String>()?);
        let continuation = if item.len() == 5 { part(4)?.extract()? } else { None };
        let logits = match logits.as_str() {
            "none" => Logits::None,
            "last" => Logits::Last,
            "all" => Logits::All,
            other => return Err(parameter("logits", format!("is {other:?}, must be none, last or all"))),
        };
        let sequence = Arc::clone(&sequence.get().sequence);
        Ok(Self { sequence, ids: token_ids("ids", &ids)?, sampler, logits, continuation })
    }

    pub fn lock_sampler(&self) -> PyResult<Option<MutexGuard<'_, Sampler>>> {
        self.sampler.as_ref().map(|sampler| sampler.get().lock()).transpose()
    }

    pub fn lock_continuation(&self) -> PyResult<Option<MutexGuard<'_, Continuation>>> {
        self.continuation.as_ref().map(|continuation| continuation.get().lock()).transpose()
    }
}
