//! The safe methods of [`Kernels`] for float operations on one row: they check every length, then call the level's function.

use super::api_rows::at_least;
use super::{Activation, LogitStats, MAXIMA_BLOCK, Norm, TERMS_BLOCK};
use crate::error::{KernelError, expect_len};
use crate::formats::Dense;
use crate::kernels::Kernels;
use crate::quantized::{QuantRowMut, blocks, padded_cols};

fn check_quantized(row: &QuantRowMut<'_>, cols: usize) -> Result<(), KernelError> {
    expect_len("columns of a quantized row", row.cols, cols)?;
    if cols > usize::MAX - 64 || row.values.len() < padded_cols(cols) {
        let expected = cols.saturating_add(63) / 64 * 64;
        return Err(KernelError::Length {
            what: "values of a quantized row",
            expected,
            got: row.values.len(),
        });
    }
    expect_len("scales of a quantized row", row.scales.len(), blocks(cols))?;
    expect_len("sums of a quantized row", row.sums.len(), blocks(cols))
}

fn check_norm(norm: &Norm<'_>, channels: usize) -> Result<(), KernelError> {
    if let Some(weight) = norm.weight {
        expect_len("weight of a norm", weight.len(), channels)?;
    }
    if let Some(bias) = norm.bias {
        expect_len("bias of a norm", bias.len(), channels)?;
    }
    Ok(())
}

pub(super) fn check_heads(what: &'static str, len: usize, head_dim: usize) -> Result<(), KernelError> {
    if head_dim == 0 || head_dim > super::MAX_HEAD_DIM {
        return Err(KernelError::Range {
            what: "channels of a head",
            got: head_dim,
            limit: super::MAX_HEAD_DIM,
        });
    }
    if !len.is_multiple_of(head_dim) {
        return Err(KernelError::Length { what, expected: len.div_ceil(head_dim) * head_dim, got: len });
    }
    Ok(())
}

// SAFETY of every call below: a reference to `Kernels` exists only where its level was detected, and what the
// method takes is checked before it runs this. (The functions check bounds by themselves too: see
// `instantiate`.)
macro_rules! run {
    ($func:expr, $($arg:expr),*) => {{
        // SAFETY: as stated above the macro.
        unsafe { ($func)($($arg),*) };
        Ok(())
    }};
}

impl Kernels {
    /// One row of float32 to int8 with one scale per block of 256: `scale = max|x| / 127`, `q = round(x · 127 / max|x|)`, ties
    /// to even; where a group would then be larger than [`GROUP`](crate::GROUP), the scale is larger (`docs/numerics.md`). A block
    /// whose maximum is below 127 × 2^-126 becomes zero; one that holds NaN or infinity gets scale NaN.
    ///
    /// # Errors
    /// When the row to write does not fit `x`.
    pub fn quantize(&self, x: &[f32], row: &mut QuantRowMut<'_>) -> Result<(), KernelError> {
        check_quantized(row, x.len())?;
        run!(self.float.quantize, x, row)
    }

    /// What the int8 of a row leaves of it, `x - scale · q` with one rounding, to int8 by the rule of [`Kernels::quantize`]: the two
    /// together come at least 127 times as near to `x`, mostly about 250. `first` are the bytes and the scales that that gave.
    ///
    /// # Errors
    /// When one of the rows does not fit `x`.
    pub fn quantize_rest(
        &self,
        x: &[f32],
        first: (&[i8], &[f32]),
        row: &mut QuantRowMut<'_>,
    ) -> Result<(), KernelError> {
        check_quantized(row, x.len())?;
        at_least("values of the first row", first.0.len(), x.len())?;
        expect_len("scales of the first row", first.1.len(), blocks(x.len()))?;
        run!(self.float.quantize_rest, x, first, row)
    }

    /// Adds `delta` to `x` in place (if given), normalises the sum, and writes the result as float32, as int8, or both.
    ///
    /// Means are sums in four chains of sixteen lanes, in float32.
    ///
    /// # Errors
    /// When a length does not fit `x`.
    pub fn add_norm_quantize(
        &self,
        norm: &Norm<'_>,
        x: &mut [f32],
        delta: Option<&[f32]>,
        out: Option<&mut [f32]>,
        quantized: Option<&mut QuantRowMut<'_>>,
    ) -> Result<(), KernelError> {
        check_norm(norm, x.len())?;
        if let Some(delta) = delta {
            expect_len("delta of a norm", delta.len(), x.len())?;
        }
        if let Some(out) = &out {
            expect_len("out of a norm", out.len(), x.len())?;
        }
        if let Some(row) = &quantized {
            check_quantized(row, x.len())?;
        }
        run!(self.float.add_norm_quantize, norm, x, delta, out, quantized)
    }

