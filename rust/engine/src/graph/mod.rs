//! The model as data: the operations as Python's `pocketlm.graph` writes them, read and checked.

mod check;
mod ops;

pub use ops::{AttentionOp, Op, OpKind, Rotary, Weight};

use serde::Deserialize;

use crate::error::EngineError;

/// A model: its operations in order of execution. The last one yields the logits.
#[derive(Debug, Clone, Deserialize)]
pub struct Graph {
    /// The family's name.
    pub model_type: String,
    /// Number of logits.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub context_length: usize,
    /// What its rotations share, each by its number.
    #[serde(default)]
    pub rotaries: Vec<Rotary>,
    /// The operations. Each reads results of earlier ones.
    pub ops: Vec<Op>,
}

impl Graph {
    /// Reads and validates the JSON of `Graph.to_json()`.
    ///
    /// # Errors
    /// [`EngineError::Graph`] naming the operation at fault.
    pub fn parse(json: &str) -> Result<Self, EngineError> {
        let graph: Self =
            serde_json::from_str(json).map_err(|error| EngineError::graph("json", error.to_string()))?;
        check::check(&graph)?;
        Ok(graph)
    }
}
