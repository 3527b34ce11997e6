//! The builder: walks the operations in order, collects phases, and cuts the tail off.

use std::collections::BTreeMap;

use super::layout::{Buffer, place};
use super::values::{Value, Values};
use super::{Domain, Options, Packing, Phase, Plan, RopeTable, RowOp, View, Weights};
use crate::error::EngineError;
use crate::graph::{Graph, Op, OpKind};
use crate::kv::CacheShape;
use crate::store::WeightStore;

/// Memory for the logits of one group of the tail, as long as a group keeps the many-row kernels busy.
const LOGITS_BYTES: usize = 16 << 20;
const TAIL_ROWS: std::ops::RangeInclusive<usize> = 8..=64;

pub(super) struct Builder<'a> {
    pub graph: &'a Graph,
    pub store: &'a WeightStore,
    pub options: Options,
    pub values: Values,
    pub weights: Weights,
    /// The matrix of each operation that has one.
    pub matrices: Vec<Option<usize>>,
    pub phases: Vec<Phase>,
    /// Operations of each phase, with their shares in its work.
    pub members: Vec<Vec<(usize, u64)>>,
    /// Row operations of the phase that is being collected.
    pub pending: Vec<RowOp>,
    /// The operations that they belong to, with their costs.
    pub pending_members: Vec<(usize, u64)>,
    /// The operation that is being planned.
    pub current: usize,
    pub buffers: Vec<Buffer>,
    pub ropes: Vec<RopeTable>,
    pub caches: Vec<CacheShape>,
    /// Cache numbers of the graph.
    pub cache_index: BTreeMap<usize, usize>,
    /// Quantized copies of values, by their number of terms.
    pub quantized: BTreeMap<(Value, usize), usize>,
    pub domain: Domain,
    pub tail_from: usize,
    /// The product whose result becomes the logits, unless an attention follows it.
    head: Option<usize>,
}

impl<'a> Builder<'a> {
    pub fn new(graph: &'a Graph, store: &'a WeightStore, options: Options) -> Result<Self, EngineError> {
        let mut weights = Weights::default();
        let mut matrices = Vec::with_capacity(graph.ops.len());
        for op in &graph.ops {
            matrices.push(match &op.kind {
                OpKind::Embed { weight, .. }
                | OpKind::Positions { weight }
                | OpKind::Linear { weight, .. } => Some(weights.matrix(store, weight)?),
                _ => None,
            });
        }
        let is_attention = |op: &Op| matches!(op.kind, OpKind::Attention(_));
        // Without attention everything behind the first operation is the tail; when tracing, nothing is.
        let last = graph.ops.iter().rposition(is_attention).unwrap_or(0);
        let head = head(graph).filter(|&op| op >= last);
        let tail_from = if options.trace { usize::MAX } else { last + 1 };
        Ok(Self {
            graph,
            store,
            options,
            values: Values::new(graph),
            weights,
            matrices,
            phases: Vec::new(),
            members: Vec::new(),
            pending: Vec::new(),
            pending_members: Vec::new(),
            current: 0,
            buffers: Vec::new(),
            ropes: Vec::new(),
            caches: Vec::new(),
            cache_index: BTreeMap::new(),
            quantized: BTreeMap::new(),
            domain: Domain::All,
            tail_from,
            head,
        })
    }

