//! `Engine`: a model ready to run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use numpy::{PyArray1, PyArrayMethods};
use pocketlm_engine::graph::Graph;
use pocketlm_engine::{
    Continuation, Engine, EngineError, EngineOptions, KvType, Sampler, StepItem, WriteItem, WriteLimits,
    Written, default_rows,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arguments::{Integer, MOST_ELEMENTS, elements, optional, token_ids};
use crate::continuation::PyContinuation;
use crate::errors::{parameter, to_python};
use crate::machine::measuring_time;
use crate::sequence::PySequence;
use crate::step::{Item, PyStepResult};
use crate::store::PyWeightStore;

/// A model ready to run.
#[pyclass(frozen, name = "Engine", module = "pocketlm._core")]
pub(crate) struct PyEngine {
    engine: Engine,
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (graph_json, store, *, threads=None, cache_tokens, max_rows=None, precise=false, max_memory=None, kv_dtype="f16"))]
    fn new(
        py: Python<'_>,
        graph_json: &str,
        store: &PyWeightStore,
        threads: Option<Integer>,
        cache_tokens: Integer,
        max_rows: Option<Integer>,
        precise: bool,
        max_memory: Option<Integer>,
        kv_dtype: &str,
    ) -> PyResult<Self> {
        let kv = KvType::ALL.into_iter().find(|kv| kv.name() == kv_dtype);
        let kv = kv.ok_or_else(|| parameter("kv_dtype", format!("is {kv_dtype:?}, must be f16 or int8")))?;
        let store = store.shared();
        let options = EngineOptions {
            threads: optional("threads", threads)?,
            cache_tokens: cache_tokens.to("cache_tokens")?,
            max_rows: optional("max_rows", max_rows)?.unwrap_or_else(default_rows),
            precise,
            kv,
            max_memory: optional("max_memory", max_memory)?,
        };
        let make = || Engine::new(Graph::parse(graph_json)?, store, &options);
        Ok(Self { engine: py.detach(make).map_err(to_python)? })
    }

    #[getter]
    fn threads(&self) -> usize {
        self.engine.threads()
    }

    /// Threads that a step of so many rows runs on at present.
    fn step_threads(&self, py: Python<'_>, rows: Integer) -> PyResult<usize> {
        let rows = rows.to("rows")?;
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
    #[pyo3(
        signature = (items, *, steps=Integer::from(1), seconds=0.0),
        text_signature = "($self, items, *, steps=1, seconds=0.0)"
    )]
    fn step(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
        steps: Integer,
        seconds: f64,
    ) -> PyResult<Vec<PyStepResult>> {
        let time = Duration::try_from_secs_f64(seconds)
            .map_err(|_| parameter("seconds", format!("is {seconds}, must be 0 or more")))?;
        let limits = WriteLimits { steps: steps.to("steps")?, time };
        let work = |items: &mut [WriteItem<'_>]| Ok((self.engine.write(items, limits)?, ()));
        self.run(py, items, work).map(|(results, ())| results)
    }

    /// Makes a call of several steps that is running return after its present one.
    fn interrupt(&self) {
        self.engine.interrupt();
    }

    /// How one request goes on after its prompt.
    #[pyo3(
        signature = (prompt, *, max_tokens, stop_ids=None, guesses=Integer::from(0)),
        text_signature = "($self, prompt, *, max_tokens, stop_ids=None, guesses=0)"
    )]
    fn continuation(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        max_tokens: Integer,
        stop_ids: Option<&Bound<'_, PyAny>>,
        guesses: Integer,
    ) -> PyResult<PyContinuation> {
        let (max_tokens, guesses) = (max_tokens.to("max_tokens")?, guesses.to("guesses")?);
        let prompt = token_ids("prompt", prompt)?;
        let stops = stop_ids.map(|ids| token_ids("stop_ids", ids)).transpose()?.unwrap_or_default();
        Ok(PyContinuation::new(py.detach(|| Continuation::new(&prompt, max_tokens, &stops, guesses))))
    }

    /// How many tokens a draft model should guess now.
    fn drafts(&self, continuation: &PyContinuation, texts: Integer) -> PyResult<usize> {
        Ok(self.engine.drafts(&*continuation.lock()?, texts.to("texts")?))
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
        // Unlike `PyBytes::new`, which panics where there is no memory.
        PyBytes::new_with(py, bytes.len(), |to| {
            to.copy_from_slice(&bytes);
            Ok(())
        })
        .map_err(|_| {
            let (what, needed) = ("a copy of keys and values".into(), bytes.len() as u64);
            to_python(EngineError::Memory { what, needed, available: 0 })
        })
    }

    /// A sequence of what `export` gave.
    fn restore(&self, py: Python<'_>, length: Integer, data: &[u8]) -> PyResult<PySequence> {
        let length = length.to("length")?;
        let sequence = py.detach(|| self.engine.import(length, data)).map_err(to_python)?;
        Ok(PySequence { sequence: Arc::new(sequence) })
    }

    /// Runs one step and measures its phases, or it as a whole: see `_core.pyi`.
    #[pyo3(signature = (items, *, phases=true))]
    fn step_timed(
        &self,
        py: Python<'_>,
        items: &Bound<'_, PyAny>,
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
        let (results, times) = self.run(py, items, work)?;
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
        names: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let ids = token_ids("ids", ids)?;
        let name = |name: Bound<'_, PyAny>| {
            name.extract::<String>().map_err(|_| parameter("names", "must be texts"))
        };
        let names = names.map(|names| elements("names", names, MOST_ELEMENTS, name)).transpose()?;
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
        items: &Bound<'_, PyAny>,
        work: impl FnOnce(&mut [WriteItem<'_>]) -> Result<(Vec<Written>, T), EngineError> + Send,
    ) -> PyResult<(Vec<PyStepResult>, T)> {
        let (most, mut rows) = (self.engine.max_rows(), 0);
        // Every item has a token, so that there are no more items than rows.
        let items: Vec<Item> = elements("items", items, most, |item| {
            let item = Item::new(&item)?;
            rows += item.ids.len();
            if rows > most {
                return Err(parameter(
                    "items",
                    format!("have {rows} tokens or more, a step has at most {most}"),
                ));
            }
            Ok(item)
        })?;
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
        let results = written.into_iter().map(|written| PyStepResult::new(py, written, vocab));
        Ok((results.collect::<PyResult<_>>()?, found))
    }
}
