//! From a graph and its weights to a list of phases over one arena.
//!
//! A step walks the phases with a barrier after each (and one before products whose rows are packed). There are four
//! kinds: work on rows one by one (norms, rotations, sums, quantization: a [`Phase::Rows`] holds a whole program of them), matrix products that share an input,
//! attention, and the use of logits. Any valid graph becomes such a list; fusions only make it shorter.
//!
//! The phases up to the last attention see every row of the step. What follows is needed only for rows whose logits are
//! asked for: the *tail* gathers those and runs on groups of at most [`Plan::tail_rows`] of them, so that logits never
//! take more memory than one group.
//!
//! The last attention itself, and its queries, still see every row. To cut in front of them, products that yield queries with keys and
//! values would have to be split, and attention be divided anew for each group of the tail, whose rows need not be neighbours;
//! by count of multiplications that would save 1 % of a prompt's work in a model of 1B parameters and 5 % in the bundled one.

mod angles;
mod buffers;
mod build;
mod layout;
mod linear;
mod operations;
mod packing;
#[cfg(test)]
mod tests;
mod values;
mod weights;

use std::ops::Range;

use pocketlm_kernels::Activation;

use crate::error::EngineError;
use crate::graph::{Graph, Rotary};
use crate::kv::CacheShape;
use crate::store::WeightStore;
use angles::Angles;
pub(crate) use layout::{Buffer, Content};
pub(crate) use packing::{Packing, gains};
pub(crate) use weights::{Matrix, NormVectors, Weights};

/// How to plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Rows of a step.
    pub max_rows: usize,
    /// Palettized weights take f32 activations.
    pub precise: bool,
    /// Keep the result of every operation, fuse nothing.
    pub trace: bool,
    /// Kernels gain by packed rows ([`pocketlm_kernels::Kernels::packs_rows`]).
    pub packs_rows: bool,
}

/// Rows that a phase works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Domain {
    /// Every row of the step.
    All,
    /// A group of the rows whose logits are asked for.
    Tail,
}

/// Columns of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub buffer: usize,
    pub start: usize,
    pub width: usize,
}

/// One operation on one row.
#[derive(Debug, Clone)]
pub(crate) enum RowOp {
    /// Cosine and sine of the row's position for each rotated pair.
    RopeTable { table: usize },
    /// A row of the matrix at the token's id.
    Embed { matrix: usize, to: View },
    /// A row of the matrix at the token's position.
    Positions { matrix: usize, to: View },
    /// Copies the row.
    Copy { from: View, to: View },
    /// Copies the row of the step that this row of the tail stands for.
    Gather { from: View, to: View },
    /// `to += other`
    Add { to: View, other: View },
    /// `x += delta` if given; the norm of `x`, as floats, quantized, or both.
    Norm { vectors: usize, x: View, delta: Option<View>, to: Option<View>, quantized: Option<usize> },
    /// The norm of each run of channels, in place.
    NormHeads { vectors: usize, x: View, group: usize },
    /// Rotation of each head, in place.
    Rope { table: usize, x: View, head_dim: usize },
    /// In place.
    Activate { x: View, activation: Activation },
    /// `activation(gate) * up`
    Gated { gate: View, up: View, to: View, activation: Activation },
    /// In place.
    Scale { x: View, factor: f32 },
    /// In place.
    Softcap { x: View, cap: f32 },
    /// In place.
    Clip { x: View, limit: f32 },
    /// The row as int8, in as many terms as the target has, a buffer of [`Content::Quantized`].
    Quantize { from: View, to: usize },
    /// Puts key and value into the cache.
    WriteKv { cache: usize, k: View, v: View },
}

/// What a matrix product reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Floats.
    Float(View),
    /// A buffer of quantized rows.
    Quantized(usize),
}

/// One matrix, or consecutive outputs of it, with its bias.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factor {
    pub matrix: usize,
    /// First output.
    pub start: usize,
    /// All biases of the matrix.
    pub bias: Option<usize>,
    /// A value of an earlier phase that is added before the epilogue, as wide as all outputs of the matrix.
    pub plus: Option<View>,
    pub input: Input,
}

/// What becomes of the product.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Epilogue {
    /// Stored.
    Store,
    /// Added to another value, which may lie where the sum goes.
    Residual(View),
    /// Passed through a function.
    Activate(Activation),
    /// It is the gate of a second product.
    Gated(Factor, Activation),
}

/// A matrix product of a phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub factor: Factor,
    pub epilogue: Epilogue,
    pub to: View,
}

/// Attention of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionPart {
    pub q: View,
    pub to: View,
    pub heads: usize,
    pub cache: usize,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
}

/// Work between two barriers; products whose rows are packed have one of their own behind that.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Every row through all of these.
    Rows(Vec<RowOp>),
    /// Matrix products.
    Linear(Vec<Part>),
    /// Attention.
    Attention(AttentionPart),
    /// Logits are sampled from, or copied to the caller.
    Output(View),
}

/// A rotary embedding and where its table lies.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pub rotary: Rotary,
    pub angles: Angles,
    pub view: View,
}

/// The whole plan.
#[derive(Debug)]
pub(crate) struct Plan {
    pub phases: Vec<Phase>,
    /// Operations of each phase, with their shares in its work: bytes of a product's matrix, costs of row operations.
    pub members: Vec<Vec<(usize, u64)>>,
    /// Phases that run on all rows; those behind run on the tail.
    pub body: Range<usize>,
    pub tail: Range<usize>,
    /// Phases of the body that a step without logits needs.
    pub cache_done: usize,
    pub buffers: Vec<Buffer>,
    /// Bytes of the arena: those of the buffers, and behind them those of packed rows.
    pub arena_bytes: usize,
    pub packing: Option<Packing>,
    pub max_rows: usize,
    pub tail_rows: usize,
    pub ropes: Vec<RopeTable>,
    pub weights: Weights,
    pub caches: Vec<CacheShape>,
    /// The matrix of each operation that has one.
    pub op_matrices: Vec<Option<usize>>,
    /// Where each operation's result lies, when traced.
    pub values: Vec<View>,
}

impl Plan {
    /// Plans a graph.
    ///
    /// # Errors
    /// When a weight is missing or does not fit, or sizes overflow.
    pub fn new(graph: &Graph, store: &WeightStore, options: Options) -> Result<Self, EngineError> {
        build::Builder::new(graph, store, options)?.build()
    }

    /// The rows that a buffer has.
    pub fn rows(&self, domain: Domain) -> usize {
        match domain {
            Domain::All => self.max_rows,
            Domain::Tail => self.tail_rows,
        }
    }
}

impl RowOp {
    /// About the elements that it touches, weighted by the arithmetic on each. Decides who does the work, never its result.
    pub fn cost(&self) -> usize {
        match *self {
            Self::RopeTable { .. } => 512,
            Self::Embed { to, .. } | Self::Positions { to, .. } => 2 * to.width,
            Self::Copy { to, .. } | Self::Gather { to, .. } | Self::Add { to, .. } => to.width,
            Self::Norm { x, .. } => 3 * x.width,
            Self::Gated { to, .. } => 8 * to.width,
            Self::Activate { x, .. } | Self::Softcap { x, .. } => 8 * x.width,
            Self::NormHeads { x, .. } | Self::Rope { x, .. } => 3 * x.width,
            Self::Scale { x, .. } | Self::Clip { x, .. } => x.width,
            Self::Quantize { from, .. } => from.width,
            Self::WriteKv { k, .. } => 4 * k.width,
        }
    }
}
