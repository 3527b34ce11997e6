//! What can go wrong in the engine. Every variant maps to one Python exception.

use crate::store::StoreError;

/// A failure of the engine. Messages name the thing at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A file of weights, or a tensor in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The graph is malformed, or asks for something that no family may ask.
    #[error("graph: {site}: {reason}")]
    Graph {
        /// The operation's canonical name, or the field of the header.
        site: String,
        /// What is wrong.
        reason: String,
    },
    /// An argument is out of its range.
    #[error("{name}: {reason}")]
    Parameter {
        /// The argument.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A sequence would grow beyond the positions that the model was made for.
    #[error("{tokens} tokens do not fit the context of {limit}")]
    ContextLength {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// The context length.
        limit: usize,
    },
    /// More memory than the limit allows, or than the cache holds.
    #[error(
        "{what} needs {}, {} are available",
        size(*needed, u64::div_ceil),
        size(*available, |bytes, unit| bytes / unit)
    )]
    Memory {
        /// What was to be allocated.
        what: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are left.
        available: u64,
    },
    /// The cache has no free blocks for the tokens of this step.
    #[error("the cache has no room: {needed} blocks of {block} tokens are needed, {free} are free")]
    CacheFull {
        /// Blocks that the step needs.
        needed: usize,
        /// Blocks that are free.
        free: usize,
        /// Tokens in a block.
        block: usize,
    },
    /// The model computed what no token can be chosen from: its weights are damaged, or too large for its activations.
    #[error("sampling: {0}")]
    Logits(String),
    /// This machine or this build cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A defect of pocketlm itself.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    pub(crate) fn graph(site: &str, reason: impl Into<String>) -> Self {
        Self::Graph { site: shorten(site), reason: reason.into() }
    }

    /// [`EngineError::Parameter`].
    pub fn parameter(name: &str, reason: impl Into<String>) -> Self {
        Self::Parameter { name: name.into(), reason: reason.into() }
    }
}

/// Bytes with a unit and one decimal, which `divide` finds. Needs are rounded up and what is left down, so that they differ in a message too.
fn size(bytes: u64, divide: impl Fn(u64, u64) -> u64) -> String {
    let (tenth, unit) = if bytes < 100_000 { (100, "kB") } else { (100_000, "MB") };
    let tenths = divide(bytes, tenth);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A hostile graph may hold names of megabytes; a message may not.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
