//! NEON, with and without int8 dot products: a vector is a quarter of a quad, 4 rows. Everything is signed.

use std::arch::aarch64::*;
use std::arch::asm;

use super::codes::{EVEN, ODD, SECOND};
use super::{Dot, dot_ops, fits};
use crate::cpu::Level;
use crate::formats::Kind;
use crate::matmul::instances;

/// The contract of `Dot::table`: the codebook, repeated over 16 bytes.
///
/// # Safety
/// Needs NEON; `codebook` must be valid for reading `codebook_len` bytes of the kind, which `P8` has none of.
#[inline(always)]
unsafe fn table<const KIND: usize>(codebook: *const i8) -> [uint8x16_t; 2] {
    // SAFETY: the caller promises NEON and the kind's entries: 4, 8, 16, twice 16 or none, which is what is
    // read.
    unsafe {
        let one = match Kind::numbered(KIND) {
            Kind::P2 => {
                let four = vreinterpretq_u8_u32(vdupq_n_u32(codebook.cast::<u32>().read_unaligned()));
                return [four, vqtbl1q_u8(four, vld1q_u8(SECOND.as_ptr()))];
            }
            Kind::P3 => vreinterpretq_u8_u64(vdupq_n_u64(codebook.cast::<u64>().read_unaligned())),
            Kind::P4 => vld1q_u8(codebook.cast()),
            Kind::P2v => return [vld1q_u8(codebook.cast()), vld1q_u8(codebook.add(16).cast())],
            Kind::P8 => vdupq_n_u8(0),
        };
        [one; 2]
    }
}

/// The contract of `Dot::decode`.
///
/// # Safety
/// Needs NEON; `group` must point at a part, of 16 bytes, of the first line of a group that is readable to
/// its end.
#[inline(always)]
unsafe fn decode<const KIND: usize, const HALF: usize>(
    [table, second]: [uint8x16_t; 2],
    group: *const u8,
) -> [uint8x16_t; 4] {
    // SAFETY: the caller promises NEON and the group. The lines read are those that the kind has: 2, 3, 4 or
    // 8, each from the same part on.
    unsafe {
        let line = |i: usize| vld1q_u8(group.add(64 * i));
        let nibble = |index| vqtbl1q_u8(table, vandq_u8(index, vdupq_n_u8(15)));
        match Kind::numbered(KIND) {
            Kind::P2 | Kind::P2v => {
                let a = line(HALF);
                let (low, high) = (vandq_u8(a, vdupq_n_u8(15)), vshrq_n_u8::<4>(a));
                [
                    vqtbl1q_u8(table, low),
                    vqtbl1q_u8(second, low),
                    vqtbl1q_u8(table, high),
                    vqtbl1q_u8(second, high),
                ]
            }
            Kind::P3 => {
                let (low, high) = (line(HALF), line(2));
                let third = match HALF {
                    0 => vandq_u8(high, vdupq_n_u8(15)),
                    _ => vshrq_n_u8::<4>(high),
                };
                let join = |low, spread: &[u8; 16]| {
                    vbslq_u8(vdupq_n_u8(0x33), low, vqtbl1q_u8(vld1q_u8(spread.as_ptr()), third))
                };
                let (even, odd) = (join(low, &EVEN), join(vshrq_n_u8::<2>(low), &ODD));
                [
                    nibble(even),
                    nibble(odd),
                    vqtbl1q_u8(table, vshrq_n_u8::<4>(even)),
                    vqtbl1q_u8(table, vshrq_n_u8::<4>(odd)),
                ]
            }
            Kind::P4 => {
                let (a, b) = (line(2 * HALF), line(2 * HALF + 1));
                [
                    nibble(a),
                    vqtbl1q_u8(table, vshrq_n_u8::<4>(a)),
                    nibble(b),
                    vqtbl1q_u8(table, vshrq_n_u8::<4>(b)),
                ]
            }
            Kind::P8 => [0, 1, 2, 3].map(|q| line(4 * HALF + q)),
        }
    }
}

