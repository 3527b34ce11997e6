//! Sixteen lanes of `f32`, written once for every instruction set.
//!
//! An algorithm takes a token `S: Simd` and calls the operations of this trait; each instruction set implements them with
//! the same IEEE-754 results, so one algorithm gives the same bits everywhere. A token can be made only by an `unsafe` call that
//! promises the CPU's features, which is why the operations themselves are safe. Algorithms are `#[inline(always)]` and are
//! instantiated inside functions that carry `#[target_feature]` (see `ops::instantiate`): only there do they become vector code.
//!
//! What "same bits" covers: every finite value, infinities and signed zeros; a NaN is a NaN everywhere, but its sign and
//! payload are unspecified (instruction sets disagree on them, and the compiler may swap operands).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use scalar::Scalar;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// The operations of one instruction set on vectors of sixteen lanes.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// Sixteen booleans.
    type M: Copy;
    /// Sixteen times four signed bytes, as [`Simd::dot4`] takes them.
    type Q: Copy;
    /// How many values of type `F` the register file holds; algorithms choose their tile shapes by it.
    const REGISTERS: usize;
    /// Whether products of one row, or of a few with large 16-bit matrices, with weights that are not palettized ask for memory ahead, where the
    /// processor's own prefetchers do worse (`docs/decisions/0009-no-bf16-dot-products.md`).
    const ASKS_AHEAD: bool = false;
    /// What [`Simd::dot4`] counts each byte of its first factor too much: `DOT_BIAS` times the sum of the second factor's bytes is
    /// in its result, which costs one subtraction in the end where the instruction takes unsigned bytes.
    const DOT_BIAS: i32;

    /// Reads 16 `f32` (little endian, any alignment).
    ///
    /// # Safety
    /// `p` must be valid for reading 64 bytes.
    unsafe fn f32_at(self, p: *const u8) -> Self::F;
    /// Reads 16 IEEE half floats (any alignment); the conversion is exact.
    ///
    /// # Safety
    /// `p` must be valid for reading 32 bytes.
    unsafe fn f16_at(self, p: *const u8) -> Self::F;
    /// Reads 16 bfloat16 (any alignment); the conversion is exact.
    ///
    /// # Safety
    /// `p` must be valid for reading 32 bytes.
    unsafe fn bf16_at(self, p: *const u8) -> Self::F;
    /// Reads 16 signed bytes (any alignment).
    ///
    /// # Safety
    /// `p` must be valid for reading 16 bytes.
    unsafe fn i8_at(self, p: *const u8) -> Self::F;
    /// Reads 64 signed bytes (any alignment), none of which is -128: lane l has those from 4 l to 4 l + 3.
    ///
    /// # Safety
    /// `p` must be valid for reading 64 bytes.
    unsafe fn quads_at(self, p: *const u8) -> Self::Q;
    /// Writes 16 columns of 8 rows: lane l of each, side by side, from `to + l * stride` on.
    ///
    /// # Safety
    /// `to` must be valid for writing 8 floats at each multiple of `stride` from 0 to 15.
    #[inline(always)]
    unsafe fn store_columns(self, to: *mut f32, stride: usize, rows: [Self::F; 8]) {
        for (i, row) in rows.into_iter().enumerate() {
            let mut lanes = [0.0; LANES];
            self.store(&mut lanes, row);
            for (l, lane) in lanes.into_iter().enumerate() {
                // SAFETY: as the caller promises.
                unsafe { *to.add(l * stride + i) = lane };
            }
        }
    }
    /// Asks for the cache line of an address, which may be any. On x86 into the second-level cache: the first has too few places
    /// for lines on their way (on two Zen 4 cores attention over 2,048 tokens read 22 GB/s with those, 29 with these).
    fn prefetch(self, p: *const u8);
    /// Writes 16 lanes.
    fn store(self, to: &mut [f32; LANES], v: Self::F);
    /// Rounds to half floats (nearest, ties to even; overflow to infinity) and writes them.
    fn store_f16(self, to: &mut [u16; LANES], v: Self::F);
    /// Writes the low byte of each lane; every lane must be within `i8`.
    fn store_i8(self, to: &mut [i8; LANES], v: Self::I);

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b` in each lane: the second operand where either is NaN or both are zero.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b` in each lane: the second operand where either is NaN or both are zero.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integral value, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `a > b` in each lane (false for NaN).
    fn gt(self, a: Self::F, b: Self::F) -> Self::M;
    /// Lane i is true where bit i is set.
    fn mask(self, bits: u16) -> Self::M;
    /// `a` where the mask is true, else `b`.
    fn select(self, m: Self::M, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes by the fixed tree: lane l + lane l+8, then +4, +2, +1.
    fn hsum(self, a: Self::F) -> f32;
    /// Maximum of the lanes by the same tree, in the sense of [`Simd::max`].
    fn hmax(self, a: Self::F) -> f32;

    /// The bits of each lane.
    fn bits(self, a: Self::F) -> Self::I;
    /// The lanes with these bits.
    fn with_bits(self, a: Self::I) -> Self::F;
    /// Nearest integer, ties to even. Lanes that are NaN or outside `i32` give an unspecified integer.
    fn to_i32(self, a: Self::F) -> Self::I;
    /// The integers as floats, rounded to nearest.
    fn float(self, a: Self::I) -> Self::F;
    /// In each lane `acc + Σ (quads[i] + DOT_BIAS) * x[i]` over the four signed bytes of `x`, the first in its lowest bits. Exact:
    /// no sum on the way is cut off, if no byte is -128.
    fn dot4(self, acc: Self::I, quads: Self::Q, x: i32) -> Self::I;
    /// All lanes `x`.
    fn isplat(self, x: i32) -> Self::I;
    /// Wrapping `a + b`.
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wrapping `a - b`.
    fn isub(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise and.
    fn iand(self, a: Self::I, b: Self::I) -> Self::I;
    /// Larger of the two, signed.
    fn imax(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << 23`: an integer into the exponent field.
    fn ishl23(self, a: Self::I) -> Self::I;
    /// Arithmetic `a >> 1`.
    fn isar1(self, a: Self::I) -> Self::I;
    /// Wrapping sum of the lanes.
    fn ihsum(self, a: Self::I) -> i32;
    /// Largest lane.
    fn ihmax(self, a: Self::I) -> i32;
    /// The largest [group](crate::quantized::GROUP) of int8 values, none of which is -128: of bytes 0, 1, 4 and 5, or 2, 3, 6 and 7, of
    /// each eight, the sum of the positive ones or of the magnitudes of the negative ones.
    fn largest_group(self, bytes: &[[i8; 64]]) -> i32;

    /// All lanes +0.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
    /// Reads 16 lanes.
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: the reference is valid for 64 bytes.
        unsafe { self.f32_at(from.as_ptr().cast()) }
    }
    /// Reads 16 half floats.
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        // SAFETY: the reference is valid for 32 bytes.
        unsafe { self.f16_at(from.as_ptr().cast()) }
    }
    /// Reads up to 16 lanes; the missing ones are +0.
    #[inline(always)]
    fn load_part(self, from: &[f32]) -> Self::F {
        if let Ok(whole) = from.try_into() {
            return self.load(whole);
        }
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }
    /// Writes the first `to.len()` lanes, 16 at most.
    #[inline(always)]
    fn store_part(self, to: &mut [f32], v: Self::F) {
        if let Ok(whole) = (&mut *to).try_into() {
            return self.store(whole, v);
        }
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        to.copy_from_slice(&lanes[..to.len()]);
    }
    /// Lane 0.
    #[inline(always)]
    fn first(self, v: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, v);
        lanes[0]
    }
    /// `a` with the sign bit cleared.
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.with_bits(self.iand(self.bits(a), self.isplat(i32::MAX)))
    }
    /// The magnitude bits of each lane: ordered as the magnitudes, with NaN above infinity (0x7f80_0000).
    #[inline(always)]
    fn magnitude(self, a: Self::F) -> Self::I {
        self.iand(self.bits(a), self.isplat(i32::MAX))
    }
}

/// Writes methods of a [`Simd`] implementation: `name(argument: type, ...) -> result = expression;`.
macro_rules! simd_ops {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        #[allow(unused_unsafe)] // some bodies are plain expressions
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the token exists only where the CPU has the features (the promise made to `new`).
            // Memory is reached through references to arrays, of which no more than their size is accessed; a
            // prefetch faults at no address.
            unsafe { $body }
        }
    )*};
}
use simd_ops;
