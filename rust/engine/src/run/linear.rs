//! Matrix products: outputs claimed by the tile, each with its epilogue.

use std::ops::Range;

use pocketlm_kernels::{KernelError, TILE};

use super::shares::Work;
use super::{Halt, Pass, Step, Worker};
use crate::plan::{Epilogue, Factor, Input, Matrix, Part, Plan, View, gains};
use crate::pool::Team;

/// Rows from which kernels may work on panels of 64 outputs, so that smaller chunks would decode weights for nothing.
const MANY_ROWS: usize = 9;
/// Tiles of a panel.
const PANEL: usize = 4;
/// Weights that a claim should read at least, to outweigh the claim: about half a microsecond.
const CHUNK_BYTES: usize = 12 << 10;
/// Floats of a worker's results for one chunk, if a panel of all rows needs no more.
const PRODUCT_LEN: usize = 32 << 10;

/// Floats that a worker's memory for the results of a chunk holds: a panel of all rows, or [`PRODUCT_LEN`].
pub(super) fn product_len(plan: &Plan) -> usize {
    (plan.max_rows * PANEL * TILE).max(PRODUCT_LEN)
}

impl Step<'_, '_> {
    /// Works, as one of a team, on the products of a phase until no outputs are left.
    pub(super) fn linear(
        &self,
        parts: &[Part],
        pass: Pass,
        team: &Team<'_>,
        worker: &mut Worker,
    ) -> Result<(), Halt> {
        let packed = self.plan.packed_input(parts, pass.rows);
        if let Some(view) = packed {
            self.pack(view, pass.rows)?;
            team.wait()?;
        }
        let tiles = |part: &Part| part.to.width.div_ceil(TILE);
        let terms = parts.iter().map(|part| self.terms(&part.factor)).max().unwrap_or(1);
        let room = worker.products[0].len() / (pass.rows * terms * TILE);
        let piece = self.least_chunk(parts, pass.rows).min(room);
        let work = Work { tiles: parts.iter().map(tiles).sum(), piece, most: room };
        while let Some(claimed) = self.shares.claim(work, team.index(), team.size()) {
            let mut base = 0;
            for part in parts {
                let count = tiles(part);
                let (start, end) = (claimed.start.max(base), claimed.end.min(base + count));
                if start < end {
                    self.part(part, (pass.rows, packed), start - base..end - base, worker)?;
                }
                base += count;
            }
        }
        Ok(())
    }

    /// Terms of what a factor reads: rows of products that add up to one.
    fn terms(&self, factor: &Factor) -> usize {
        match factor.input {
            Input::Quantized(buffer) => self.arena.terms(buffer),
            Input::Float(_) => 1,
        }
    }

    /// Tiles that are worth a claim.
    fn least_chunk(&self, parts: &[Part], rows: usize) -> usize {
        if rows >= MANY_ROWS {
            return PANEL;
        }
        let tile_bytes = |part: &Part| {
            let matrix = &self.plan.weights.matrices[part.factor.matrix];
            let tile = matrix.bytes() / matrix.rows().div_ceil(TILE);
            if matches!(part.epilogue, Epilogue::Gated(..)) { 2 * tile } else { tile }
        };
        let largest = parts.iter().map(tile_bytes).max().unwrap_or(1).max(1);
        CHUNK_BYTES.div_ceil(largest)
    }

    /// Some tiles of a product, through the epilogue.
    fn part(
        &self,
        part: &Part,
        (rows, packed): (usize, Option<View>),
        tiles: Range<usize>,
        worker: &mut Worker,
    ) -> Result<(), KernelError> {
        let outputs = tiles.start * TILE..(tiles.end * TILE).min(part.to.width);
        let Worker { scratch, products: [product, partner], .. } = worker;
        let stride = self.product(&part.factor, (rows, packed), &outputs, scratch, product)?;
        // A matrix of another kind has another stride.
        let partner_stride = match &part.epilogue {
            Epilogue::Gated(up, _) => self.product(up, (rows, packed), &outputs, scratch, partner)?,
            _ => 0,
        };
        let count = outputs.len();
        let to = View { start: part.to.start + outputs.start, width: count, ..part.to };
        for row in 0..rows {
            let y = &mut product[row * stride..][..count];
            self.add_terms(&part.factor, row, &outputs, y)?;
            // SAFETY: these outputs were claimed by this worker alone. Nothing else of this phase reads or
            // writes their place: the planner gives a result a buffer of its own, or as a sum the place of
            // its operand if no product of the phase reads that buffer and nothing but the sum reads that
            // place any more.
            let target = unsafe { self.arena.row_mut(to, row) };
            match &part.epilogue {
                Epilogue::Store => target.copy_from_slice(y),
                Epilogue::Residual(other) if *other == part.to => self.kernels.add(target, y)?,
                Epilogue::Residual(other) => {
                    let other = View { start: other.start + outputs.start, width: count, ..*other };
                    // SAFETY: a value of an earlier phase. No part of this one writes there: this part's
                    // result has a buffer of its own, as it is not the operand's place, and another's may not
                    // go where this sum still has to read.
                    target.copy_from_slice(unsafe { self.arena.row(other, row) });
                    self.kernels.add(target, y)?;
                }
                Epilogue::Activate(activation) => {
                    target.copy_from_slice(y);
                    self.kernels.activate(*activation, target)?;
                }
                Epilogue::Gated(up, activation) => {
                    let u = &mut partner[row * partner_stride..][..count];
                    self.add_terms(up, row, &outputs, u)?;
                    self.kernels.gated(*activation, y, u, target)?;
                }
            }
        }
        Ok(())
    }

