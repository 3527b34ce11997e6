//! Buffers and the program that is being collected: whatever an operation touches stays alive until its phase.

use super::build::Builder;
use super::layout::{Buffer, Content};
use super::values::Value;
use super::{Phase, RowOp, View};

impl Builder<'_> {
    /// The quantized copy of a value in so many terms, made now if there is none.
    pub fn quantize(&mut self, value: Value, terms: usize) -> usize {
        if let Some(&buffer) = self.quantized.get(&(value, terms)) {
            return buffer;
        }
        let from = self.values.place(value);
        let to = self.new_buffer(Content::Quantized(value.width, terms));
        self.quantized.insert((value, terms), to);
        self.push(RowOp::Quantize { from, to });
        to
    }

    /// A new buffer of floats in the current domain.
    pub fn new_view(&mut self, width: usize) -> View {
        View { buffer: self.new_buffer(Content::Float(width)), start: 0, width }
    }

    pub fn new_buffer(&mut self, content: Content) -> usize {
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
    pub fn push(&mut self, op: RowOp) {
        for view in op.views().into_iter().flatten() {
            self.touch(view);
        }
        if let RowOp::Quantize { to, .. } | RowOp::Norm { quantized: Some(to), .. } = op {
            self.touch_buffer(to);
        }
        self.pending_members.push((self.current, op.cost() as u64));
        self.pending.push(op);
    }

    /// Ends the program that is being collected.
    pub fn flush(&mut self) {
        if !self.pending.is_empty() {
            let members = std::mem::take(&mut self.pending_members);
            let ops = std::mem::take(&mut self.pending);
            self.push_phase(Phase::Rows(ops), members);
        }
    }

    /// Adds a phase with the operations that it works for and their shares in it.
    pub fn push_phase(&mut self, phase: Phase, members: Vec<(usize, u64)>) {
        self.members.push(members);
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
