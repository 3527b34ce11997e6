//! Four 128-bit registers hold the sixteen lanes. Only what every AArch64 CPU has (ARMv8.0 NEON) is used.

use super::{LANES, Simd, simd_ops};
use core::arch::aarch64::*;
use core::arch::asm;

/// Token of a CPU with NEON.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// Makes the token.
    ///
    /// # Safety
    /// The CPU must have `neon`, and the caller must be a function with this target feature for the operations to be inlined.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

type F = (float32x4_t, float32x4_t, float32x4_t, float32x4_t);
type I = (int32x4_t, int32x4_t, int32x4_t, int32x4_t);
type M = (uint32x4_t, uint32x4_t, uint32x4_t, uint32x4_t);

/// `acc + Σ quads[i] * x[i]` in four lanes of four signed bytes. Two products of magnitudes up to 127 fit into 16 bits.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn dot4(acc: int32x4_t, quads: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as the caller promises.
    unsafe {
        let low = vmull_s8(vget_low_s8(quads), vget_low_s8(x));
        vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(quads, x)))
    }
}

// `fcvtl` and `fcvtn` belong to ARMv8.0, but their intrinsics ask for the half-precision extension of ARMv8.2.
/// Half floats to floats, exactly.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn from_half(h: uint16x4_t) -> float32x4_t {
    let out;
    // SAFETY: from register to register, and the CPU of the token has the instruction.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) h, options(pure, nomem, nostack)) };
    out
}
/// Floats to half floats, to nearest, ties to even.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn to_half(v: float32x4_t) -> uint16x4_t {
    let out;
    // SAFETY: from register to register, and the CPU of the token has the instruction.
    unsafe { asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) out, in(vreg) v, options(pure, nomem, nostack)) };
    out
}

macro_rules! each {
    ($f:path, $($a:ident),+) => {
        ($f($($a.0),+), $f($($a.1),+), $f($($a.2),+), $f($($a.3),+))
    };
}

/// `a > b ? a : b`.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn larger(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}
/// `a < b ? a : b`.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn smaller(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}
/// `a * b + c`, rounded once.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn fused(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe { vfmaq_f32(c, a, b) }
}

