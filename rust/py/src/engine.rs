//! `Engine` and `Sequence`: a model ready to run, and the tokens that it has seen.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pocketlm_engine::graph::Graph;
use pocketlm_engine::{Engine, EngineError, EngineOptions, Logits, Sampler, Sequence, StepItem, StepResult};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::{parameter, to_python};
use crate::sampler::PySampler;
use crate::store::PyWeightStore;

/// A model ready to run.
#[pyclass(frozen, name = "Engine", module = "pocketlm._core")]
pub(crate) struct PyEngine {
    engine: Engine,
}

/// Tokens whose keys and values the engine keeps.
#[pyclass(frozen, name = "Sequence", module = "pocketlm._core")]
pub(crate) struct PySequence {
    sequence: Arc<Sequence>,
}

/// What a step gives for one item.
#[pyclass(frozen, get_all, name = "StepResult", module = "pocketlm._core")]
pub(crate) struct PyStepResult {
    token: Option<u32>,
    logprob: Option<f32>,
    top: Vec<(u32, f32)>,
    /// float32 [rows, vocab_size].
    logits: Option<Py<PyAny>>,
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (graph_json, store, *, threads=None, cache_tokens, max_rows=512, precise=false, max_memory=None))]
    fn new(
        py: Python<'_>,
        graph_json: &str,
        store: &PyWeightStore,
        threads: Option<usize>,
        cache_tokens: usize,
        max_rows: usize,
        precise: bool,
        max_memory: Option<u64>,
    ) -> PyResult<Self> {
        let store = store.shared();
        let options = EngineOptions { threads, cache_tokens, max_rows, precise, max_memory };
        let make = || Engine::new(Graph::parse(graph_json)?, store, &options);
        Ok(Self { engine: py.detach(make).map_err(to_python)? })
    }

    #[getter]
    fn threads(&self) -> usize {
        self.engine.threads()
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.engine.isa()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.engine.vocab_size()
    }

    #[getter]
    fn context_length(&self) -> usize {
        self.engine.context_length()
    }

    #[getter]
    fn max_rows(&self) -> usize {
        self.engine.max_rows()
    }

    #[getter]
    fn cache_tokens(&self) -> usize {
        self.engine.cache_tokens()
    }

    #[getter]
    fn cache_tokens_free(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.engine.cache_tokens_free()).map_err(to_python)
    }

    #[getter]
    fn weight_bytes_per_token(&self) -> u64 {
        self.engine.weight_bytes_per_token()
    }

    /// Bytes of weights, cache and scratch.
    fn memory(&self) -> HashMap<&'static str, u64> {
        let memory = self.engine.memory();
        HashMap::from([("weights", memory.weights), ("cache", memory.cache), ("scratch", memory.scratch)])
    }

    /// A new, empty sequence.
    fn sequence(&self, py: Python<'_>) -> PyResult<PySequence> {
        let sequence = py.detach(|| self.engine.sequence()).map_err(to_python)?;
        Ok(PySequence { sequence: Arc::new(sequence) })
    }

    /// Runs one step: see `_core.pyi`.
    fn step(&self, py: Python<'_>, items: Vec<Bound<'_, PyTuple>>) -> PyResult<Vec<PyStepResult>> {
        self.run(py, &items, |prepared| self.engine.step(prepared)).map(|(results, ())| results)
    }

    /// Runs one step and measures its phases: see `_core.pyi`.
    fn step_timed(
        &self,
        py: Python<'_>,
        items: Vec<Bound<'_, PyTuple>>,
    ) -> PyResult<(Vec<PyStepResult>, Vec<f64>)> {
        let (results, times) = self.run(py, &items, |prepared| self.engine.step_timed(prepared))?;
        Ok((results, times.iter().map(Duration::as_secs_f64).collect()))
    }

    /// What a step consists of: see `_core.pyi`.
    fn phases<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let found = py.detach(|| self.engine.phases()).map_err(to_python)?;
        found
            .into_iter()
            .map(|phase| {
                let entry = PyDict::new(py);
                entry.set_item("kind", phase.kind)?;
                entry.set_item("members", phase.members)?;
                entry.set_item("tail", phase.tail)?;
                Ok(entry)
            })
            .collect()
    }

    /// The result of every operation of a prefill: see `_core.pyi`.
    fn trace<'py>(&self, py: Python<'py>, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        let ids = token_ids(ids)?;
        let traced = py.detach(|| self.engine.trace(&ids)).map_err(to_python)?;
        let found = PyDict::new(py);
        for op in traced {
            found.set_item(op.name, PyArray1::from_vec(py, op.values).reshape([ids.len(), op.width])?)?;
        }
        Ok(found)
    }

    /// Gives all memory back.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.engine.close()).map_err(to_python)
    }
}

