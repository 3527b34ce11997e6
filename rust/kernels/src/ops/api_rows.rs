//! The safe methods of [`Kernels`] for float operations on many rows: products with dense weights, and attention.

use std::ops::Range;

use super::api::{check_cap, check_heads};
use super::{Attention, KV_TOKENS, KvBlock, KvBlockMut, KvType, SPLIT_TOKENS};
use crate::error::{KernelError, expect_len, product};
use crate::formats::{Dense, Palette, TILE};
use crate::kernels::{Kernels, check_tiles};

/// Elements that `count` pieces of `len` need when they begin `stride` apart.
pub(super) fn span(
    what: &'static str,
    count: usize,
    stride: usize,
    len: usize,
) -> Result<usize, KernelError> {
    if count == 0 {
        return Ok(0);
    }
    if stride < len && count > 1 {
        return Err(KernelError::Range { what: "stride", got: stride, limit: len });
    }
    product(what, &[count - 1, stride])?.checked_add(len).ok_or(KernelError::Overflow { what })
}

pub(super) fn at_least(what: &'static str, got: usize, expected: usize) -> Result<(), KernelError> {
    if got >= expected { Ok(()) } else { Err(KernelError::Length { what, expected, got }) }
}

pub(super) fn check_outputs(w: &Dense<'_>, outputs: &Range<usize>) -> Result<(), KernelError> {
    if outputs.start > outputs.end {
        return Err(KernelError::Invalid { what: "outputs", reason: "the range ends before it starts" });
    }
    if outputs.end > w.rows() {
        return Err(KernelError::Range { what: "outputs", got: outputs.end, limit: w.rows() });
    }
    Ok(())
}

impl Kernels {
    /// Palettized weights × float32 activations, for `m` rows that begin `stride` apart: `y[i, n] = scale[n] * Σ_k value[n, k] ·
    /// x[i * stride + k]`, the sum over k in order with fused multiply-adds. `tiles` and `out` are as for
    /// [`Kernels::matmul_palette`].
    ///
    /// # Errors
    /// When a length, the stride or the range does not fit.
    pub fn matmul_palette_f32(
        &self,
        w: &Palette<'_>,
        x: &[f32],
        m: usize,
        stride: usize,
        tiles: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_tiles(w, &tiles)?;
        at_least("activations", x.len(), span("activations", m, stride, w.cols())?)?;
        let len = product("out of matmul_palette_f32", &[m, tiles.len(), TILE])?;
        expect_len("out of matmul_palette_f32", out.len(), len)?;
        if out.is_empty() {
            return Ok(()); // kernels step through the outputs of at least one row
        }
        let kernel = self.float.matmul_palette_f32[w.kind() as usize];
        // SAFETY: the level was detected before the table was built; the kernel is of the weight's kind;
        // tiles, activations and the length of `out` were checked above.
        unsafe { kernel(w, x, m, stride, tiles, out) };
        Ok(())
    }

    /// Dense weights × float32 activations: `out[i, j] = Σ_k w[rows.start + j, k] · x[i * stride + k]` for `m` rows.
    ///
    /// The sum is in sixteen lanes (lane l: k ≡ l mod 16, in order, fused), then a fixed tree; so each element has the same
    /// bits for any `m`, any range of outputs and any level.
    ///
    /// # Errors
    /// When a length, the stride or the range does not fit.
    pub fn matmul_dense(
        &self,
        w: &Dense<'_>,
        x: &[f32],
        m: usize,
        stride: usize,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_outputs(w, &rows)?;
        at_least("activations", x.len(), span("activations", m, stride, w.cols())?)?;
        expect_len("out of matmul_dense", out.len(), product("out of matmul_dense", &[m, rows.len()])?)?;
        if m == 0 || rows.is_empty() {
            return Ok(());
        }
        let kernel = self.float.matmul_dense[w.dtype() as usize][usize::from(m > 1)];
        // SAFETY: the level was detected before the table was built; the kernel is of the weight's type;
        // outputs, activations and the length of `out` were checked above.
        unsafe { kernel(w, x, m, stride, rows, out) };
        Ok(())
    }

