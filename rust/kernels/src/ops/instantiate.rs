//! The macro that turns generic algorithms into one function per level.

/// Defines `ROWS`: for each line `Op, kind, variant => name = generic(argument: type, ...);` the function `generic` instantiated
/// for every instruction set of the target, as rows of the registry.
///
/// `generic` takes a [`crate::simd::Simd`] token first and must be `#[inline(always)]`, as everything that it calls: it becomes
/// vector code only inside the function that carries the target features.
///
/// The generated functions are `unsafe` for their target features alone. Their arguments are slices, whose
/// bounds the generic functions check themselves: a wrong length is a panic at worst.
macro_rules! instantiate {
    ($($op:ident, $kind:expr, $variant:expr => $name:ident = $generic:path, ($($arg:ident: $ty:ty),* $(,)?);)*) => {
        mod scalar {
            #[allow(unused_imports)]
            use super::*;
            $(/// # Safety
            /// Needs nothing. `unsafe` only to have the type that the registry holds.
            pub(super) unsafe fn $name($($arg: $ty),*) {
                $generic(crate::simd::Scalar, $($arg),*)
            })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            #[allow(unused_imports)]
            use super::*;
            $(/// # Safety
            /// The CPU must have the features: those of [`crate::Level::Avx2`].
            #[target_feature(enable = "avx2,fma,f16c")]
            pub(super) unsafe fn $name($($arg: $ty),*) {
                // SAFETY: this function has the features, and its caller promises that the CPU does.
                let token = unsafe { crate::simd::Avx2::new() };
                $generic(token, $($arg),*)
            })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            #[allow(unused_imports)]
            use super::*;
            $(/// # Safety
            /// The CPU must have the features, which are among those of [`crate::Level::Avx512`].
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            pub(super) unsafe fn $name($($arg: $ty),*) {
                // SAFETY: this function has the features, and its caller promises that the CPU does.
                let token = unsafe { crate::simd::Avx512::new() };
                $generic(token, $($arg),*)
            })*
        }
        #[cfg(target_arch = "aarch64")]
        mod neon {
            #[allow(unused_imports)]
            use super::*;
            $(/// # Safety
            /// The CPU must have the feature: that of [`crate::Level::Neon`].
            #[target_feature(enable = "neon")]
            pub(super) unsafe fn $name($($arg: $ty),*) {
                // SAFETY: this function has the feature, and its caller promises that the CPU does.
                let token = unsafe { crate::simd::Neon::new() };
                $generic(token, $($arg),*)
            })*
        }
        /// Rows of the registry.
        pub(crate) const ROWS: &[crate::registry::Row] = &[$(
            crate::registry::Row {
                kind: $kind,
                variant: $variant,
                level: crate::cpu::Level::Scalar,
                func: crate::registry::KernelFn::$op(scalar::$name),
            },
            #[cfg(target_arch = "x86_64")]
            crate::registry::Row {
                kind: $kind,
                variant: $variant,
                level: crate::cpu::Level::Avx2,
                func: crate::registry::KernelFn::$op(avx2::$name),
            },
            #[cfg(target_arch = "x86_64")]
            crate::registry::Row {
                kind: $kind,
                variant: $variant,
                level: crate::cpu::Level::Avx512,
                func: crate::registry::KernelFn::$op(avx512::$name),
            },
            #[cfg(target_arch = "aarch64")]
            crate::registry::Row {
                kind: $kind,
                variant: $variant,
                level: crate::cpu::Level::Neon,
                func: crate::registry::KernelFn::$op(neon::$name),
            },
        )*];
    };
}