    pub fn build(mut self) -> Result<Plan, EngineError> {
        let mut tail_start = None;
        for index in 0..self.graph.ops.len() {
            self.current = index;
            if index == self.tail_from {
                self.flush();
                tail_start = Some(self.phases.len());
                self.enter_tail();
            }
            if !self.values.is_done(index) {
                self.plan_op(index)?;
            }
        }
        self.flush();
        let last = self.values.value(self.graph.ops.len() - 1);
        let logits = self.values.place(last);
        if !self.options.trace {
            if tail_start.is_none() {
                // The last operation is an attention or the only one: the tail only gathers.
                tail_start = Some(self.phases.len());
                self.enter_tail();
                self.flush();
            }
            let logits = self.values.place(last);
            self.touch(logits);
            self.push_phase(Phase::Output(logits), Vec::new());
        }
        let end = self.phases.len();
        let tail_start = tail_start.unwrap_or(end);
        let writes = |phase: &Phase| matches!(phase, Phase::Rows(ops) if ops.iter().any(|op| matches!(op, RowOp::WriteKv { .. })));
        let cache_done = self.phases.iter().rposition(writes).map_or(0, |last| last + 1);
        let values: Vec<View> = if self.options.trace {
            (0..self.graph.ops.len()).map(|op| self.values.place(self.values.value(op))).collect()
        } else {
            vec![logits]
        };
        let max_rows = self.options.max_rows;
        let fitting = LOGITS_BYTES / (4 * self.graph.vocab_size);
        let tail_rows = fitting.clamp(*TAIL_ROWS.start(), *TAIL_ROWS.end()).min(max_rows);
        let rows = |domain| if domain == Domain::All { max_rows } else { tail_rows };
        let too_much =
            || EngineError::Memory { what: "activations of a step".into(), needed: u64::MAX, available: 0 };
        let mut arena_bytes = place(&mut self.buffers, rows).ok_or_else(too_much)?;
        let mut packing = None;
        if self.options.packs_rows {
            let rows = |at| if at < tail_start { max_rows } else { tail_rows };
            let phases = self.phases.iter().enumerate().map(|(at, phase)| (phase, rows(at)));
            packing = Packing::of(phases, &self.weights, arena_bytes).ok_or_else(too_much)?;
            if let Some(packing) = packing {
                arena_bytes = packing.end().ok_or_else(too_much)?;
            }
        }
        Ok(Plan {
            phases: self.phases,
            members: self.members,
            body: 0..tail_start,
            tail: tail_start..end,
            cache_done,
            buffers: self.buffers,
            arena_bytes,
            packing,
            max_rows,
            tail_rows,
            ropes: self.ropes,
            weights: self.weights,
            caches: self.caches,
            op_matrices: self.matrices,
            values,
        })
    }

    /// From here on only rows whose logits are asked for: gathers what is still read.
    fn enter_tail(&mut self) {
        self.domain = Domain::Tail;
        self.quantized.clear();
        for op in self.values.live() {
            if let Some(from) = self.values.stored(op) {
                // The tail may run several times, and each time gathers anew.
                self.buffers[from.buffer].life.1 = usize::MAX;
                let to = self.new_view(from.width);
                self.push(RowOp::Gather { from, to });
                self.values.relocate(op, to);
            }
        }
    }

    /// The matrix of an operation that has one.
    pub fn matrix(&self, op: usize) -> Result<usize, EngineError> {
        self.matrices[op].ok_or_else(|| EngineError::Internal(format!("operation {op} has no matrix")))
    }

    pub fn may_overwrite(&self, value: Value, reader: usize) -> bool {
        !self.options.trace && self.values.may_overwrite(value, reader)
    }

    /// Terms of the quantized activations that a product reads. Errors of the head's are those of the logits, with no sum over
    /// layers to hide in: on the story model four fifths of all that int8 activations cost came from there.
    pub fn terms(&self, op: usize) -> usize {
        if self.head == Some(op) { 2 } else { 1 }
    }

    /// Whether an operation is a product whose activations are quantized.
    pub fn reads_quantized(&self, op: usize) -> bool {
        let linear = self.graph.ops.get(op).is_some_and(|op| matches!(op.kind, OpKind::Linear { .. }));
        linear
            && !self.options.precise
            // Behind the cut the row is gathered as floats and quantized again.
            && (op < self.tail_from || self.domain == Domain::Tail)
            && self.matrices[op].is_some_and(|matrix| self.weights.matrices[matrix].is_palette())
    }
}

/// The last product that is on its own: neither half of a low-rank term, which an adapter may have put beside it.
fn head(graph: &Graph) -> Option<usize> {
    let operand = |op: usize| match graph.ops[op].kind {
        OpKind::Linear { x, .. } => Some(x),
        _ => None,
    };
    // A term's two halves may have a scale between them.
    let unscaled = |op: usize| match graph.ops[op].kind {
        OpKind::Scale { x, .. } => x,
        _ => op,
    };
    let read: Vec<usize> = (0..graph.ops.len()).filter_map(operand).map(unscaled).collect();
    let alone =
        |op: &usize| operand(*op).is_some_and(|x| operand(unscaled(x)).is_none()) && !read.contains(op);
    (0..graph.ops.len()).rev().find(alone)
}
