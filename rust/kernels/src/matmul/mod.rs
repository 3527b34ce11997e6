//! Palettized weights × int8 activations.

pub(crate) mod choice;
pub(crate) mod few;
pub(crate) mod many;
pub(crate) mod precise;
pub(crate) mod quads;
pub(crate) mod scalar;

/// Instantiates the kernels for a [`crate::arch::Dot`] type inside functions with its instructions, as `ROWS`.
#[allow(unused_macros)]
macro_rules! instances {
    ($dot:ty, $level:expr, $features:literal) => {
        use crate::formats::{Kind, Palette, each_kind};
        use crate::matmul::{few, instance_rows, many, precise, quads};
        use crate::quantized::QuantRows;
        use crate::registry::{KernelFn, MatmulPaletteF32Fn, MatmulPaletteFn, Row};
        use crate::scratch::Scratch;
        use std::ops::Range;

        /// The kernel for one row.
        ///
        /// # Safety
        /// Needs the features of this level; weights and lengths as for [`crate::registry::KernelFn`].
        #[target_feature(enable = $features)]
        unsafe fn one<const KIND: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            _: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the caller promises the features, which are those of the type, and weights of this kind
            // whose lengths fit.
            unsafe { few::one::<$dot, KIND>(w, x, tiles, out) }
        }

        /// The kernel for a few rows.
        ///
        /// # Safety
        /// Needs the features of this level; weights and lengths as for [`crate::registry::KernelFn`].
        #[target_feature(enable = $features)]
        unsafe fn some<const KIND: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            _: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the caller promises the features, which are those of the type, and weights of this kind
            // whose lengths fit.
            unsafe { few::few::<$dot, KIND>(w, x, tiles, out) }
        }

        /// The kernel for many rows.
        ///
        /// # Safety
        /// Needs the features of this level; weights and lengths as for [`crate::registry::KernelFn`].
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn all<const KIND: usize>(
            w: &Palette<'_>,
            x: &QuantRows<'_>,
            tiles: Range<usize>,
            scratch: &mut Scratch,
            out: &mut [f32],
        ) {
            // SAFETY: the caller promises the features, which are those of the type, and weights of this kind
            // whose lengths fit.
            unsafe { many::many::<$dot, quads::Quads, KIND>(w, x, tiles, scratch, out) }
        }

        /// The kernel for float32 activations.
        ///
        /// # Safety
        /// Needs the features of this level; weights and lengths as for [`crate::registry::KernelFn`].
        #[target_feature(enable = $features)]
        unsafe fn exact<const KIND: usize>(
            w: &Palette<'_>,
            data: &[f32],
            rows: usize,
            stride: usize,
            tiles: Range<usize>,
            out: &mut [f32],
        ) {
            // SAFETY: the caller promises the features, which are those of the type, and weights of this kind
            // whose lengths fit.
            unsafe { precise::any::<$dot, KIND>(w, precise::Rows { data, rows, stride }, tiles, out) }
        }

        const fn precise_row(kind: Kind, func: MatmulPaletteF32Fn) -> Row {
            let func = KernelFn::MatmulPaletteF32(func);
            Row { kind: kind.name(), variant: "many", level: $level, func }
        }

        const fn row(kind: Kind, variant: &'static str, func: MatmulPaletteFn) -> Row {
            Row { kind: kind.name(), variant, level: $level, func: KernelFn::MatmulPalette(func) }
        }

        pub(crate) const ROWS: &[Row] = each_kind!(instance_rows);
    };
}
#[allow(unused_imports)]
pub(crate) use instances;

/// The rows of each kind of a level `LEVEL` that has kernels for many rows alone, `all::<KIND>`.
#[allow(unused_macros)]
macro_rules! many_rows {
    ($($kind:ident)*) => {
        &[$(Row {
            kind: Kind::$kind.name(),
            variant: "many",
            level: LEVEL,
            func: KernelFn::MatmulPalette(all::<{ Kind::$kind as usize }>),
        }),*]
    };
}
#[allow(unused_imports)]
pub(crate) use many_rows;

/// The rows of each kind, of functions and constructors as [`instances`] defines them.
#[allow(unused_macros)]
macro_rules! instance_rows {
    ($($kind:ident)*) => {
        &[$(
            row(Kind::$kind, "1", one::<{ Kind::$kind as usize }>),
            row(Kind::$kind, "2-16", some::<{ Kind::$kind as usize }>),
            row(Kind::$kind, "many", all::<{ Kind::$kind as usize }>),
            precise_row(Kind::$kind, exact::<{ Kind::$kind as usize }>),
        )*]
    };
}
#[allow(unused_imports)]
pub(crate) use instance_rows;