/// Methods that both types share.
macro_rules! shared {
    () => {
        #[inline(always)]
        fn bias<const KIND: usize>() -> i32 {
            0
        }

        dot_ops! {
            table<KIND>(codebook: *const i8) -> [uint8x16_t; 2] = table::<KIND>(codebook);
            decode<KIND, HALF>(entries: [uint8x16_t; 2], group: *const u8) -> [uint8x16_t; 4] =
                decode::<KIND, HALF>(entries, group);
            acts(p: *const i8) -> int8x16_t = vld1q_s8(p);
            load(p: *const u8) -> uint8x16_t = vld1q_u8(p);
            store(p: *mut u8, v: uint8x16_t) = vst1q_u8(p, v);
            floats<KIND>(v: uint8x16_t) -> [float32x4_t; 4] = {
                let words = vreinterpretq_s32_u8(v);
                [
                    vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<24>(words))),
                    vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<16>(words))),
                    vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<8>(words))),
                    vcvtq_f32_s32(vshrq_n_s32::<24>(words)),
                ]
            };
            splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
            fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
            mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
            load_f(p: *const f32) -> float32x4_t = vld1q_f32(p);
            store_f(p: *mut f32, v: float32x4_t) = vst1q_f32(p, v);
            // The intrinsic is not stable; the instruction never faults.
            prefetch(p: *const u8) =
                asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    };
}

/// Baseline: products in 16 bits, then pairwise sums into two vectors of 32 bits (rows 0 and 1; rows 2 and 3).
struct Neon;

impl Dot for Neon {
    const PARTS: usize = 4;
    type V = uint8x16_t;
    type X = int8x16_t;
    type Sum = [int32x4_t; 2];
    type F = float32x4_t;

    #[inline(always)]
    fn block<const KIND: usize>() -> usize {
        2
    }

    shared!();
    dot_ops! {
        dot1<KIND, Q>(sum: [int32x4_t; 2], w: uint8x16_t, x: int8x16_t) -> [int32x4_t; 2] = {
            let w = vreinterpretq_s8_u8(w);
            let words = vreinterpretq_s32_s8(x);
            let x = vreinterpret_s8_s32(match Q {
                0 => vdup_laneq_s32::<0>(words),
                1 => vdup_laneq_s32::<1>(words),
                2 => vdup_laneq_s32::<2>(words),
                _ => vdup_laneq_s32::<3>(words),
            });
            [
                vpadalq_s16(sum[0], vmull_s8(vget_low_s8(w), x)),
                vpadalq_s16(sum[1], vmull_s8(vget_high_s8(w), x)),
            ]
        };
        // With no bias the start is always zero, as one row's two partial sums require.
        sum(start: i32) -> [int32x4_t; 2] = { debug_assert_eq!(start, 0); [vdupq_n_s32(0); 2] };
        add(a: [int32x4_t; 2], b: [int32x4_t; 2]) -> [int32x4_t; 2] =
            [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1])];
        float(sum: [int32x4_t; 2]) -> float32x4_t = vcvtq_f32_s32(vpaddq_s32(sum[0], sum[1]));
    }
}

/// With `sdot`.
pub(super) struct NeonDotprod;

/// `sdot` by lane, as assembly: its intrinsic is not stable.
macro_rules! sdot {
    ($sum:ident, $w:ident, $x:ident, $lane:literal) => {
        asm!(
            concat!("sdot {s:v}.4s, {w:v}.16b, {x:v}.4b[", $lane, "]"),
            s = inout(vreg) $sum, w = in(vreg) $w, x = in(vreg) $x,
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

impl Dot for NeonDotprod {
    const PARTS: usize = 4;
    type V = uint8x16_t;
    type X = int8x16_t;
    type Sum = int32x4_t;
    type F = float32x4_t;

    #[inline(always)]
    fn block<const KIND: usize>() -> usize {
        4
    }

    shared!();
    dot_ops! {
        dot1<KIND, Q>(sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t = {
            let mut sum = sum;
            match Q {
                0 => sdot!(sum, w, x, "0"),
                1 => sdot!(sum, w, x, "1"),
                2 => sdot!(sum, w, x, "2"),
                _ => sdot!(sum, w, x, "3"),
            }
            sum
        };
        sum(start: i32) -> int32x4_t = vdupq_n_s32(start);
        add(a: int32x4_t, b: int32x4_t) -> int32x4_t = vaddq_s32(a, b);
        float(sum: int32x4_t) -> float32x4_t = vcvtq_f32_s32(sum);
    }
}

const _: () = assert!(fits::<Neon>() && fits::<NeonDotprod>());

/// Baseline.
pub(crate) mod plain {
    use super::*;
    instances!(Neon, Level::Neon, "neon");
}

/// With int8 dot products.
pub(crate) mod dotprod {
    use super::*;
    instances!(NeonDotprod, Level::NeonDotprod, "neon,dotprod");
}
