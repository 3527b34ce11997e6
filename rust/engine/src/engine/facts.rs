//! What does not change in the life of an engine.

use std::sync::Arc;

use pocketlm_kernels::{Kernels, Kind, KvType};

use super::Memory;
use crate::graph::{Graph, OpKind};
use crate::plan::Plan;
use crate::store::{TensorData, WeightStore};

/// Facts of an engine, which its sequences and steps share.
pub(super) struct Facts {
    pub graph: Graph,
    pub store: Arc<WeightStore>,
    pub kernels: &'static Kernels,
    pub threads: usize,
    pub max_rows: usize,
    pub precise: bool,
    pub kv: KvType,
    pub max_memory: Option<u64>,
    pub cache_tokens: usize,
    /// Ids from here on have no embedding.
    pub id_limit: usize,
    pub weight_bytes_per_token: u64,
    pub memory: Memory,
}

/// Rows of the smallest embedding table.
pub(super) fn id_limit(graph: &Graph) -> usize {
    let rows = graph.ops.iter().filter_map(|op| match &op.kind {
        OpKind::Embed { weight, .. } => weight.shape.first().copied(),
        _ => None,
    });
    rows.min().unwrap_or(usize::MAX)
}

/// All matrices and vectors once, tables of which only a row is read for that row.
pub(super) fn bytes_per_token(graph: &Graph, plan: &Plan) -> u64 {
    let mut whole = vec![false; plan.weights.matrices.len()];
    let of = |op: usize| plan.op_matrices[op];
    for (index, op) in graph.ops.iter().enumerate() {
        if let (OpKind::Linear { .. }, Some(matrix)) = (&op.kind, of(index)) {
            whole[matrix] = true;
        }
    }
    let matrices: u64 = plan
        .weights
        .matrices
        .iter()
        .zip(&whole)
        .map(|(matrix, &whole)| {
            (if whole { matrix.bytes() } else { matrix.bytes() / matrix.rows().max(1) }) as u64
        })
        .sum();
    matrices + plan.weights.vectors.iter().map(|vector| 4 * vector.len() as u64).sum::<u64>()
}

/// Measures which kernels multiply prompts with the kinds of palettized weights that there are, now, since steps allocate
/// nothing: a millisecond for each kind, once in a process.
pub(super) fn choose_kernels(kernels: &Kernels, store: &WeightStore) {
    let is_there = |wanted: &Kind| {
        store
            .tensors()
            .any(|tensor| matches!(tensor.data(), TensorData::Palette { kind, .. } if kind == wanted))
    };
    for kind in Kind::ALL.into_iter().filter(is_there) {
        kernels.prompt_kernel(kind, 16);
        kernels.prompt_kernel(kind, usize::MAX);
    }
}
