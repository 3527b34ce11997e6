//! The engine of pocketlm: graph to plan, thread pool, KV cache, `step`.

pub mod store;
