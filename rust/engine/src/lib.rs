//! The engine of pocketlm: graph to plan, thread pool, KV cache, `step`.

mod arena;
pub mod engine;
mod error;
pub mod graph;
mod kv;
pub mod palettize;
mod plan;
pub mod pool;
mod reserve;
mod run;
mod speculate;
pub mod store;

#[cfg(test)]
extern crate self as pocketlm_engine;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

pub use engine::{
    Details, Engine, EngineOptions, Logits, Memory, PhaseInfo, Sequence, StepItem, StepResult, Traced,
    WriteItem, WriteLimits, Written, default_rows, machine_memory,
};
pub use error::EngineError;
pub use kv::KV_TOKENS;
pub use pocketlm_kernels::KvType;
pub use pocketlm_kernels::sample::{Sampler, SamplingParams};
pub use reserve::reserved;
pub use speculate::{Continuation, MAX_GUESSES};
