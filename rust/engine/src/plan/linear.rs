//! Matrix products: those that read the same value form one phase, and what follows one of them joins its epilogue.

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

    /// Products on the same side of the cut that read what `index` reads.
    fn group(&self, index: usize) -> Vec<(usize, Value)> {
        let operand = |op: usize| match self.graph.ops[op].kind {
            OpKind::Linear { x, .. } => Some(self.values.value(x)),
            _ => None,
        };
        let wanted = operand(index);
        let side = |op: usize| op < self.tail_from;
        (index..self.graph.ops.len())
            .filter(|&op| !self.values.is_done(op) && side(op) == side(index))
            .filter_map(|op| operand(op).filter(|_| operand(op) == wanted).map(|value| (op, value)))
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
            Input::Quantized(self.quantize(value))
        } else {
            Input::Float(self.values.place(value))
        };
        Ok(Factor { matrix, start: 0, bias, input })
    }

    /// The product with a residual sum or an activation, if nothing else reads it; else on its own.
    fn single(&mut self, op: usize, factor: Factor, parts: &[(usize, Factor)], done: &mut Vec<Done>) -> Part {
        let width = self.graph.ops[op].width;
        let reader = self.values.only_reader(op).filter(|_| !self.options.trace);
        // A reader behind the cut works on other rows.
        let reader = reader.filter(|&who| (who < self.tail_from) == (op < self.tail_from));
        let (epilogue, to, last) = match reader.and_then(|who| Some((who, &self.graph.ops.get(who)?.kind))) {
            Some((who, OpKind::Activation { activation, .. })) => {
                (Epilogue::Activate(*activation), self.new_view(width), who)
            }
            Some((who, OpKind::Add { a, b })) => {
                let other = [*a, *b]
                    .map(|operand| self.values.value(operand))
                    .into_iter()
                    .find(|value| value.op != op);
                match other.filter(|value| self.values.stored(value.op).is_some()) {
                    Some(other) => {
                        let place = self.values.place(other);
                        // Products read all of their inputs' rows, also channels beside those that they need.
                        let read = |(_, factor): &(usize, Factor)| matches!(factor.input, Input::Float(view) if view.buffer == place.buffer);
                        let free = self.may_overwrite(other, who) && !parts.iter().any(read);
                        let to = if free { place } else { self.new_view(width) };
                        (Epilogue::Residual(place), to, who)
                    }
                    None => (Epilogue::Store, self.new_view(width), op),
                }
            }
            _ => (Epilogue::Store, self.new_view(width), op),
        };
        if last != op {
            done.push((op, None));
        }
        done.push((last, Some(to)));
        Part { factor, epilogue, to }
    }

    /// Gate and up projection with their product, if both are in the group and nothing else reads them. They may be one matrix that
    /// is cut by slices. Returns the part and the operations that it completes.
    fn gated(&mut self, op: usize, parts: &[(usize, Factor)]) -> Option<(Part, Vec<Done>)> {
        if self.options.trace {
            return None;
        }
        let who = self.values.readers(op).first()?.0;
        let OpKind::Gated { gate, up, activation } = self.graph.ops.get(who)?.kind else { return None };
        if (who < self.tail_from) != (op < self.tail_from) {
            return None;
        }
        let half = |operand: usize| {
            let value = self.values.value(operand);
            let (_, factor) = parts.iter().find(|(other, _)| *other == value.op)?;
            let only = self.values.readers(value.op).iter().all(|&(reader, _)| reader == who);
            let whole =
                value.start.is_multiple_of(TILE) || !self.weights.matrices[factor.matrix].is_palette();
            (only && whole).then_some((value.op, Factor { start: value.start, ..*factor }))
        };
        let ((gate_op, gate), (up_op, up)) = (half(gate)?, half(up)?);
        let to = self.new_view(self.graph.ops[who].width);
        let part = Part { factor: gate, epilogue: Epilogue::Gated(up, activation), to };
        Some((part, vec![(gate_op, None), (up_op, None), (who, Some(to))]))
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
            match factor.input {
                Input::Float(view) => self.touch(view),
                Input::Quantized(buffer) => self.touch_buffer(buffer),
            }
        }
    }
}
