//! The one table of kernels: what dispatch, tests, benches and `pocketlm doctor` read.
//!
//! To add a version of an existing kernel for another level, add one [`Row`] to the `ROWS` of its module.
//! To add an operation: a line in `kernel_ops!` below, `ROWS` in its module, the module in `TABLE`, a field in
//! [`crate::Kernels`], and a safe method of `Kernels` that checks lengths and calls the pointer.
//! Every operation has a scalar row for each kind and variant; other levels are optional.
//!
//! [`Op::EmbedPalette`] alone has nothing but scalar rows, on purpose: every line of a tile holds four bytes of a row, so a lookup
//! reads the whole tile for a sixteenth of it, once per token, and gathers bytes that are 64 apart. Vectors have little to
//! take hold of, and a row of 2,048 weights costs microseconds where the token's matrices cost milliseconds.

use std::ops::Range;

use crate::cpu::Level;
use crate::formats::{Dense, Palette};
use crate::ops::{Attention, KvBlockMut, LogitStats, Norm, Outer, PackedRows};
use crate::quantized::{QuantRowMut, QuantRows};
use crate::scratch::Scratch;

macro_rules! kernel_ops {
    ($($(#[$doc:meta])* $name:ident, $text:literal, $pointer:ty;)*) => {
        /// An operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Op { $($(#[$doc])* $name,)* }

        /// A kernel: a function pointer, typed by its operation.
        ///
        /// # Safety
        /// Of a call, here and of the pointer types of this module: the level of the kernel's [`Row`] must be
        /// available, the weights or the block of the cache must be of the row's kind, and the method of
        /// [`crate::Kernels`] of the same name must accept the arguments: it checks every length, stride,
        /// range and slot, and needs no kernel for an int8 product without rows. Those methods are the
        /// callers; what tests or measures kernels calls them with arguments of its own making.
        #[derive(Debug, Clone, Copy)]
        pub enum KernelFn { $($(#[$doc])* $name($pointer),)* }

        impl Op {
            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$name => $text,)* }
            }
        }

        impl KernelFn {
            /// The operation that the kernel does.
            pub const fn op(self) -> Op {
                match self { $(KernelFn::$name(_) => Op::$name,)* }
            }
        }
    };
}

kernel_ops! {
    /// Palettized weights × int8 activations. Variants "1", "2-16" (for more rows too, where it is faster), "many" (from nine on).
    MatmulPalette, "matmul_palette", MatmulPaletteFn;
    /// One row of a palettized table to float32. Variant "row".
    EmbedPalette, "embed_palette", EmbedPaletteFn;
    /// Palettized weights × float32 activations. Variant "many".
    MatmulPaletteF32, "matmul_palette_f32", MatmulPaletteF32Fn;
    /// Dense weights × float32 activations. Variants "1", "many".
    MatmulDense, "matmul_dense", MatmulDenseFn;
    /// Rows of float32 activations in the order in which the next reads them. Variant "rows".
    PackRows, "pack_rows", PackRowsFn;
    /// Dense weights × packed float32 activations. Variant "many".
    MatmulPacked, "matmul_packed", MatmulPackedFn;
    /// One row of a dense table to float32. Variant "row".
    EmbedDense, "embed_dense", EmbedDenseFn;
    /// Float32 to int8. Variant "row", as of all the operations on one row below.
    Quantize, "quantize", QuantizeFn;
    /// What the int8 of a row leaves of it, to int8.
    QuantizeRest, "quantize_rest", QuantizeRestFn;
    /// Residual sum, norm and quantization.
    AddNormQuantize, "add_norm_quantize", AddNormQuantizeFn;
    /// Norm of each head.
    NormHeads, "norm_heads", NormHeadsFn;
    /// Rotary embedding. Variants "halves", "interleaved".
    Rope, "rope", RopeFn;
    /// Activation function; kinds as [`crate::Activation`].
    Activate, "activate", ActivateFn;
    /// Activation function times a second input.
    Gated, "gated", GatedFn;
    /// Sum.
    Add, "add", AddFn;
    /// Product with a number.
    Scale, "scale", ScaleFn;
    /// Soft cap.
    Softcap, "softcap", SoftcapFn;
    /// Limits.
    Clip, "clip", ClipFn;
    /// Key and value of a token into the cache.
    KvWrite, "kv_write", KvWriteFn;
    /// Attention over one split. Variant "rows".
    AttentionSplit, "attention_split", AttentionSplitFn;
    /// Merge of splits. Variant "rows".
    AttentionMerge, "attention_merge", AttentionMergeFn;
    /// Maxima of logits.
    LogitMaxima, "logit_maxima", LogitMaximaFn;
    /// Exponentials of logits.
    LogitTerms, "logit_terms", LogitTermsFn;
    /// Sum of outer products in float32. Variant "rows", as of the next.
    OuterF32, "outer_f32", OuterF32Fn;
    /// The same in float64.
    OuterF64, "outer_f64", OuterF64Fn;
    /// A multiple of a float32 row added to a float64 row.
    AddScaled, "add_scaled", AddScaledFn;
}

/// `(weights, activations, tiles, scratch, out)`; out is row-major `[rows of x, 16 × number of tiles]`.
pub type MatmulPaletteFn = unsafe fn(&Palette<'_>, &QuantRows<'_>, Range<usize>, &mut Scratch, &mut [f32]);
/// `(weights, row, out)`; out holds one row.
pub type EmbedPaletteFn = unsafe fn(&Palette<'_>, usize, &mut [f32]);

/// `(weights, activations, rows, stride of activations, tiles, out)`; out is as for [`MatmulPaletteFn`].
pub type MatmulPaletteF32Fn = unsafe fn(&Palette<'_>, &[f32], usize, usize, Range<usize>, &mut [f32]);
/// `(weights, activations, rows, stride of activations, outputs, out)`; out is row-major `[rows, number of outputs]`.
pub type MatmulDenseFn = unsafe fn(&Dense<'_>, &[f32], usize, usize, Range<usize>, &mut [f32]);
/// `(activations, rows, stride of activations, inputs, packed)`.
pub type PackRowsFn = unsafe fn(&[f32], usize, usize, usize, &mut [f32]);
/// `(weights, activations, outputs, memory for a panel and for sums, out)`; out is as for [`MatmulDenseFn`].
pub type MatmulPackedFn =
    unsafe fn(&Dense<'_>, &PackedRows<'_>, Range<usize>, (&mut [f32], &mut [f32]), &mut [f32]);
/// `(bytes of the row, out)`.
pub type EmbedDenseFn = unsafe fn(&[u8], &mut [f32]);
/// `(x, row)`.
pub type QuantizeFn = unsafe fn(&[f32], &mut QuantRowMut<'_>);
/// `(x, its bytes and scales, row)`.
pub type QuantizeRestFn = unsafe fn(&[f32], (&[i8], &[f32]), &mut QuantRowMut<'_>);
/// `(norm, x, delta, out, quantized)`.
pub type AddNormQuantizeFn =
    unsafe fn(&Norm<'_>, &mut [f32], Option<&[f32]>, Option<&mut [f32]>, Option<&mut QuantRowMut<'_>>);
/// `(norm, x, channels of a head)`.
pub type NormHeadsFn = unsafe fn(&Norm<'_>, &mut [f32], usize);
/// `(x, channels of a head, cosines, sines)`.
pub type RopeFn = unsafe fn(&mut [f32], usize, &[f32], &[f32]);
/// `(x)`.
pub type ActivateFn = unsafe fn(&mut [f32]);
/// `(gate, up, out)`.
pub type GatedFn = unsafe fn(&[f32], &[f32], &mut [f32]);
/// `(x, y)`.
pub type AddFn = unsafe fn(&mut [f32], &[f32]);
/// `(x, factor)`.
pub type ScaleFn = unsafe fn(&mut [f32], f32);
/// `(x, cap)`.
pub type SoftcapFn = unsafe fn(&mut [f32], f32);
/// `(x, limit)`.
pub type ClipFn = unsafe fn(&mut [f32], f32);
/// `(key, value, block, slot)`.
pub type KvWriteFn = unsafe fn(&[f32], &[f32], KvBlockMut<'_>, usize);
/// `(rows and blocks, partial)`.
pub type AttentionSplitFn = unsafe fn(&Attention<'_>, &mut [f32]);
/// `(partials, rows, heads per token, channels of a head, token stride of out, out)`.
pub type AttentionMergeFn = unsafe fn(&[f32], usize, usize, usize, usize, &mut [f32]);
/// `(logits, table of maxima, summary)`.
pub type LogitMaximaFn = unsafe fn(&[f32], &mut [f32], &mut LogitStats);
/// `(logits, maximum, temperature, terms, sums)`.
pub type LogitTermsFn = unsafe fn(&[f32], f32, f32, &mut [f32], &mut [f32]);

/// `(factors, sum, elements from one row of the sum to the next)`.
pub type OuterF32Fn = unsafe fn(&Outer<'_, f32>, &mut [f32], usize);
/// As [`OuterF32Fn`].
pub type OuterF64Fn = unsafe fn(&Outer<'_, f64>, &mut [f64], usize);
/// `(y, factor, x)`.
pub type AddScaledFn = unsafe fn(&mut [f64], f64, &[f32]);

/// One kernel.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What is operated on: a weight kind ("p4", "f16"), an activation ("silu"), or "f32".
    pub kind: &'static str,
    /// Which of several kernels for the same operation and kind: "1", "2-16", "many"; "row" or "rows" where there is one.
    pub variant: &'static str,
    /// The level that it needs.
    pub level: Level,
    /// The kernel.
    pub func: KernelFn,
}

impl Row {
    /// The operation that the kernel does.
    pub const fn op(&self) -> Op {
        self.func.op()
    }
}

/// All rows, by module.
static TABLE: &[&[Row]] = &[
    crate::matmul::scalar::ROWS,
    crate::matmul::precise::ROWS,
    #[cfg(target_arch = "x86_64")]
    crate::arch::avx2::plain::ROWS,
    #[cfg(target_arch = "x86_64")]
    crate::arch::avx2::vnni::ROWS,
    #[cfg(target_arch = "x86_64")]
    crate::arch::avx512::vnni::ROWS,
    #[cfg(target_arch = "x86_64")]
    crate::arch::avx512::vbmi::ROWS,
    #[cfg(target_arch = "x86_64")]
    crate::arch::amx::ROWS,
    #[cfg(target_arch = "aarch64")]
    crate::arch::neon::plain::ROWS,
    #[cfg(target_arch = "aarch64")]
    crate::arch::neon::dotprod::ROWS,
    #[cfg(target_arch = "aarch64")]
    crate::arch::i8mm::ROWS,
    crate::formats::EMBED_ROWS,
];

/// All rows that this build has.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().chain(crate::ops::ROWS).flat_map(|rows| rows.iter())
}

/// The row that serves an operation at a level: the first found along the chain of fallbacks.
pub fn find(op: Op, kind: &str, variant: &str, level: Level) -> Option<&'static Row> {
    let mut at = Some(level);
    while let Some(level) = at {
        let fits = |r: &&Row| r.level == level && r.op() == op && r.kind == kind && r.variant == variant;
        if let Some(row) = rows().find(fits) {
            return Some(row);
        }
        at = level.fallback();
    }
    None
}

/// The function pointer that serves an operation, kind and variant at a level; returns `None` where the registry has a gap.
macro_rules! pick {
    ($level:expr, $op:ident, $kind:expr, $variant:expr) => {
        match $crate::registry::find($crate::registry::Op::$op, $kind, $variant, $level)?.func {
            $crate::registry::KernelFn::$op(func) => func,
            _ => return None,
        }
    };
}
pub(crate) use pick;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_listed_twice_and_each_has_a_scalar_sibling() {
        let mut seen = std::collections::HashSet::new();
        for row in rows() {
            let key = (row.op(), row.kind, row.variant);
            assert!(seen.insert((key, row.level)), "{key:?} at {} is listed twice", row.level);
            assert!(find(key.0, key.1, key.2, Level::Scalar).is_some(), "{key:?} has no scalar row");
        }
    }
}
