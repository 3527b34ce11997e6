//! `Engine` and `Sequence`: a model ready to run, and the tokens that it has seen.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pocketlm_engine::graph::Graph;
use pocketlm_engine::{
    Continuation, Details, Engine, EngineError, EngineOptions, KvType, Logits, Sampler, Sequence, StepItem,
    WriteItem, WriteLimits, Written, default_rows,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::continuation::PyContinuation;
use crate::errors::{parameter, to_python};
use crate::machine::measuring_time;
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

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (graph_json, store, *, threads=None, cache_tokens, max_rows=None, precise=false, max_memory=None, kv_dtype="f16"))]
    fn new(
        py: Python<'_>,
        graph_json: &str,
        store: &PyWeightStore,
        threads: Option<usize>,
        cache_tokens: usize,
        max_rows: Option<usize>,
        precise: bool,
        max_memory: Option<u64>,
        kv_dtype: &str,
    ) -> PyResult<Self> {
        let kv = KvType::ALL.into_iter().find(|kv| kv.name() == kv_dtype);
        let kv = kv.ok_or_else(|| parameter("kv_dtype", format!("is {kv_dtype:?}, must be f16 or int8")))?;
        let store = store.shared();
        let max_rows = max_rows.unwrap_or_else(default_rows);
        let options = EngineOptions { threads, cache_tokens, max_rows, precise, kv, max_memory };
        let make = || Engine::new(Graph::parse(graph_json)?, store, &options);
        Ok(Self { engine: py.detach(make).map_err(to_python)? })
    }

    #[getter]
    fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// Threads that a step of so many rows runs on at present.
    fn step_threads(&self, py: Python<'_>, rows: usize) -> PyResult<usize> {
        py.detach(|| self.engine.step_threads(rows)).map_err(to_python)
    }

    /// Stays with the present numbers of threads, or goes on trying others.
    fn hold_threads(&self, py: Python<'_>, held: bool) -> PyResult<()> {
        py.detach(|| self.engine.hold_threads(held)).map_err(to_python)
    }

    #[getter]
    fn isa(&self) -> &'static str {
        self.engine.isa()
    }

    #[getter]
    fn kv_dtype(&self) -> &'static str {
        self.engine.kv_type().name()
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

    /// Bytes per second that the engine's threads read from its weights.
    #[pyo3(signature = (seconds=0.3))]
    fn read_bandwidth(&self, py: Python<'_>, seconds: f64) -> PyResult<f64> {
        let time = measuring_time(seconds)?;
        py.detach(|| self.engine.read_bandwidth(time)).map_err(to_python)
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

    /// Runs a step, or several: see `_core.pyi`.
    #[pyo3(signature = (items, *, steps=1, seconds=0.0))]
    fn step(
        &self,
        py: Python<'_>,
        items: Vec<Bound<'_, PyTuple>>,
        steps: usize,
        seconds: f64,
    ) -> PyResult<Vec<PyStepResult>> {
        let time = Duration::try_from_secs_f64(seconds)
            .map_err(|_| parameter("seconds", format!("is {seconds}, must be 0 or more")))?;
        let limits = WriteLimits { steps, time };
        let work = |items: &mut [WriteItem<'_>]| Ok((self.engine.write(items, limits)?, ()));
        self.run(py, &items, work).map(|(results, ())| results)
    }

    /// Makes a call of several steps that is running return after its present one.
    fn interrupt(&self) {
        self.engine.interrupt();
    }

    /// How one request goes on after its prompt.
    #[pyo3(signature = (prompt, *, max_tokens, stop_ids=None, guesses=0))]
    fn continuation(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        max_tokens: usize,
        stop_ids: Option<&Bound<'_, PyAny>>,
        guesses: usize,
    ) -> PyResult<PyContinuation> {
        let prompt = token_ids(prompt)?;
        let stops = stop_ids.map(token_ids).transpose()?.unwrap_or_default();
        Ok(PyContinuation::new(py.detach(|| Continuation::new(&prompt, max_tokens, &stops, guesses))))
    }

    /// How many tokens a draft model should guess now.
    fn drafts(&self, continuation: &PyContinuation, texts: usize) -> PyResult<usize> {
        Ok(self.engine.drafts(&*continuation.lock()?, texts))
    }

    /// Reads the weights in and starts the threads.
    fn prewarm(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.engine.prewarm()).map_err(to_python)
    }

    /// Bytes of a block of the cache.
    #[getter]
    fn block_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.engine.block_bytes()).map_err(to_python)
    }

    /// Keys and values of a sequence.
    fn export<'py>(&self, py: Python<'py>, sequence: &PySequence) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.engine.export(&sequence.sequence)).map_err(to_python)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// A sequence of what `export` gave.
    fn restore(&self, py: Python<'_>, length: usize, data: &[u8]) -> PyResult<PySequence> {
        let sequence = py.detach(|| self.engine.import(length, data)).map_err(to_python)?;
        Ok(PySequence { sequence: Arc::new(sequence) })
    }

    /// Runs one step and measures its phases, or it as a whole: see `_core.pyi`.
    #[pyo3(signature = (items, *, phases=true))]
    fn step_timed(
        &self,
        py: Python<'_>,
        items: Vec<Bound<'_, PyTuple>>,
        phases: bool,
    ) -> PyResult<(Vec<PyStepResult>, Vec<f64>)> {
        let work = |items: &mut [WriteItem<'_>]| {
            let mut steps: Vec<StepItem<'_>> = items
                .iter_mut()
                .map(|item| StepItem::new(item.sequence, item.ids, item.sampler.as_deref_mut(), item.logits))
                .collect();
            let times = if phases {
                self.engine.step_timed(&mut steps)?
            } else {
                let start = Instant::now();
                self.engine.step(&mut steps)?;
                vec![start.elapsed()]
            };
            Ok((steps.into_iter().map(|step| step.into_result().into()).collect(), times))
        };
        let (results, times) = self.run(py, &items, work)?;
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
    #[pyo3(signature = (ids, names=None))]
    fn trace<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        names: Option<Vec<String>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let ids = token_ids(ids)?;
        let traced = py.detach(|| self.engine.trace(&ids, names.as_deref())).map_err(to_python)?;
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
        work: impl FnOnce(&mut [WriteItem<'_>]) -> Result<(Vec<Written>, T), EngineError> + Send,
    ) -> PyResult<(Vec<PyStepResult>, T)> {
        let items: Vec<Item> = items.iter().map(Item::new).collect::<PyResult<_>>()?;
        let mut samplers = items.iter().map(Item::lock_sampler).collect::<PyResult<Vec<_>>>()?;
        let mut continuations = items.iter().map(Item::lock_continuation).collect::<PyResult<Vec<_>>>()?;
        let mut prepared: Vec<WriteItem<'_>> = items
            .iter()
            .zip(&mut samplers)
            .zip(&mut continuations)
            .map(|((item, sampler), continuation)| {
                let sampler: Option<&mut Sampler> = sampler.as_deref_mut();
                let continuation: Option<&mut Continuation> = continuation.as_deref_mut();
                WriteItem {
                    sequence: &item.sequence,
                    ids: &item.ids,
                    sampler,
                    logits: item.logits,
                    continuation,
                }
            })
            .collect();
        let (written, found) = py.detach(|| work(&mut prepared)).map_err(to_python)?;
        let vocab = self.engine.vocab_size();
        let results = written.into_iter().map(|written| result(py, written, vocab));
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
    continuation: Option<Py<PyContinuation>>,
}

impl Item {
    fn new(item: &Bound<'_, PyTuple>) -> PyResult<Self> {
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
        Ok(Self { sequence, ids: token_ids(&ids)?, sampler, logits, continuation })
    }

    fn lock_sampler(&self) -> PyResult<Option<MutexGuard<'_, Sampler>>> {
        self.sampler.as_ref().map(|sampler| sampler.get().lock()).transpose()
    }

    fn lock_continuation(&self) -> PyResult<Option<MutexGuard<'_, Continuation>>> {
        self.continuation.as_ref().map(|continuation| continuation.get().lock()).transpose()
    }
}

/// Token ids from an array of integers or a sequence of them.
pub(crate) fn token_ids(ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    // Lists first: asking whether something is an array imports NumPy, which takes longer than loading a model.
    let plain = ids.is_instance_of::<PyList>() || ids.is_instance_of::<PyTuple>();
    if !plain && let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
        return Ok(array.as_array().to_vec());
    }
    let ids: Vec<i64> = ids.extract().map_err(|_| parameter("ids", "must be integers, in one dimension"))?;
    let narrow = |id: i64| u32::try_from(id).map_err(|_| parameter("ids", format!("{id} is no token")));
    ids.into_iter().map(narrow).collect()
}

fn result(py: Python<'_>, written: Written, vocab: usize) -> PyResult<PyStepResult> {
    let Written { tokens, details, logits } = written;
    let logits = if logits.is_empty() {
        None
    } else {
        let rows = logits.len() / vocab;
        Some(PyArray1::from_vec(py, logits).reshape([rows, vocab])?.into_any().unbind())
    };
    Ok(PyStepResult { tokens, details, logits })
}