impl PyEngine {
    /// Checks and locks the items, and does some work on them without the interpreter.
    fn run<T: Send>(
        &self,
        py: Python<'_>,
        items: &[Bound<'_, PyTuple>],
        work: impl FnOnce(&mut [StepItem<'_>]) -> Result<T, EngineError> + Send,
    ) -> PyResult<(Vec<PyStepResult>, T)> {
        let items: Vec<Item> = items.iter().map(Item::new).collect::<PyResult<_>>()?;
        let mut samplers = items.iter().map(Item::lock_sampler).collect::<PyResult<Vec<_>>>()?;
        let mut prepared: Vec<StepItem<'_>> = items
            .iter()
            .zip(&mut samplers)
            .map(|(item, sampler)| {
                let sampler: Option<&mut Sampler> = sampler.as_deref_mut();
                StepItem::new(&item.sequence, &item.ids, sampler, item.logits)
            })
            .collect();
        let found = py.detach(|| work(&mut prepared)).map_err(to_python)?;
        let vocab = self.engine.vocab_size();
        let results = prepared.into_iter().map(|item| result(py, item.into_result(), vocab));
        Ok((results.collect::<PyResult<_>>()?, found))
    }
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
    fn truncate(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        py.detach(|| self.sequence.truncate(length)).map_err(to_python)
    }

    /// Gives the memory back.
    fn free(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.sequence.free()).map_err(to_python)
    }
}

/// An item of a step, owned while the interpreter is released.
struct Item {
    sequence: Arc<Sequence>,
    ids: Vec<u32>,
    sampler: Option<Py<PySampler>>,
    logits: Logits,
}

impl Item {
    fn new(item: &Bound<'_, PyTuple>) -> PyResult<Self> {
        let (sequence, ids, sampler, logits) =
            item.extract::<(Bound<'_, PySequence>, Bound<'_, PyAny>, Option<Py<PySampler>>, String)>()?;
        let logits = match logits.as_str() {
            "none" => Logits::None,
            "last" => Logits::Last,
            "all" => Logits::All,
            other => return Err(parameter("logits", format!("is {other:?}, must be none, last or all"))),
        };
        Ok(Self { sequence: Arc::clone(&sequence.get().sequence), ids: token_ids(&ids)?, sampler, logits })
    }

    fn lock_sampler(&self) -> PyResult<Option<MutexGuard<'_, Sampler>>> {
        self.sampler.as_ref().map(|sampler| sampler.get().lock()).transpose()
    }
}

/// Token ids from an array of integers or a sequence of them.
pub(crate) fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().to_vec());
    }
    let ids: Vec<i64> = ids.extract().map_err(|_| parameter("ids", "must be integers, in one dimension"))?;
    let narrow = |id: i64| u32::try_from(id).map_err(|_| parameter("ids", format!("{id} is no token")));
    ids.into_iter().map(narrow).collect()
}

fn result(py: Python<'_>, result: StepResult, vocab: usize) -> PyResult<PyStepResult> {
    let StepResult { token, logprob, top, logits } = result;
    let logits = if logits.is_empty() {
        None
    } else {
        let rows = logits.len() / vocab;
        Some(PyArray1::from_vec(py, logits).reshape([rows, vocab])?.into_any().unbind())
    };
    Ok(PyStepResult { token, logprob, top, logits })
}
