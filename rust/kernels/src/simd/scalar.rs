//! The portable implementation, and the definition of what every other one must return.

use super::{LANES, Simd};
use half::{bf16, f16};

/// Plain Rust on arrays of sixteen. Needs nothing of the CPU; `f32::mul_add` is exact everywhere, though slow where the target has
/// no fused multiply-add.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

type F = [f32; LANES];
type I = [i32; LANES];

macro_rules! lanes {
    ($($i:ident)? => $e:expr) => {{
        let mut out = [Default::default(); LANES];
        for (lane, value) in out.iter_mut().enumerate() {
            $(let $i = lane;)?
            *value = $e;
        }
        out
    }};
}

/// Folds sixteen lanes by the fixed tree: lane l with lane l+8, then +4, +2, +1.
macro_rules! tree {
    ($a:ident, $x:ident, $y:ident => $e:expr) => {{
        let mut lanes = $a;
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                let ($x, $y) = (lanes[l], lanes[l + half]);
                lanes[l] = $e;
            }
            half /= 2;
        }
        lanes[0]
    }};
}

impl Simd for Scalar {
    type F = F;
    type I = I;
    type M = [bool; LANES];
    type Q = [[i8; 4]; LANES];
    // Small tiles: they would not be faster here, only longer.
    const REGISTERS: usize = 1;
    const DOT_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn f32_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 64 readable bytes.
        let bytes = unsafe { p.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        lanes!(i => f32::from_le_bytes(bytes[i]))
    }
    #[inline(always)]
    unsafe fn f16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes.
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        lanes!(i => f16::from_le_bytes(bytes[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn bf16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes.
        let bytes = unsafe { p.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        lanes!(i => bf16::from_le_bytes(bytes[i]).to_f32_const())
    }
    #[inline(always)]
    unsafe fn i8_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 16 readable bytes.
        let bytes = unsafe { p.cast::<[i8; LANES]>().read_unaligned() };
        lanes!(i => f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn quads_at(self, p: *const u8) -> Self::Q {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { p.cast::<Self::Q>().read_unaligned() }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], v: F) {
        *to = v;
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES], v: F) {
        *to = lanes!(i => f16::from_f32_const(v[i]).to_bits());
    }
    #[inline(always)]
    fn store_i8(self, to: &mut [i8; LANES], v: I) {
        *to = lanes!(i => v[i] as i8);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        lanes!(i => a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        lanes!(i => a[i].round_ties_even())
    }
    #[inline(always)]
    fn gt(self, a: F, b: F) -> Self::M {
        lanes!(i => a[i] > b[i])
    }
    #[inline(always)]
    fn mask(self, bits: u16) -> Self::M {
        lanes!(i => bits >> i & 1 == 1)
    }
    #[inline(always)]
    fn select(self, m: Self::M, a: F, b: F) -> F {
        lanes!(i => if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn hsum(self, a: F) -> f32 {
        tree!(a, x, y => x + y)
    }
    #[inline(always)]
    fn hmax(self, a: F) -> f32 {
        tree!(a, x, y => if x > y { x } else { y })
    }

    #[inline(always)]
    fn bits(self, a: F) -> I {
        lanes!(i => a[i].to_bits() as i32)
    }
    #[inline(always)]
    fn with_bits(self, a: I) -> F {
        lanes!(i => f32::from_bits(a[i] as u32))
    }
    #[inline(always)]
    fn to_i32(self, a: F) -> I {
        lanes!(i => a[i].round_ties_even() as i32)
    }
    #[inline(always)]
    fn float(self, a: I) -> F {
        lanes!(i => a[i] as f32)
    }
    #[inline(always)]
    fn dot4(self, acc: I, quads: Self::Q, x: i32) -> I {
        let x = x.to_le_bytes().map(|byte| i32::from(byte as i8));
        lanes!(i => (0..4).fold(acc[i], |sum, j| sum + i32::from(quads[i][j]) * x[j]))
    }
    #[inline(always)]
    fn isplat(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    fn iadd(self, a: I, b: I) -> I {
        lanes!(i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn isub(self, a: I, b: I) -> I {
        lanes!(i => a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn iand(self, a: I, b: I) -> I {
        lanes!(i => a[i] & b[i])
    }
    #[inline(always)]
    fn imax(self, a: I, b: I) -> I {
        lanes!(i => a[i].max(b[i]))
    }
    #[inline(always)]
    fn ishl23(self, a: I) -> I {
        lanes!(i => a[i] << 23)
    }
    #[inline(always)]
    fn isar1(self, a: I) -> I {
        lanes!(i => a[i] >> 1)
    }
    #[inline(always)]
    fn ihsum(self, a: I) -> i32 {
        tree!(a, x, y => x.wrapping_add(y))
    }
    #[inline(always)]
    fn ihmax(self, a: I) -> i32 {
        tree!(a, x, y => x.max(y))
    }
    #[inline(always)]
    fn largest_group(self, bytes: &[[i8; 64]]) -> i32 {
        let mut largest = 0;
        for eight in bytes.as_flattened().as_chunks::<8>().0 {
            for group in [[0, 1, 4, 5], [2, 3, 6, 7]] {
                let group = group.map(|i| i32::from(eight[i]));
                let above: i32 = group.iter().map(|v| v.max(&0)).sum();
                largest = largest.max(above).max(above - group.iter().sum::<i32>());
            }
        }
        largest
    }
}
