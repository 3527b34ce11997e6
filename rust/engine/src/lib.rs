//! The engine of pocketlm: graph to plan, thread pool, KV cache, `step`.

mod error;
pub mod graph;
mod kv;
pub mod palettize;
pub mod pool;
pub mod store;

pub use error::EngineError;