    /// Computes outputs of a factor into `out`, from packed rows if it reads what was packed and gains by it; returns the floats from
    /// one row to the next: palettized matrices yield whole tiles.
    fn product(
        &self,
        factor: &Factor,
        (rows, packed): (usize, Option<View>),
        outputs: &Range<usize>,
        scratch: &mut pocketlm_kernels::Scratch,
        out: &mut [f32],
    ) -> Result<usize, KernelError> {
        let matrix = &self.plan.weights.matrices[factor.matrix];
        let stride = if matrix.is_palette() { outputs.len().next_multiple_of(TILE) } else { outputs.len() };
        let terms = self.terms(factor);
        let out = &mut out[..rows * terms * stride];
        let (start, end) = (factor.start + outputs.start, factor.start + outputs.end);
        let tiles = start / TILE..end.div_ceil(TILE);
        // SAFETY (of the calls below): the inputs were written in earlier phases, and no part of this one has
        // its result in a buffer that a product of it reads.
        match (matrix, factor.input) {
            (Matrix::Palette(_), Input::Quantized(buffer)) => {
                // SAFETY: see above.
                let x = unsafe { self.arena.quantized_rows(buffer, rows) }?;
                self.kernels.matmul_palette(&matrix.palette(), &x, tiles, scratch, out)?;
            }
            (Matrix::Palette(_), Input::Float(view)) => {
                // SAFETY: see above.
                let (x, x_stride) = unsafe { self.arena.rows(view, 0, rows) };
                self.kernels.matmul_palette_f32(&matrix.palette(), x, rows, x_stride, tiles, out)?;
            }
            (Matrix::Dense { .. }, Input::Float(view)) if packed == Some(view) && gains(matrix, rows) => {
                // SAFETY: packed before the barrier in front of the products; nobody writes packed rows in this phase any more.
                let x = unsafe { self.arena.packed(rows, view.width) }?;
                self.kernels.matmul_packed(&matrix.dense(), &x, start..end, scratch, out)?;
            }
            (Matrix::Dense { .. }, Input::Float(view)) => {
                // SAFETY: see above.
                let (x, x_stride) = unsafe { self.arena.rows(view, 0, rows) };
                self.kernels.matmul_dense(&matrix.dense(), x, rows, x_stride, start..end, out)?;
            }
            (Matrix::Dense { .. }, Input::Quantized(_)) => {
                return Err(KernelError::Invalid {
                    what: "input of a dense matrix",
                    reason: "it is quantized",
                });
            }
        }
        if terms > 1 {
            self.add_up(out, rows, terms, stride)?;
        }
        Ok(stride)
    }

    /// The sums of the products of each row's terms, in order, to where the row's products belong.
    fn add_up(&self, out: &mut [f32], rows: usize, terms: usize, stride: usize) -> Result<(), KernelError> {
        for row in 0..rows {
            let first = row * terms * stride;
            out.copy_within(first..first + stride, row * stride);
            let (sums, others) = out.split_at_mut(first + stride);
            for other in others[..(terms - 1) * stride].chunks_exact(stride) {
                self.kernels.add(&mut sums[row * stride..][..stride], other)?;
            }
        }
        Ok(())
    }

    /// Adds bias and earlier value, where there are such.
    fn add_terms(
        &self,
        factor: &Factor,
        row: usize,
        outputs: &Range<usize>,
        y: &mut [f32],
    ) -> Result<(), KernelError> {
        let start = factor.start + outputs.start;
        if let Some(bias) = factor.bias {
            self.kernels.add(y, &self.plan.weights.vectors[bias][start..start + outputs.len()])?;
        }
        if let Some(plus) = factor.plus {
            let view = View { start: plus.start + start, width: outputs.len(), ..plus };
            // SAFETY: a value of an earlier phase. No part of this one writes there: results have buffers of
            // their own, or the place of an operand that nothing else of the phase reads.
            self.kernels.add(y, unsafe { self.arena.row(view, row) })?;
        }
        Ok(())
    }
}
