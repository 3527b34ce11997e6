//! Programs of row operations.

use std::ops::Range;

use pocketlm_kernels::{KernelError, Norm};

use super::{Pass, Step};
use crate::kv::KV_TOKENS;
use crate::plan::{Matrix, RowOp};

impl Step<'_, '_> {
    /// Runs a program on all rows of a pass, shared with the other workers.
    pub(super) fn shared_rows(&self, ops: &[RowOp], pass: Pass, threads: usize) -> Result<(), KernelError> {
        if ops.iter().any(|op| matches!(op, RowOp::WriteKv { .. })) {
            // A block of the cache is written by one worker.
            while let Some(run) = self.claim(self.schedule.runs.len()) {
                self.program(ops, pass, self.schedule.runs[run].clone())?;
            }
            return Ok(());
        }
        let chunk = (pass.rows / (4 * threads)).max(1);
        while let Some(unit) = self.claim(pass.rows.div_ceil(chunk)) {
            self.program(ops, pass, unit * chunk..((unit + 1) * chunk).min(pass.rows))?;
        }
        Ok(())
    }

    /// Runs a program on some rows, row by row. These rows, and the blocks that they go to, are this worker's until the next barrier.
    pub(super) fn program(&self, ops: &[RowOp], pass: Pass, rows: Range<usize>) -> Result<(), KernelError> {
        for row in rows {
            for op in ops {
                self.row_op(op, pass, row)?;
            }
        }
        Ok(())
    }

    fn row_op(&self, op: &RowOp, pass: Pass, row: usize) -> Result<(), KernelError> {
        let (arena, kernels) = (&self.arena, self.kernels);
        // SAFETY (of all calls below): row programs touch only this row of their buffers, and each row is one
        // worker's; what is read of other rows (by a gather, and of rotary tables in the tail) was written in
        // an earlier phase and stays as it is. What an operation writes meets nothing else that it touches:
        // an operand that is changed in place is alone or its summand lies apart from it, and tables,
        // quantized rows and all other results have buffers of their own.
        match *op {
            RowOp::RopeTable { table } => {
                let table = &self.plan.ropes[table];
                // SAFETY: see above; tables have one row for each row of the step, and only this operation
                // writes them.
                let all = unsafe { arena.row_mut(table.view, row) };
                let (cos, sin) = all.split_at_mut(all.len() / 2);
                let position = self.schedule.positions[self.step_row(pass, row)] as usize;
                table.angles.fill(position, cos, sin);
                Ok(())
            }
            RowOp::Embed { matrix, to } => {
                let id = self.schedule.ids[self.step_row(pass, row)];
                // SAFETY: see above.
                self.lookup(matrix, id as usize, unsafe { arena.row_mut(to, row) })
            }
            RowOp::Positions { matrix, to } => {
                let position = self.schedule.positions[self.step_row(pass, row)];
                // SAFETY: see above.
                self.lookup(matrix, position as usize, unsafe { arena.row_mut(to, row) })
            }
            RowOp::Copy { from, to } => {
                // SAFETY: see above.
                unsafe { arena.row_mut(to, row).copy_from_slice(arena.row(from, row)) };
                Ok(())
            }
            RowOp::Gather { from, to } => {
                // SAFETY: see above; the source is of an earlier phase, in a buffer that nobody writes any
                // more in this step.
                unsafe { arena.row_mut(to, row).copy_from_slice(arena.row(from, self.step_row(pass, row))) };
                Ok(())
            }
            // SAFETY: see above.
            RowOp::Add { to, other } => unsafe { kernels.add(arena.row_mut(to, row), arena.row(other, row)) },
            RowOp::Norm { vectors, x, delta, to, quantized } => {
                // SAFETY: see above.
                unsafe {
                    kernels.add_norm_quantize(
                        &self.norm(vectors),
                        arena.row_mut(x, row),
                        delta.map(|delta| arena.row(delta, row)),
                        to.map(|to| arena.row_mut(to, row)),
                        quantized.map(|to| arena.quantized_row_mut(to, row, 0)).as_mut(),
                    )
                }
            }
            RowOp::NormHeads { vectors, x, group } => {
                // SAFETY: see above.
                kernels.norm_heads(&self.norm(vectors), unsafe { arena.row_mut(x, row) }, group)
            }
            RowOp::Rope { table, x, head_dim } => {
                let table = &self.plan.ropes[table];
                // SAFETY: see above; the table's row was filled in the first phase: before, or earlier in
                // this program.
                let (x, table_row) =
                    unsafe { (arena.row_mut(x, row), arena.row(table.view, self.step_row(pass, row))) };
                let (cos, sin) = table_row.split_at(table_row.len() / 2);
                kernels.rope(x, head_dim, cos, sin, table.rotary.interleaved)
            }
            RowOp::Activate { x, activation } => {
                // SAFETY: see above.
                kernels.activate(activation, unsafe { arena.row_mut(x, row) })
            }
            // SAFETY: see above.
            RowOp::Gated { gate, up, to, activation } => unsafe {
                kernels.gated(activation, arena.row(gate, row), arena.row(up, row), arena.row_mut(to, row))
            },
            // SAFETY: see above.
            RowOp::Scale { x, factor } => kernels.scale(unsafe { arena.row_mut(x, row) }, factor),
            // SAFETY: see above.
            RowOp::Softcap { x, cap } => kernels.softcap(unsafe { arena.row_mut(x, row) }, cap),
            // SAFETY: see above.
            RowOp::Clip { x, limit } => kernels.clip(unsafe { arena.row_mut(x, row) }, limit),
            // SAFETY: see above.
            RowOp::Quantize { from, to } => unsafe {
                let x = arena.row(from, row);
                let mut first = arena.quantized_row_mut(to, row, 0);
                kernels.quantize(x, &mut first)?;
                if arena.terms(to) == 2 {
                    let mut rest = arena.quantized_row_mut(to, row, 1);
                    kernels.quantize_rest(x, (first.values, first.scales), &mut rest)?;
                }
                Ok(())
            },
            RowOp::WriteKv { cache, k, v } => {
                let dim = self.kv.shape(cache).head_dim;
                let (block, slot) =
                    (self.schedule.blocks[row], self.schedule.positions[row] as usize % KV_TOKENS);
                // SAFETY: see above.
                let (k, v) = unsafe { (arena.row(k, row), arena.row(v, row)) };
                for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                    // SAFETY: the rows that go to a block are one worker's, which is done with one head of it
                    // before the next, and attention reads behind the next barrier. No sequence is twice in a
                    // step, and sequences share no block that a step writes: `KvCache::extend` copied it.
                    let block = unsafe { self.kv.write(block, cache, head) };
                    kernels.kv_write(k, v, block, slot)?;
                }
                Ok(())
            }
        }
    }

    fn lookup(&self, matrix: usize, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        match &self.plan.weights.matrices[matrix] {
            matrix @ Matrix::Palette(_) => self.kernels.embed_palette(&matrix.palette(), row, out),
            matrix @ Matrix::Dense { .. } => self.kernels.embed_dense(&matrix.dense(), row, out),
        }
    }

    fn norm(&self, vectors: usize) -> Norm<'_> {
        let weights = &self.plan.weights;
        let norm = &weights.norms[vectors];
        let vector = |index: Option<usize>| index.map(|index| weights.vectors[index].as_slice());
        Norm {
            kind: norm.kind,
            eps: norm.eps,
            weight: vector(norm.weight),
            bias: vector(norm.bias),
            offset: norm.offset,
        }
    }
}
