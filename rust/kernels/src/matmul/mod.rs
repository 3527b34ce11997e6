//! Palettized weights × int8 activations.

pub(crate) mod choice;
pub(crate) mod few;
pub(crate) mod many;
pub(crate) mod precise;
pub(crate) mod scalar;

/// Instantiates the kernels for a [`crate::arch::Dot`] type inside functions with its instructions, as `ROWS`.
#[allow(unused_macros)]
macro_rules! instances {
    ($dot:ty, $level:expr, $features:literal) => {
        use crate::formats::Palette;
        use crate::matmul::{few, many, precise};
        use crate::quantized::QuantRows;
        use crate::registry::{KernelFn, MatmulPaletteF32Fn, MatmulPaletteFn, Row};
        use crate::scratch::Scratch;
        use std::ops::Range;

        #[target_feature(enable = $features)]
        unsafe fn one<const BITS: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            _: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the features are enabled here; the caller has checked the lengths.
            unsafe { few::one::<$dot, BITS>(w, x, tiles, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn some<const BITS: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            _: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the features are enabled here; the caller has checked the lengths.
            unsafe { few::few::<$dot, BITS>(w, x, tiles, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn all<const BITS: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            scratch: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the features are enabled here; the caller has checked the lengths.
            unsafe { many::many::<$dot, BITS>(w, x, tiles, scratch, out) }
        }

        #[target_feature(enable = $features)]
        unsafe fn exact<const BITS: usize>(
            w: &Palette<'_>,
            data: &[f32],
            rows: usize,
            stride: usize,
            tiles: Range<usize>,
            out: &mut [f32],
        ) {
            // SAFETY: the features are enabled here; the caller has checked the lengths.
            unsafe { precise::any::<$dot, BITS>(w, precise::Rows { data, rows, stride }, tiles, out) }
        }

        const fn precise_row(kind: &'static str, func: MatmulPaletteF32Fn) -> Row {
            Row { kind, variant: "many", level: $level, func: KernelFn::MatmulPaletteF32(func) }
        }

        const fn row(kind: &'static str, variant: &'static str, func: MatmulPaletteFn) -> Row {
            Row { kind, variant, level: $level, func: KernelFn::MatmulPalette(func) }
        }

        pub(crate) const ROWS: &[Row] = &[
            row("p2", "1", one::<2>),
            row("p2", "2-16", some::<2>),
            row("p2", "many", all::<2>),
            row("p3", "1", one::<3>),
            row("p3", "2-16", some::<3>),
            row("p3", "many", all::<3>),
            row("p4", "1", one::<4>),
            row("p4", "2-16", some::<4>),
            row("p4", "many", all::<4>),
            row("p8", "1", one::<8>),
            row("p8", "2-16", some::<8>),
            row("p8", "many", all::<8>),
            precise_row("p2", exact::<2>),
            precise_row("p3", exact::<3>),
            precise_row("p4", exact::<4>),
            precise_row("p8", exact::<8>),
        ];
    };
}
#[allow(unused_imports)]
pub(crate) use instances;
