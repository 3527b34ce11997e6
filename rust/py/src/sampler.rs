//! `Sampler`: how a request chooses its tokens, and those that it has seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, TryLockError};

use pocketlm_engine::{EngineError, Sampler, SamplingParams};
use pocketlm_kernels::sample::SampleError;
use pyo3::prelude::*;

use crate::engine::token_ids;
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
    #[pyo3(signature = (
        *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, logit_bias=None, seed=0, logprobs=None, history=None
    ))]
    fn new(
        temperature: f32,
        top_k: i64,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: Option<BTreeMap<i64, f32>>,
        seed: i128,
        logprobs: Option<i64>,
        history: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let logit_bias = logit_bias.unwrap_or_default();
        let params = SamplingParams {
            temperature,
            // -1 asks for all, as in vLLM.
            top_k: if top_k == -1 { 0 } else { count("top_k", top_k)? },
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias: logit_bias
                .into_iter()
                .map(|(token, bias)| Ok((count("logit_bias", token)?, bias)))
                .collect::<PyResult<_>>()?,
            // The low 64 bits: negative seeds are seeds too.
            seed: seed as u64,
            logprobs: logprobs.map(|number| count("logprobs", number)).transpose()?,
        };
        let history = history.map(token_ids).transpose()?.unwrap_or_default();
        let sampler = Sampler::new(params, &history).map_err(refused)?;
        Ok(Self { sampler: Mutex::new(sampler) })
    }
}

fn count(name: &str, number: i64) -> PyResult<u32> {
    u32::try_from(number).map_err(|_| parameter(name, format!("is {number}, must be from 0 to {}", u32::MAX)))
}

fn refused(error: SampleError) -> PyErr {
    match &error {
        SampleError::Parameter { parameter: name, value, expected } => {
            parameter(name, format!("is {value}, must be {expected}"))
        }
        _ => to_python(EngineError::Internal(error.to_string())),
    }
}
