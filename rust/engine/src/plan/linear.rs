//! Matrix products: those that read the same value form one phase, and what follows one of them joins its epilogue.

use pocketlm_kernels::Activation;

use super::build::Builder;
use super::values::Value;
use super::{Epilogue, Factor, Input, Part, Phase, View};
use crate::error::EngineError;
use crate::graph::OpKind;

/// Outputs of a tile: palettized matrices are computed in whole tiles.
const TILE: usize = 16;

/// An operation that a part completes, and where its result lies, unless it went into another.
type Done = (usize, Option<View>);

impl Builder<'_> {
    /// Plans the product `index` with all later ones that read the same value.
    pub(super) fn plan_linears(&mut self, index: usize) -> Result<(), EngineError> {
        let group = self.group(index);
        let mut parts = Vec::with_capacity(group.len());
        for &(op, value) in &group {
            let factor = self.factor(op, value)?;
            parts.push((op, factor));
        }
        // The inputs' quantization is the last thing before the products.
        self.flush();
        let mut phase = Vec::with_capacity(parts.len());
        let mut done = Vec::new();
        for &(op, factor) in &parts {
            if done.iter().any(|&(other, _)| other == op) {
                continue;
            }
            let part = match self.gated(op, &parts) {
                Some((part, members)) => {
                    done.extend(members);
                    part
                }
                None => self.single(op, factor, &parts, &mut done),
            };
            self.touch_part(&part);
            phase.push(part);
        }
        let share = |op: usize| {
            let matrix = self.matrices[op].map(|matrix| &self.weights.matrices[matrix]);
            matrix.map_or(0, |matrix| matrix.bytes() as u64)
        };
        let members = done.iter().map(|&(op, _)| (op, share(op))).collect();
        // Only now: a place that one part writes must not be read by another of the same phase.
        for (op, place) in done {
            self.values.finish(op, place);
        }
        self.push_phase(Phase::Linear(phase), members);
        Ok(())
    }

    /// Products on the same side of the cut that read what `index` reads. If that is itself the result of a product (it is the second
    /// half of a low-rank term), then also those that read other such results: each alone would be too small for a phase.
    fn group(&self, index: usize) -> Vec<(usize, Value)> {
        let is_product = |op: usize| matches!(self.graph.ops[op].kind, OpKind::Linear { .. });
        let operand = |op: usize| match self.graph.ops[op].kind {
            OpKind::Linear { x, .. } => Some(self.values.value(x)),
            _ => None,
        };
        let wanted = operand(index);
        let behind_product = wanted.is_some_and(|value| is_product(value.op));
        let joins = |value: &Value| {
            Some(*value) == wanted
                || behind_product && is_product(value.op) && self.values.stored(value.op).is_some()
        };
        let side = |op: usize| op < self.tail_from;
        (index..self.graph.ops.len())
            .filter(|&op| !self.values.is_done(op) && side(op) == side(index))
            .filter_map(|op| operand(op).filter(joins).map(|value| (op, value)))
            .collect()
    }

    fn factor(&mut self, op: usize, value: Value) -> Result<Factor, EngineError> {
        let matrix = self.matrix(op)?;
        let OpKind::Linear { bias, .. } = &self.graph.ops[op].kind else {
            return Err(EngineError::Internal(format!("operation {op} is no product")));
        };
        let bias = match bias {
            Some(bias) => Some(self.weights.vector(self.store, bias)?),
            None => None,
        };
        let input = if self.reads_quantized(op) {
            Input::Quantized(self.quantize(value, self.terms(op)))
        } else {
            Input::Float(self.values.place(value))
        };
        Ok(Factor { matrix, start: 0, bias, plus: None, input })
    }

    /// The operation that alone reads a result, if the product's epilogue may take it over: one behind the cut works on other rows.
    fn follower(&self, op: usize) -> Option<usize> {
        let who = self.values.only_reader(op).filter(|_| !self.options.trace)?;
        (who < self.graph.ops.len() && (who < self.tail_from) == (op < self.tail_from)).then_some(who)
    }

    /// The sum that alone reads a result, and what else goes into it, if that is there already.
    fn sum(&self, op: usize) -> Option<(usize, Value)> {
        let who = self.follower(op)?;
        let OpKind::Add { a, b } = self.graph.ops[who].kind else { return None };
        let other =
            [a, b].map(|operand| self.values.value(operand)).into_iter().find(|value| value.op != op)?;
        self.values.stored(other.op).map(|_| (who, other))
    }

    /// The function that alone reads a result.
    fn activation(&self, op: usize) -> Option<(usize, Activation)> {
        let who = self.follower(op)?;
        match self.graph.ops[who].kind {
            OpKind::Activation { activation, .. } => Some((who, activation)),
            _ => None,
        }
    }

    /// The product with a sum and what follows that, a residual sum or an activation, as far as nothing else reads them; else on its
    /// own.
    fn single(
        &mut self,
        op: usize,
        mut factor: Factor,
        parts: &[(usize, Factor)],
        done: &mut Vec<Done>,
    ) -> Part {
        let width = self.graph.ops[op].width;
        let mut result = op;
        if let Some((sum, other)) = self.sum(op)
            && (self.activation(sum).is_some() || self.sum(sum).is_some())
        {
            factor.plus = Some(self.values.place(other));
            done.push((op, None));
            result = sum;
        }
        let (epilogue, to, last) = if let Some((who, activation)) = self.activation(result) {
            (Epilogue::Activate(activation), self.new_view(width), who)
        } else if let Some((who, other)) = self.sum(result) {
            let place = self.values.place(other);
            // Products read all of their inputs' rows, also channels beside those that they need.
            let read = |(_, factor): &(usize, Factor)| matches!(factor.input, Input::Float(view) if view.buffer == place.buffer);
            let free = self.may_overwrite(other, who) && !parts.iter().any(read);
            let to = if free { place } else { self.new_view(width) };
            (Epilogue::Residual(place), to, who)
        } else {
            (Epilogue::Store, self.new_view(width), result)
        };
        if last != result {
            done.push((result, None));
        }
        done.push((last, Some(to)));
        Part { factor, epilogue, to }
    }

    /// Gate and up projection with their product, if both are in the group and nothing else reads them. They may be one matrix that
    /// is cut by slices, and something may be added to each. Returns the part and the operations that it completes.
    fn gated(&mut self, op: usize, parts: &[(usize, Factor)]) -> Option<(Part, Vec<Done>)> {
        if self.options.trace {
            return None;
        }
        let result = self.sum(op).map_or(op, |(sum, _)| sum);
        let who = self.values.readers(result).first()?.0;
        let OpKind::Gated { gate, up, activation } = self.graph.ops.get(who)?.kind else { return None };
        if (who < self.tail_from) != (op < self.tail_from) {
            return None;
        }
        let half = |operand: usize| {
            let value = self.values.value(operand);
            let (product, factor) = self.behind(value.op, parts)?;
            let only = self.values.readers(value.op).iter().all(|&(reader, _)| reader == who);
            let whole =
                value.start.is_multiple_of(TILE) || !self.weights.matrices[factor.matrix].is_palette();
            let completed = [(product, None), (value.op, None)];
            (only && whole).then_some((completed, Factor { start: value.start, ..factor }))
        };
        let ((gate_ops, gate), (up_ops, up)) = (half(gate)?, half(up)?);
        let to = self.new_view(self.graph.ops[who].width);
        let part = Part { factor: gate, epilogue: Epilogue::Gated(up, activation), to };
        let mut done: Vec<Done> = [gate_ops, up_ops].concat();
        done.push((who, Some(to)));
        done.sort_by_key(|&(op, _)| op);
        done.dedup_by_key(|&mut (op, _)| op);
        Some((part, done))
    }

    /// The product of the group that a result is, or is the sum of with something that is there already.
    fn behind(&self, result: usize, parts: &[(usize, Factor)]) -> Option<(usize, Factor)> {
        let find = |op: usize| parts.iter().find(|(other, _)| *other == op).copied();
        if let Some(found) = find(result) {
            return Some(found);
        }
        let OpKind::Add { a, b } = self.graph.ops[result].kind else { return None };
        let (op, factor) = [a, b].into_iter().find_map(|operand| find(self.values.value(operand).op))?;
        let (sum, other) = self.sum(op)?;
        (sum == result).then(|| (op, Factor { plus: Some(self.values.place(other)), ..factor }))
    }

    fn touch_part(&mut self, part: &Part) {
        self.touch(part.to);
        let mut factors = [Some(part.factor), None];
        match part.epilogue {
            Epilogue::Residual(other) => self.touch(other),
            Epilogue::Gated(up, _) => factors[1] = Some(up),
            Epilogue::Store | Epilogue::Activate(_) => {}
        }
        for factor in factors.into_iter().flatten() {
            if let Some(plus) = factor.plus {
                self.touch(plus);
            }
            match factor.input {
                Input::Float(view) => self.touch(view),
                Input::Quantized(buffer) => self.touch_buffer(buffer),
            }
        }
    }
}
