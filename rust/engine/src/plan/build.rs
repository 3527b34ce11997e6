//! The builder: walks the operations in order and collects phases.

use std::collections::BTreeMap;

use pocketlm_kernels::{Activation, NormKind};

use super::layout::{Buffer, Content, place};
use super::values::{Value, Values};
use super::{AttentionPart, Domain, NormVectors, Options, Phase, Plan, RopeTable, RowOp, View, Weights};
use crate::error::EngineError;
use crate::graph::{self, AttentionOp, Graph, Op, OpKind, Rotary};
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
    phases: Vec<Phase>,
    /// Row operations of the phase that is being collected.
    pending: Vec<RowOp>,
    buffers: Vec<Buffer>,
    ropes: Vec<RopeTable>,
    caches: Vec<CacheShape>,
    /// Cache numbers of the graph.
    cache_index: BTreeMap<usize, usize>,
    /// Quantized copies of values.
    quantized: BTreeMap<Value, usize>,
    domain: Domain,
    pub tail_from: usize,
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
        let tail_from = if options.trace { usize::MAX } else { last + 1 };
        Ok(Self {
            graph,
            store,
            options,
            values: Values::new(graph),
            weights,
            matrices,
            phases: Vec::new(),
            pending: Vec::new(),
            buffers: Vec::new(),
            ropes: Vec::new(),
            caches: Vec::new(),
            cache_index: BTreeMap::new(),
            quantized: BTreeMap::new(),
            domain: Domain::All,
            tail_from,
        })
    }

    pub fn build(mut self) -> Result<Plan, EngineError> {
        let mut tail_start = None;
        for index in 0..self.graph.ops.len() {
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
            self.phases.push(Phase::Output(logits));
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
        let arena_bytes = place(&mut self.buffers, rows).ok_or_else(|| EngineError::Memory {
            what: "activations of a step".into(),
            needed: u64::MAX,
            available: 0,
        })?;
        Ok(Plan {
            phases: self.phases,
            body: 0..tail_start,
            tail: tail_start..end,
            cache_done,
            buffers: self.buffers,
            arena_bytes,
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

    fn plan_op(&mut self, index: usize) -> Result<(), EngineError> {
        let op = &self.graph.ops[index];
        let place = match &op.kind {
            OpKind::Slice { .. } => return Ok(()),
            OpKind::Linear { .. } => return self.plan_linears(index),
            OpKind::Attention(attention) => self.plan_attention(index, attention, op.width),
            OpKind::Embed { scale, .. } => {
                let to = self.new_view(op.width);
                self.push(RowOp::Embed { matrix: self.matrices[index].unwrap_or(0), to });
                if *scale != 1.0 {
                    self.push(RowOp::Scale { x: to, factor: *scale as f32 });
                }
                Some(to)
            }
            OpKind::Positions { .. } => {
                let to = self.new_view(op.width);
                self.push(RowOp::Positions { matrix: self.matrices[index].unwrap_or(0), to });
                Some(to)
            }
            OpKind::Norm { x, group, .. } => {
                let vectors = self.norm_vectors(op)?;
                match group {
                    Some(group) if *group != op.width => {
                        let x = self.own(index, *x);
                        self.push(RowOp::NormHeads { vectors, x, group: *group });
                        Some(x)
                    }
                    _ => self.plan_norm(index, *x, vectors),
                }
            }
            OpKind::Rope { x, head_dim, rotary } => {
                let table = self.rope_table(rotary);
                let x = self.own(index, *x);
                self.push(RowOp::Rope { table, x, head_dim: *head_dim });
                Some(x)
            }
            OpKind::Add { a, b } => Some(self.plan_add(index, *a, *b)),
            OpKind::Gated { gate, up, activation } => {
                let [gate, up] = [*gate, *up].map(|operand| self.values.place(self.values.value(operand)));
                let to = self.new_view(op.width);
                self.push(RowOp::Gated { gate, up, to, activation: kernel_activation(*activation) });
                Some(to)
            }
            OpKind::Activation { x, activation } => {
                let x = self.own(index, *x);
                self.push(RowOp::Activate { x, activation: kernel_activation(*activation) });
                Some(x)
            }
            OpKind::Scale { x, factor } => {
                let x = self.own(index, *x);
                self.push(RowOp::Scale { x, factor: *factor as f32 });
                Some(x)
            }
            OpKind::Softcap { x, cap } => {
                let x = self.own(index, *x);
                self.push(RowOp::Softcap { x, cap: *cap as f32 });
                Some(x)
            }
            OpKind::Clip { x, limit } => {
                let x = self.own(index, *x);
                self.push(RowOp::Clip { x, limit: *limit as f32 });
                Some(x)
            }
        };
        self.values.finish(index, place);
        Ok(())
    }

    fn plan_norm(&mut self, index: usize, x: usize, vectors: usize) -> Option<View> {
        let value = self.values.value(index);
        let readers = self.values.readers(index).to_vec();
        let by_quantized = |&(who, read): &(usize, Value)| read == value && self.reads_quantized(who);
        let wants_floats = self.options.trace || !readers.iter().all(by_quantized);
        let wants_quantized = readers.iter().any(by_quantized);
        let x = self.values.place(self.values.value(x));
        let mut delta = None;
        if let Some(RowOp::Add { to, other }) = self.pending.last()
            && *to == x
        {
            delta = Some(*other);
            self.pending.pop();
        }
        let to = wants_floats.then(|| self.new_view(value.width));
        let quantized = wants_quantized.then(|| self.new_buffer(Content::Quantized(value.width)));
        if let Some(buffer) = quantized {
            self.quantized.insert(value, buffer);
        }
        self.push(RowOp::Norm { vectors, x, delta, to, quantized });
        to
    }

    fn plan_add(&mut self, index: usize, a: usize, b: usize) -> View {
        let [a, b] = [a, b].map(|operand| self.values.value(operand));
        let [place_a, place_b] = [a, b].map(|value| self.values.place(value));
        let apart = place_a.buffer != place_b.buffer
            || place_a.start + place_a.width <= place_b.start
            || place_b.start + place_b.width <= place_a.start;
        let (to, other) = if apart && self.may_overwrite(a, index) {
            (place_a, place_b)
        } else if apart && self.may_overwrite(b, index) {
            (place_b, place_a)
        } else {
            let to = self.new_view(a.width);
            self.push(RowOp::Copy { from: place_a, to });
            (to, place_b)
        };
        self.push(RowOp::Add { to, other });
        to
    }

    fn plan_attention(&mut self, index: usize, op: &AttentionOp, width: usize) -> Option<View> {
        if let (Some(k), Some(v)) = (op.k, op.v) {
            let [k, v] = [k, v].map(|operand| self.values.place(self.values.value(operand)));
            let cache = self.caches.len();
            self.caches.push(CacheShape { kv_heads: op.kv_heads, head_dim: op.head_dim });
            self.cache_index.insert(op.cache, cache);
            self.push(RowOp::WriteKv { cache, k, v });
        }
        // The kernel takes queries that are scaled already. Keys are written before, in case that they are the same value.
        let q = self.own(index, op.q);
        self.push(RowOp::Scale { x: q, factor: op.scale as f32 });
        self.flush();
        let to = self.new_view(width);
        self.touch(q);
        self.phases.push(Phase::Attention(AttentionPart {
            q,
            to,
            heads: op.heads,
            cache: self.cache_index[&op.cache],
            window: op.window,
            softcap: op.softcap.map(|cap| cap as f32),
        }));
        Some(to)
    }

    /// A place that the operation may change, holding its operand: the operand's own if nobody reads it any more, else a copy.
    fn own(&mut self, index: usize, operand: usize) -> View {
        let value = self.values.value(operand);
        let from = self.values.place(value);
        if self.may_overwrite(value, index) {
            return from;
        }
        let to = self.new_view(value.width);
        self.push(RowOp::Copy { from, to });
        to
    }

    pub fn may_overwrite(&self, value: Value, reader: usize) -> bool {
        !self.options.trace && self.values.may_overwrite(value, reader)
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

    /// The quantized copy of a value, made now if there is none.
    pub fn quantize(&mut self, value: Value) -> usize {
        if let Some(&buffer) = self.quantized.get(&value) {
            return buffer;
        }
        let from = self.values.place(value);
        let to = self.new_buffer(Content::Quantized(value.width));
        self.quantized.insert(value, to);
        self.push(RowOp::Quantize { from, to });
        to
    }

    fn norm_vectors(&mut self, op: &Op) -> Result<usize, EngineError> {
        let OpKind::Norm { norm, eps, weight, bias, offset, .. } = &op.kind else {
            return Err(EngineError::Internal("not a norm".into()));
        };
        let mut vector = |weight: &Option<graph::Weight>| match weight {
            Some(weight) => self.weights.vector(self.store, weight).map(Some),
            None => Ok(None),
        };
        let (weight, bias) = (vector(weight)?, vector(bias)?);
        let kind = match norm {
            graph::NormKind::Rms => NormKind::Rms,
            graph::NormKind::Layer => NormKind::Layer,
        };
        self.weights.norms.push(NormVectors { kind, eps: *eps as f32, weight, bias, offset: *offset as f32 });
        Ok(self.weights.norms.len() - 1)
    }

    fn rope_table(&mut self, rotary: &Rotary) -> usize {
        let same = |table: &RopeTable| {
            // Interleaving changes which channels pair, not the angles, but an executor reads it from the table.
            table.rotary == *rotary
        };
        if let Some(index) = self.ropes.iter().position(same) {
            return index;
        }
        let buffer = self.buffers.len();
        // All rows of the step have one, the tail looks its rows up; filled in the first phase, used in many.
        self.buffers.push(Buffer {
            content: Content::Float(2 * rotary.frequencies.len()),
            domain: Domain::All,
            life: (0, usize::MAX),
            offset: 0,
        });
        let view = View { buffer, start: 0, width: 2 * rotary.frequencies.len() };
        self.ropes.push(RopeTable { rotary: rotary.clone(), view });
        let table = self.ropes.len() - 1;
        match self.phases.first_mut() {
            Some(Phase::Rows(ops)) => ops.push(RowOp::RopeTable { table }),
            // The first phase is still being collected, or nothing comes before the rotation.
            _ => self.pending.push(RowOp::RopeTable { table }),
        }
        table
    }

    /// A new buffer of floats in the current domain.
    pub fn new_view(&mut self, width: usize) -> View {
        View { buffer: self.new_buffer(Content::Float(width)), start: 0, width }
    }

    fn new_buffer(&mut self, content: Content) -> usize {
        let now = self.phases.len();
        self.buffers.push(Buffer { content, domain: self.domain, life: (now, now), offset: 0 });
        self.buffers.len() - 1
    }

    /// Keeps a buffer alive up to the phase that is being collected.
    pub fn touch(&mut self, view: View) {
        self.touch_buffer(view.buffer);
    }

    pub fn touch_buffer(&mut self, buffer: usize) {
        let last = &mut self.buffers[buffer].life.1;
        // Traced results are read after the last phase.
        *last = if self.options.trace { usize::MAX } else { (*last).max(self.phases.len()) };
    }

    /// Adds to the program that is being collected.
    fn push(&mut self, op: RowOp) {
        for view in op.views().into_iter().flatten() {
            self.touch(view);
        }
        if let RowOp::Quantize { to, .. } | RowOp::Norm { quantized: Some(to), .. } = op {
            self.touch_buffer(to);
        }
        self.pending.push(op);
    }

    /// Ends the program that is being collected.
    pub fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.phases.push(Phase::Rows(std::mem::take(&mut self.pending)));
        }
    }

    pub fn push_phase(&mut self, phase: Phase) {
        self.phases.push(phase);
    }
}

impl RowOp {
    /// The float buffers that it touches.
    fn views(&self) -> [Option<View>; 3] {
        match *self {
            Self::RopeTable { .. } => [None; 3],
            Self::Embed { to, .. } | Self::Positions { to, .. } => [Some(to), None, None],
            Self::Copy { from, to } | Self::Gather { from, to } => [Some(from), Some(to), None],
            Self::Add { to, other } => [Some(to), Some(other), None],
            Self::Norm { x, delta, to, .. } => [Some(x), delta, to],
            Self::Gated { gate, up, to, .. } => [Some(gate), Some(up), Some(to)],
            Self::WriteKv { k, v, .. } => [Some(k), Some(v), None],
            Self::NormHeads { x, .. }
            | Self::Rope { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::Softcap { x, .. }
            | Self::Clip { x, .. }
            | Self::Quantize { from: x, .. } => [Some(x), None, None],
        }
    }
}

pub(super) fn kernel_activation(activation: graph::Activation) -> Activation {
    match activation {
        graph::Activation::Silu => Activation::Silu,
        graph::Activation::Gelu => Activation::Gelu,
        graph::Activation::GeluTanh => Activation::GeluTanh,
        graph::Activation::Relu => Activation::Relu,
        graph::Activation::Relu2 => Activation::Relu2,
    }
}