impl Simd for Neon {
    type F = F;
    type I = I;
    type M = M;
    type Q = (int8x16_t, int8x16_t, int8x16_t, int8x16_t);
    const REGISTERS: usize = 8;
    const DOT_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn f32_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 64 readable bytes; byte loads have no alignment.
        unsafe {
            (
                vreinterpretq_f32_u8(vld1q_u8(p)),
                vreinterpretq_f32_u8(vld1q_u8(p.add(16))),
                vreinterpretq_f32_u8(vld1q_u8(p.add(32))),
                vreinterpretq_f32_u8(vld1q_u8(p.add(48))),
            )
        }
    }
    #[inline(always)]
    unsafe fn f16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes; byte loads have no alignment.
        unsafe {
            let a = vreinterpretq_u16_u8(vld1q_u8(p));
            let b = vreinterpretq_u16_u8(vld1q_u8(p.add(16)));
            (
                from_half(vget_low_u16(a)),
                from_half(vget_high_u16(a)),
                from_half(vget_low_u16(b)),
                from_half(vget_high_u16(b)),
            )
        }
    }
    #[inline(always)]
    unsafe fn bf16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes; byte loads have no alignment.
        unsafe {
            let a = vreinterpretq_u16_u8(vld1q_u8(p));
            let b = vreinterpretq_u16_u8(vld1q_u8(p.add(16)));
            (
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(a))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(a))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(b))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(b))),
            )
        }
    }
    #[inline(always)]
    unsafe fn i8_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 16 readable bytes; byte loads have no alignment.
        unsafe {
            let bytes = vld1q_s8(p.cast());
            let (a, b) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            (
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(a))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(a))),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(b))),
                vcvtq_f32_s32(vmovl_s16(vget_high_s16(b))),
            )
        }
    }

    #[inline(always)]
    unsafe fn quads_at(self, p: *const u8) -> Self::Q {
        let p = p.cast::<i8>();
        // SAFETY: the caller promises 64 readable bytes; byte loads have no alignment.
        unsafe { (vld1q_s8(p), vld1q_s8(p.add(16)), vld1q_s8(p.add(32)), vld1q_s8(p.add(48))) }
    }

    simd_ops! {
        // The intrinsic is not stable; the instruction never faults.
        prefetch(p: *const u8) =
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        store(to: &mut [f32; LANES], v: F) = {
            let p = to.as_mut_ptr();
            vst1q_f32(p, v.0);
            vst1q_f32(p.add(4), v.1);
            vst1q_f32(p.add(8), v.2);
            vst1q_f32(p.add(12), v.3);
        };
        store_f16(to: &mut [u16; LANES], v: F) = {
            let p = to.as_mut_ptr();
            vst1q_u16(p, vcombine_u16(to_half(v.0), to_half(v.1)));
            vst1q_u16(p.add(8), vcombine_u16(to_half(v.2), to_half(v.3)));
        };
        store_i8(to: &mut [i8; LANES], v: I) = {
            let low = vcombine_s16(vmovn_s32(v.0), vmovn_s32(v.1));
            let high = vcombine_s16(vmovn_s32(v.2), vmovn_s32(v.3));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        };
        splat(x: f32) -> F = (vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x));
        add(a: F, b: F) -> F = each!(vaddq_f32, a, b);
        sub(a: F, b: F) -> F = each!(vsubq_f32, a, b);
        mul(a: F, b: F) -> F = each!(vmulq_f32, a, b);
        div(a: F, b: F) -> F = each!(vdivq_f32, a, b);
        fma(a: F, b: F, c: F) -> F = each!(fused, a, b, c);
        max(a: F, b: F) -> F = each!(larger, a, b);
        min(a: F, b: F) -> F = each!(smaller, a, b);
        round(a: F) -> F = each!(vrndnq_f32, a);
        gt(a: F, b: F) -> M = each!(vcgtq_f32, a, b);
        mask(bits: u16) -> M = {
            const BITS: [u32; LANES] = {
                let mut bits = [0; LANES];
                let mut i = 0;
                while i < LANES {
                    bits[i] = 1 << i;
                    i += 1;
                }
                bits
            };
            let all = vdupq_n_u32(u32::from(bits));
            let p = BITS.as_ptr();
            (
                vtstq_u32(all, vld1q_u32(p)),
                vtstq_u32(all, vld1q_u32(p.add(4))),
                vtstq_u32(all, vld1q_u32(p.add(8))),
                vtstq_u32(all, vld1q_u32(p.add(12))),
            )
        };
        select(m: M, a: F, b: F) -> F = each!(vbslq_f32, m, a, b);
        hsum(a: F) -> f32 = {
            let v = vaddq_f32(vaddq_f32(a.0, a.2), vaddq_f32(a.1, a.3));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        };
        hmax(a: F) -> f32 = {
            let v = larger(larger(a.0, a.2), larger(a.1, a.3));
            let (lo, hi) = (vget_low_f32(v), vget_high_f32(v));
            let v = vbsl_f32(vcgt_f32(lo, hi), lo, hi);
            let (x, y) = (vget_lane_f32::<0>(v), vget_lane_f32::<1>(v));
            if x > y { x } else { y }
        };
        bits(a: F) -> I = each!(vreinterpretq_s32_f32, a);
        with_bits(a: I) -> F = each!(vreinterpretq_f32_s32, a);
        to_i32(a: F) -> I = each!(vcvtnq_s32_f32, a);
        float(a: I) -> F = each!(vcvtq_f32_s32, a);
        dot4(acc: I, quads: Self::Q, x: i32) -> I = {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            (
                dot4(acc.0, quads.0, x),
                dot4(acc.1, quads.1, x),
                dot4(acc.2, quads.2, x),
                dot4(acc.3, quads.3, x),
            )
        };
        isplat(x: i32) -> I = (vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x), vdupq_n_s32(x));
        iadd(a: I, b: I) -> I = each!(vaddq_s32, a, b);
        isub(a: I, b: I) -> I = each!(vsubq_s32, a, b);
        iand(a: I, b: I) -> I = each!(vandq_s32, a, b);
        imax(a: I, b: I) -> I = each!(vmaxq_s32, a, b);
        ishl23(a: I) -> I = (vshlq_n_s32::<23>(a.0), vshlq_n_s32::<23>(a.1), vshlq_n_s32::<23>(a.2), vshlq_n_s32::<23>(a.3));
        isar1(a: I) -> I = (vshrq_n_s32::<1>(a.0), vshrq_n_s32::<1>(a.1), vshrq_n_s32::<1>(a.2), vshrq_n_s32::<1>(a.3));
        ihsum(a: I) -> i32 = vaddvq_s32(vaddq_s32(vaddq_s32(a.0, a.1), vaddq_s32(a.2, a.3)));
        ihmax(a: I) -> i32 = vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.0, a.1), vmaxq_s32(a.2, a.3)));
        largest_group(bytes: &[[i8; 64]]) -> i32 = {
            let zero = vdupq_n_s8(0);
            let mut largest = vdupq_n_u16(0);
            for bytes in bytes.as_flattened().as_chunks::<16>().0 {
                let bytes = vld1q_s8(bytes.as_ptr());
                for part in [vmaxq_s8(bytes, zero), vmaxq_s8(vnegq_s8(bytes), zero)] {
                    // Beside each quad's two pairs come those of the next quad; the other words have sums of parts.
                    let pairs = vpaddlq_u8(vreinterpretq_u8_s8(part));
                    let next = vreinterpretq_u16_u64(vshrq_n_u64::<32>(vreinterpretq_u64_u16(pairs)));
                    largest = vmaxq_u16(largest, vaddq_u16(pairs, next));
                }
            }
            i32::from(vmaxvq_u16(largest))
        };
    }
}