    /// Writes one token's key and value of one head into slot `slot` (0 to 63) of a block of the cache. As half floats, finite
    /// numbers beyond ±65504 become ±65504. As bytes, key and value each get the scale `amax / 127` and the numbers
    /// `round_ties_even(x * (127 / amax))`; NaN or infinity make the scale NaN. Nothing of other tokens is touched. For the layout
    /// see [`KvBlock`].
    ///
    /// # Errors
    /// When a length or the slot does not fit.
    pub fn kv_write(
        &self,
        k: &[f32],
        v: &[f32],
        block: KvBlockMut<'_>,
        slot: usize,
    ) -> Result<(), KernelError> {
        check_heads("key", k.len(), k.len())?;
        expect_len("value", v.len(), k.len())?;
        block.check(k.len())?;
        if slot >= KV_TOKENS {
            return Err(KernelError::Range { what: "slot of a block", got: slot, limit: KV_TOKENS });
        }
        // SAFETY: the level was detected before the table was built; the kernel is of the block's type;
        // lengths and slot were checked above.
        unsafe { (self.float.kv_write[block.dtype() as usize])(k, v, block, slot) };
        Ok(())
    }

    /// Attention of some rows over one split: for each row its maximum score, the sum of `e^(score - maximum)`, and the values
    /// summed with these weights (`partial`: `[rows][2 + head_dim]`). A row that sees nothing gets (-inf, 0, 0...).
    ///
    /// # Errors
    /// When a length does not fit, the blocks are not within one split, or a row sees a position of this split that the
    /// blocks do not hold.
    pub fn attention_split(&self, a: &Attention<'_>, partial: &mut [f32]) -> Result<(), KernelError> {
        check_attention(a)?;
        let len = product("partial attention", &[a.rows(), Attention::partial_len(a.head_dim)])?;
        expect_len("partial attention", partial.len(), len)?;
        let dtype = a.blocks.first().map_or(KvType::F16, KvBlock::dtype);
        // SAFETY: the level was detected before the table was built; the kernel is of the blocks' type;
        // lengths and positions were checked above.
        unsafe { (self.float.attention_split[dtype as usize])(a, partial) };
        Ok(())
    }

    /// Merges the partial results of splits, in ascending order of position: `partials` is `[splits][tokens * heads][2 +
    /// head_dim]`. Row `t * heads + h` goes to `out[t * token_stride + h * head_dim ..][..head_dim]`; a row that saw nothing
    /// becomes zeros.
    ///
    /// # Errors
    /// When a length or the stride does not fit.
    pub fn attention_merge(
        &self,
        partials: &[f32],
        tokens: usize,
        heads: usize,
        head_dim: usize,
        token_stride: usize,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        check_heads("head", head_dim, head_dim)?;
        let rows = product("partial attention", &[tokens, heads])?;
        let width = product("heads", &[heads, head_dim])?;
        at_least("out of attention", out.len(), span("out of attention", tokens, token_stride, width)?)?;
        if rows == 0 {
            return Ok(());
        }
        let split = product("partial attention", &[rows, Attention::partial_len(head_dim)])?;
        if !partials.len().is_multiple_of(split) {
            let expected = partials.len().div_ceil(split).saturating_mul(split);
            return Err(KernelError::Length { what: "partial attention", expected, got: partials.len() });
        }
        // SAFETY: the level was detected before the table was built, and the lengths were checked above.
        unsafe { (self.float.attention_merge)(partials, rows, heads, head_dim, token_stride, out) };
        Ok(())
    }
}

fn check_attention(a: &Attention<'_>) -> Result<(), KernelError> {
    check_heads("head", a.head_dim, a.head_dim)?;
    if let Some(cap) = a.softcap {
        check_cap(cap)?;
    }
    expect_len("starts of attention", a.starts.len(), a.ends.len())?;
    let width = product("heads", &[a.heads, a.head_dim])?;
    at_least("queries", a.q.len(), span("queries", a.ends.len(), a.token_stride, width)?)?;
    for block in a.blocks {
        block.check(a.head_dim)?;
        if block.dtype() != a.blocks[0].dtype() {
            return Err(KernelError::Invalid { what: "blocks", reason: "must be of one type" });
        }
    }
    let begin = a.first / SPLIT_TOKENS * SPLIT_TOKENS;
    let overflow = || KernelError::Overflow { what: "positions" };
    let end = begin.checked_add(SPLIT_TOKENS).ok_or_else(overflow)?;
    let held =
        a.blocks.len().checked_mul(KV_TOKENS).and_then(|n| a.first.checked_add(n)).ok_or_else(overflow)?;
    if !a.first.is_multiple_of(KV_TOKENS) || held > end {
        return Err(KernelError::Invalid {
            what: "blocks",
            reason: "must lie on block borders within one split",
        });
    }
    for (&from, &to) in a.starts.iter().zip(a.ends) {
        let (from, to) = ((from as usize).max(begin), (to as usize).min(end));
        if from < to && (from < a.first || to > held) {
            return Err(KernelError::Range { what: "visible positions", got: to, limit: held });
        }
    }
    Ok(())
}