    /// Normalises each run of `head_dim` channels by itself, in place (query and key norms). Weight and bias have `head_dim`
    /// elements.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn norm_heads(&self, norm: &Norm<'_>, x: &mut [f32], head_dim: usize) -> Result<(), KernelError> {
        check_heads("heads to normalise", x.len(), head_dim)?;
        check_norm(norm, head_dim)?;
        run!(self.float.norm_heads, norm, x, head_dim)
    }

    /// Rotary embedding of one token's heads in place: `cos` and `sin` hold one value per pair. Pairs are (i, i + n) of n, or
    /// (2i, 2i + 1) when `interleaved`; channels from `2 * cos.len()` on pass through.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn rope(
        &self,
        x: &mut [f32],
        head_dim: usize,
        cos: &[f32],
        sin: &[f32],
        interleaved: bool,
    ) -> Result<(), KernelError> {
        check_heads("heads to rotate", x.len(), head_dim)?;
        expect_len("sines", sin.len(), cos.len())?;
        if cos.len() > head_dim / 2 {
            return Err(KernelError::Range { what: "rotated pairs", got: cos.len(), limit: head_dim / 2 });
        }
        run!(self.float.rope[usize::from(interleaved)], x, head_dim, cos, sin)
    }

    /// `activation(x)` in place.
    ///
    /// # Errors
    /// Never; the result matches the other operations.
    pub fn activate(&self, activation: Activation, x: &mut [f32]) -> Result<(), KernelError> {
        run!(self.float.activate[activation as usize], x)
    }

    /// `out = activation(gate) * up`.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn gated(
        &self,
        activation: Activation,
        gate: &[f32],
        up: &[f32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        expect_len("up of a gated activation", up.len(), gate.len())?;
        expect_len("out of a gated activation", out.len(), gate.len())?;
        run!(self.float.gated[activation as usize], gate, up, out)
    }

    /// `x += y`.
    ///
    /// # Errors
    /// When the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) -> Result<(), KernelError> {
        expect_len("summand", y.len(), x.len())?;
        run!(self.float.add, x, y)
    }

    /// `x *= factor`.
    ///
    /// # Errors
    /// Never; the result matches the other operations.
    pub fn scale(&self, x: &mut [f32], factor: f32) -> Result<(), KernelError> {
        run!(self.float.scale, x, factor)
    }

    /// `x = cap * tanh(x / cap)`.
    ///
    /// # Errors
    /// When `cap` is not a positive number.
    pub fn softcap(&self, x: &mut [f32], cap: f32) -> Result<(), KernelError> {
        check_cap(cap)?;
        run!(self.float.softcap, x, cap)
    }

    /// `x` limited to [-limit, limit]; NaN stays.
    ///
    /// # Errors
    /// When `limit` is negative or NaN.
    pub fn clip(&self, x: &mut [f32], limit: f32) -> Result<(), KernelError> {
        if limit.is_nan() || limit < 0.0 {
            return Err(KernelError::Invalid { what: "limit of a clip", reason: "must be 0 or more" });
        }
        run!(self.float.clip, x, limit)
    }

    /// One row of a dense table as float32, exactly.
    ///
    /// # Errors
    /// When the row is not in the table, or `out` does not have one element per column.
    pub fn embed_dense(&self, w: &Dense<'_>, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        let limit = w.rows();
        let bytes =
            w.row_bytes(row).ok_or(KernelError::Range { what: "row of the table", got: row, limit })?;
        expect_len("out of embed_dense", out.len(), w.cols())?;
        run!(self.float.embed_dense[w.dtype() as usize], bytes, out)
    }

    /// Maxima of each 64 logits, their overall maximum, and whether any is NaN.
    ///
    /// # Errors
    /// When `table` does not have one element per 64 logits.
    pub fn logit_maxima(&self, x: &[f32], table: &mut [f32]) -> Result<LogitStats, KernelError> {
        expect_len("maxima of logits", table.len(), x.len().div_ceil(MAXIMA_BLOCK))?;
        let mut stats = LogitStats::default();
        let done: Result<(), KernelError> = run!(self.float.logit_maxima, x, table, &mut stats);
        done.map(|()| stats)
    }

    /// `terms[i] = e^((x[i] - max) / temperature)`, and the sum of each 256 of them.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn logit_terms(
        &self,
        x: &[f32],
        max: f32,
        temperature: f32,
        terms: &mut [f32],
        sums: &mut [f32],
    ) -> Result<(), KernelError> {
        expect_len("terms of logits", terms.len(), x.len())?;
        expect_len("sums of logits", sums.len(), x.len().div_ceil(TERMS_BLOCK))?;
        run!(self.float.logit_terms, x, max, temperature, terms, sums)
    }
}

pub(super) fn check_cap(cap: f32) -> Result<(), KernelError> {
    if cap.is_finite() && cap > 0.0 {
        Ok(())
    } else {
        Err(KernelError::Invalid { what: "soft cap", reason: "must be positive and finite" })
    }
}
