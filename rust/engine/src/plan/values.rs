//! Where results lie while a plan is made, and who still has to read them.

use crate::graph::{Graph, OpKind};

use super::View;

/// Some channels of an operation's result. Slices are resolved into this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    /// The operation, never a slice.
    pub op: usize,
    pub start: usize,
    pub width: usize,
}

impl Value {
    fn meets(&self, start: usize, width: usize) -> bool {
        self.start < start + width && start < self.start + self.width
    }
}

/// Places and readers of all results.
pub(super) struct Values {
    /// What each operation's result is, slices resolved.
    resolved: Vec<Value>,
    /// Readers of each operation's result: which operation reads which channels. The caller reads the last one, as an operation
    /// behind all others.
    readers: Vec<Vec<(usize, Value)>>,
    /// Where a result lies.
    places: Vec<Option<View>>,
    done: Vec<bool>,
}

impl Values {
    pub fn new(graph: &Graph) -> Self {
        let count = graph.ops.len();
        let mut resolved: Vec<Value> = Vec::with_capacity(count);
        let mut readers = vec![Vec::new(); count];
        for (index, op) in graph.ops.iter().enumerate() {
            if let OpKind::Slice { x, start } = op.kind {
                let base = resolved[x];
                resolved.push(Value { op: base.op, start: base.start + start, width: op.width });
                continue;
            }
            resolved.push(Value { op: index, start: 0, width: op.width });
            for operand in op.inputs() {
                let value: Value = resolved[operand];
                readers[value.op].push((index, value));
            }
        }
        let last = resolved[count - 1];
        readers[last.op].push((count, last));
        let done = graph.ops.iter().map(|op| matches!(op.kind, OpKind::Slice { .. })).collect();
        Self { resolved, readers, places: vec![None; count], done }
    }

    /// What an operand is.
    pub fn value(&self, operand: usize) -> Value {
        self.resolved[operand]
    }

    /// Readers of an operation's result, with the channels that they read.
    pub fn readers(&self, op: usize) -> &[(usize, Value)] {
        &self.readers[op]
    }

    pub fn is_done(&self, op: usize) -> bool {
        self.done.get(op).copied().unwrap_or(false)
    }

    /// Marks an operation as planned, its result being at `place`.
    pub fn finish(&mut self, op: usize, place: Option<View>) {
        self.done[op] = true;
        self.places[op] = place;
    }

    /// Moves a result.
    pub fn relocate(&mut self, op: usize, place: View) {
        self.places[op] = Some(place);
    }

    /// Where a value lies. It was planned before: graphs are in order.
    pub fn place(&self, value: Value) -> View {
        let Some(whole) = self.places[value.op] else { panic!("operation {} has no place yet", value.op) };
        View { buffer: whole.buffer, start: whole.start + value.start, width: value.width }
    }

    /// Where an operation's result lies, if it is stored anywhere.
    pub fn stored(&self, op: usize) -> Option<View> {
        self.places[op]
    }

    /// Results that lie somewhere and that operations not yet planned will read.
    pub fn live(&self) -> Vec<usize> {
        let wanted = |op: &usize| {
            self.places[*op].is_some() && self.readers[*op].iter().any(|(who, _)| !self.is_done(*who))
        };
        (0..self.places.len()).filter(wanted).collect()
    }

    /// Whether `reader` may write over a value that it reads: nobody else reads anything there any more.
    pub fn may_overwrite(&self, value: Value, reader: usize) -> bool {
        let place = self.place(value);
        let clash = |op: usize| {
            let Some(whole) = self.places[op] else { return false };
            whole.buffer == place.buffer
                && self.readers[op].iter().any(|&(who, read)| {
                    who != reader
                        && !self.is_done(who)
                        && Value { start: whole.start + read.start, ..read }.meets(place.start, place.width)
                })
        };
        !(0..self.places.len()).any(clash)
    }

    /// Whether `reader` alone reads the whole of an operation's result, once.
    pub fn only_reader(&self, op: usize) -> Option<usize> {
        match self.readers[op][..] {
            [(who, value)] if value == self.resolved[op] => Some(who),
            _ => None,
        }
    }
}
