//! `Sampler`: how a request chooses its tokens, and those that it has seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, TryLockError};

use pocketlm_engine::{EngineError, Sampler, SamplingParams};
use pocketlm_kernels::sample::SampleError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arguments::{Integer, optional, token_ids};
use crate::errors::{parameter, to_python};

/// Sampling parameters and history of one request.
#[pyclass(frozen, name = "Sampler", module = "pocketlm._core")]
pub(crate) struct PySampler {
    sampler: Mutex<Sampler>,
}

impl PySampler {
    /// The sampler for one step. It is never waited for: who else holds it is a step of another thread, or another item of this one.
    pub(crate) fn lock(&self) -> PyResult<MutexGuard<'_, Sampler>> {
        self.sampler.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => parameter("sampler", "is in use by another item or step"),
            TryLockError::Poisoned(_) => {
                to_python(EngineError::Internal("an earlier failure left this sampler unusable".into()))
            }
        })
    }
}

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(
        signature = (
            *, temperature=1.0, top_k=Integer::from(0), top_p=1.0, min_p=0.0, repetition_penalty=1.0,
            presence_penalty=0.0, frequency_penalty=0.0, logit_bias=None, seed=Integer::from(0), logprobs=None,
            history=None
        ),
        text_signature = "(*, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, \
            presence_penalty=0.0, frequency_penalty=0.0, logit_bias=None, seed=0, logprobs=None, history=None)"
    )]
    fn new(
        temperature: f32,
        top_k: Integer,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: Option<&Bound<'_, PyDict>>,
        seed: Integer,
        logprobs: Option<Integer>,
        history: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let bias = |(token, bias): (Bound<'_, PyAny>, Bound<'_, PyAny>)| {
            Ok((token.extract::<Integer>()?.to("logit_bias")?, bias.extract()?))
        };
        let biases: BTreeMap<u32, f32> =
            logit_bias.into_iter().flat_map(|biases| biases.iter()).map(bias).collect::<PyResult<_>>()?;
        let params = SamplingParams {
            temperature,
            // -1 asks for all, as in vLLM.
            top_k: if top_k.signed("top_k")? == -1 { 0 } else { top_k.to("top_k")? },
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: biases.into_iter().collect(),
            // The low 64 bits: negative seeds are seeds too.
            seed: seed.signed("seed")? as u64,
            logprobs: optional("logprobs", logprobs)?,
        };
        let history = history.map(|ids| token_ids("history", ids)).transpose()?.unwrap_or_default();
        let sampler = Sampler::new(params, &history).map_err(refused)?;
        Ok(Self { sampler: Mutex::new(sampler) })
    }
}

fn refused(error: SampleError) -> PyErr {
    match &error {
        SampleError::Parameter { parameter: name, value, expected } => {
            parameter(name, format!("is {value}, must be {expected}"))
        }
        _ => to_python(EngineError::Internal(error.to_string())),
    }
}
