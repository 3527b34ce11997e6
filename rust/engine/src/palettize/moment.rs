//! The second moment of a projection's inputs, summed over text on all cores: Σ_t s_t x_t x_tᵀ.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use pocketlm_kernels::{Kernels, Outer};

use crate::engine::machine_memory;
use crate::error::EngineError;
use crate::pool::ThreadPool;

/// Inputs of a block of the moment: two packed blocks of a chunk of tokens fit into the second-level cache.
const BLOCK: usize = 240;
/// Tokens whose products are summed before they are added to the moment.
const CHUNK: usize = 256;

/// A second moment in the making. Only the upper half is summed, in blocks.
#[derive(Debug)]
pub struct SecondMoment {
    width: usize,
    blocks: Vec<Mutex<Block>>,
}

#[derive(Debug)]
struct Block {
    row: usize,
    col: usize,
    sums: Vec<f32>,
}

impl SecondMoment {
    /// Of `width` inputs, nothing summed yet.
    ///
    /// # Errors
    /// When there are no inputs, or no memory for their products and the moment that [`SecondMoment::finish`] makes of them.
    pub fn new(width: usize) -> Result<Self, EngineError> {
        if width == 0 {
            return Err(EngineError::parameter("width", "must be positive"));
        }
        // Memory that is promised is taken only when it is written, block by block: the process would be killed on the way.
        let (needed, available) = (bytes(width), machine_memory().unwrap_or(u64::MAX));
        let memory = |available| EngineError::Memory {
            what: format!("second moment of {width} inputs"),
            needed: needed.unwrap_or(u64::MAX),
            available,
        };
        if needed.is_none_or(|needed| needed > available) {
            return Err(memory(available));
        }
        let mut blocks = Vec::new();
        for row in (0..width).step_by(BLOCK) {
            for col in (row..width).step_by(BLOCK) {
                let len = BLOCK.min(width - row) * BLOCK.min(width - col);
                let mut sums = Vec::new();
                sums.try_reserve_exact(len).map_err(|_| memory(0))?;
                sums.resize(len, 0.0);
                blocks.push(Mutex::new(Block { row, col, sums }));
            }
        }
        Ok(Self { width, blocks })
    }

    /// Adds the products of `x` (`[tokens, width]`), each token's times its weight if there are weights. The result depends on how
    /// tokens are divided among calls, but neither on threads nor on the instruction set.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn add(&self, x: &[f32], weights: Option<&[f32]>, threads: usize) -> Result<(), EngineError> {
        let tokens = x.len() / self.width;
        if !x.len().is_multiple_of(self.width) {
            let reason = format!("{} values for rows of {}", x.len(), self.width);
            return Err(EngineError::parameter("x", reason));
        }
        if let Some(weights) = weights.filter(|weights| weights.len() != tokens) {
            let reason = format!("{} of them for {tokens} tokens", weights.len());
            return Err(EngineError::parameter("weights", reason));
        }
        let kernels = Kernels::best().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let next = AtomicUsize::new(0);
        ThreadPool::global().run(threads.max(1), |_| {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            while let Some(block) = self.blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut block = block.lock().unwrap_or_else(PoisonError::into_inner);
                let Block { row, col, sums } = &mut *block;
                let (rows, cols) = (BLOCK.min(self.width - *row), BLOCK.min(self.width - *col));
                for first in (0..tokens).step_by(CHUNK) {
                    let terms = CHUNK.min(tokens - first);
                    let chunk = &x[first * self.width..(first + terms) * self.width];
                    self.pack(chunk, *row, rows, weights.map(|weights| &weights[first..]), &mut left);
                    self.pack(chunk, *col, cols, None, &mut right);
                    let factors =
                        Outer { a: &left, a_stride: rows, b: &right, b_stride: cols, terms, rows, cols };
                    if let Err(error) = kernels.outer_f32(&factors, sums, cols) {
                        panic!("a kernel refused its arguments: {error}");
                    }
                }
            }
        })
    }

    /// Columns `start` to `start + count` of a chunk of tokens, side by side.
    fn pack(&self, chunk: &[f32], start: usize, count: usize, weights: Option<&[f32]>, out: &mut Vec<f32>) {
        out.clear();
        for (token, row) in chunk.chunks_exact(self.width).enumerate() {
            let values = &row[start..start + count];
            match weights {
                None => out.extend_from_slice(values),
                Some(weights) => out.extend(values.iter().map(|x| x * weights[token])),
            }
        }
    }

    /// The whole moment, `[width, width]`, times `factor`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn finish(self, factor: f32) -> Result<Vec<f32>, EngineError> {
        let width = self.width;
        // Of `new` it is known that the product does not overflow.
        let len = width * width;
        let mut out = Vec::new();
        out.try_reserve_exact(len).map_err(|_| EngineError::Memory {
            what: format!("second moment of {width} inputs"),
            needed: 4 * len as u64,
            available: 0,
        })?;
        out.resize(len, 0.0);
        for block in self.blocks {
            let Block { row, col, sums } = block.into_inner().unwrap_or_else(PoisonError::into_inner);
            let cols = BLOCK.min(width - col);
            for (i, line) in sums.chunks_exact(cols).enumerate() {
                for (j, &sum) in line.iter().enumerate() {
                    let (i, j) = (row + i, col + j);
                    // Within a block of the diagonal both halves were summed; the upper one counts.
                    if i <= j {
                        out[i * width + j] = sum * factor;
                        out[j * width + i] = sum * factor;
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Bytes of the sums and of the finished moment, or `None` if that overflows.
fn bytes(width: usize) -> Option<u64> {
    let (width, block) = (width as u64, BLOCK as u64);
    let whole = width.checked_mul(width)?.checked_mul(4)?;
    // Besides the upper half, blocks of the diagonal have half of themselves too much.
    let sums = whole / 2 + width.checked_mul(2 * block)?;
    whole.checked_add(sums)
}
