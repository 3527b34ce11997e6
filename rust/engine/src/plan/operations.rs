//! What becomes of each operation but products: row operations, attention, and the tables that they read.

use super::angles::Angles;
use super::build::Builder;
use super::layout::{Buffer, Content};
use super::values::Value;
use super::{AttentionPart, Domain, NormVectors, Phase, RopeTable, RowOp, View};
use crate::error::EngineError;
use crate::graph::{self, AttentionOp, Op, OpKind, Rotary};
use crate::kv::CacheShape;

/// Pairs that all distinct rotary embeddings of a graph have together. Each takes 6 KB for its angles, so that tables stay below 100 MB; models
/// have one or two, of at most 128 pairs.
const MAX_PAIRS: usize = 1 << 14;

impl Builder<'_> {
    pub(super) fn plan_op(&mut self, index: usize) -> Result<(), EngineError> {
        let op = &self.graph.ops[index];
        let place = match &op.kind {
            OpKind::Slice { .. } => return Ok(()),
            OpKind::Linear { .. } => return self.plan_linears(index),
            OpKind::Attention(attention) => self.plan_attention(index, attention, op.width),
            OpKind::Embed { scale, .. } => {
                let to = self.new_view(op.width);
                self.push(RowOp::Embed { matrix: self.matrix(index)?, to });
                if *scale != 1.0 {
                    self.push(RowOp::Scale { x: to, factor: *scale as f32 });
                }
                Some(to)
            }
            OpKind::Positions { .. } => {
                let to = self.new_view(op.width);
                self.push(RowOp::Positions { matrix: self.matrix(index)?, to });
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
                let table = self.rope_table(&self.graph.rotaries[*rotary], &op.name)?;
                let x = self.own(index, *x);
                self.push(RowOp::Rope { table, x, head_dim: *head_dim });
                Some(x)
            }
            OpKind::Add { a, b } => Some(self.plan_add(index, *a, *b)),
            OpKind::Gated { gate, up, activation } => {
                let [gate, up] = [*gate, *up].map(|operand| self.values.place(self.values.value(operand)));
                let to = self.new_view(op.width);
                self.push(RowOp::Gated { gate, up, to, activation: *activation });
                Some(to)
            }
            OpKind::Activation { x, activation } => {
                let x = self.own(index, *x);
                self.push(RowOp::Activate { x, activation: *activation });
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
        let by_quantized = |&(who, read): &(usize, Value)| {
            read == value && self.reads_quantized(who) && self.terms(who) == 1
        };
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
        let quantized = wants_quantized.then(|| self.new_buffer(Content::Quantized(value.width, 1)));
        if let Some(buffer) = quantized {
            self.quantized.insert((value, 1), buffer);
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
        let part = AttentionPart {
            q,
            to,
            heads: op.heads,
            cache: self.cache_index[&op.cache],
            window: op.window,
            softcap: op.softcap.map(|cap| cap as f32),
        };
        self.push_phase(Phase::Attention(part), vec![(index, 1)]);
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

    fn norm_vectors(&mut self, op: &Op) -> Result<usize, EngineError> {
        let OpKind::Norm { norm, eps, weight, bias, offset, .. } = &op.kind else {
            return Err(EngineError::Internal("not a norm".into()));
        };
        let mut vector = |weight: &Option<graph::Weight>| match weight {
            Some(weight) => self.weights.vector(self.store, weight).map(Some),
            None => Ok(None),
        };
        let (weight, bias) = (vector(weight)?, vector(bias)?);
        self.weights.norms.push(NormVectors {
            kind: *norm,
            eps: *eps as f32,
            weight,
            bias,
            offset: *offset as f32,
        });
        Ok(self.weights.norms.len() - 1)
    }

    fn rope_table(&mut self, rotary: &Rotary, site: &str) -> Result<usize, EngineError> {
        let same = |table: &RopeTable| {
            // Interleaving changes which channels pair, not the angles, but an executor reads it from the table.
            table.rotary == *rotary
        };
        if let Some(index) = self.ropes.iter().position(same) {
            return Ok(index);
        }
        let pairs: usize = self.ropes.iter().map(|table| table.rotary.frequencies.len()).sum();
        if pairs + rotary.frequencies.len() > MAX_PAIRS {
            return Err(EngineError::graph(
                site,
                format!("all rotary embeddings have over {MAX_PAIRS} pairs"),
            ));
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
        let angles = Angles::new(&rotary.frequencies, rotary.scale, self.graph.context_length);
        self.ropes.push(RopeTable { rotary: rotary.clone(), angles, view });
        let table = self.ropes.len() - 1;
        let op = RowOp::RopeTable { table };
        let member = (self.current, op.cost() as u64);
        match (self.phases.first_mut(), self.members.first_mut()) {
            (Some(Phase::Rows(ops)), Some(members)) => {
                ops.push(op);
                members.push(member);
            }
            // The first phase is still being collected, or nothing comes before the rotation.
            _ => {
                self.pending.push(op);
                self.pending_members.push(member);
            }
        }
        Ok(table)
    }
}
