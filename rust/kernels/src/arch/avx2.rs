//! AVX2 and AVX-VNNI: a vector is half a quad, 8 rows.

use std::arch::x86_64::*;

use super::{Dot, dot_ops, fits, ymm};
use crate::cpu::Level;
use crate::formats::Kind;
use crate::matmul::instances;
use crate::quantized::GROUP;

/// [`Dot::AHEAD_OF_STREAMS`] of both types. Two Zen 3 cores, weights in phases of 2 to 64 MB, GB/s read by one row without and with (reading
/// alone: 33 to 35): 28.9 to 30.2 and 34.0 to 35.2 at p4, 26.1 and 33 at p3, 24.5 and 29 at p2v, 25 to 26 and 31.5 to 33 at p2, 28.4 to 31 and
/// 31.4 to 33 at p8. Half and twice the distance, the first level and the non-temporal hint measured alike; in caches it takes 0 to
/// 3 %. AVX-VNNI's processors were not measured.
const AHEAD_OF_STREAMS: usize = 4096;

/// Plain AVX2. `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating; the grids of the codebooks keep
/// those sums below 2^15, and with the bound on groups of activations ([`GROUP`]) the sums of two quads (grids of 7 bits) or four (6 and
/// 5 bits). Int8 weights move their sign to the activations.
struct Avx2;

/// The largest sum of `quads` quads' products in a lane of 16 bits.
const fn joined(kind: Kind, quads: i32) -> i32 {
    let (low, high) = kind.grid();
    (high as i32 - low as i32) * GROUP * quads / 2
}
const _: () = assert!(joined(Kind::P4, 2) < 1 << 15 && joined(Kind::P2v, 2) < 1 << 15);
const _: () = assert!(joined(Kind::P3, 4) < 1 << 15 && joined(Kind::P2, 4) < 1 << 15);

/// The four activations `4Q..4Q+4` in every lane.
///
/// # Safety
/// Needs AVX2; `x` must be valid for 16 bytes.
#[inline(always)]
unsafe fn quad<const Q: usize>(x: *const i8) -> __m256i {
    // SAFETY: the caller promises AVX2 and 16 bytes; Q is at most 3, so the four read lie among them.
    unsafe { _mm256_set1_epi32(x.add(4 * Q).cast::<i32>().read_unaligned()) }
}

/// The products of two quads' weights and activations in 16 bits, added: a lane has the inputs of a group of activations.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn join(w: [__m256i; 2], first: __m256i, second: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2; nothing is read from memory.
    unsafe { _mm256_add_epi16(_mm256_maddubs_epi16(w[0], first), _mm256_maddubs_epi16(w[1], second)) }
}

/// Adds neighbouring 16-bit sums to 32-bit ones.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn widen(sum: __m256i, pairs: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2; nothing is read from memory.
    unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))) }
}

/// Methods that both types share.
macro_rules! shared {
    () => {
        dot_ops! {
            acts(p: *const i8) -> *const i8 = p;
            sum(start: i32) -> __m256i = _mm256_set1_epi32(start);
            add(a: __m256i, b: __m256i) -> __m256i = _mm256_add_epi32(a, b);
            load(p: *const u8) -> __m256i = _mm256_loadu_si256(p.cast());
            store(p: *mut u8, v: __m256i) = _mm256_storeu_si256(p.cast(), v);
            floats<KIND>(v: __m256i) -> [__m256; 4] = {
                let signed = _mm256_sub_epi8(v, _mm256_set1_epi8(Self::bias::<KIND>() as i8));
                [
                    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(signed))),
                    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(signed))),
                    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<8>(signed))),
                    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(signed)),
                ]
            };
            float(sum: __m256i) -> __m256 = _mm256_cvtepi32_ps(sum);
            splat(x: f32) -> __m256 = _mm256_set1_ps(x);
            fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
            mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
            load_f(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
            store_f(p: *mut f32, v: __m256) = _mm256_storeu_ps(p, v);
            prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T1>(p.cast());
        }
    };
}

impl Dot for Avx2 {
    const PARTS: usize = 2;
    const AHEAD_OF_STREAMS: usize = AHEAD_OF_STREAMS;
    // Two rows from memory, one Zen 3 core, GB/s with two sums and with one: 18.7 and 19.7 at p4, 10.6 and 11.1 at p2v, 22.0 and 24.5 at p8.
    const ONE_CHAIN: bool = true;
    type V = __m256i;
    type X = *const i8;
    type Sum = __m256i;
    type F = __m256;

    #[inline(always)]
    fn block<const KIND: usize>() -> usize {
        // Two quads of two vectors, as they are joined, leave registers for the sums of three rows; four took 1.02 times as long.
        if Self::joins::<KIND>() { 3 } else { 4 }
    }

    #[inline(always)]
    fn bias<const KIND: usize>() -> i32 {
        // Raised by as much as the grid reaches below zero. Int8 weights move their sign instead.
        match Kind::numbered(KIND) {
            Kind::P8 => 0,
            kind => -(kind.grid().0 as i32),
        }
    }

    #[inline(always)]
    fn joins<const KIND: usize>() -> bool {
        !matches!(Kind::numbered(KIND), Kind::P8)
    }

    #[inline(always)]
    unsafe fn dot2<const KIND: usize, const Q: usize>(
        sum: __m256i,
        w: [__m256i; 2],
        x: *const i8,
    ) -> __m256i {
        // SAFETY: the caller promises AVX2, and 16 readable bytes at `x`, since `acts` made it.
        unsafe {
            match (Kind::numbered(KIND), Q) {
                (Kind::P8, 0) => Self::dot1::<KIND, 1>(Self::dot1::<KIND, 0>(sum, w[0], x), w[1], x),
                (Kind::P8, _) => Self::dot1::<KIND, 3>(Self::dot1::<KIND, 2>(sum, w[0], x), w[1], x),
                (_, 0) => widen(sum, join(w, quad::<0>(x), quad::<1>(x))),
                (_, _) => widen(sum, join(w, quad::<2>(x), quad::<3>(x))),
            }
        }
    }

    #[inline(always)]
    unsafe fn dot4<const KIND: usize, const CHAINS: usize>(
        sums: &mut [__m256i; CHAINS],
        w: [__m256i; 4],
        x: *const i8,
    ) {
        // SAFETY: as for `dot2`.
        unsafe {
            match Kind::numbered(KIND) {
                Kind::P2 | Kind::P3 => {
                    let first = join([w[0], w[1]], quad::<0>(x), quad::<1>(x));
                    let second = join([w[2], w[3]], quad::<2>(x), quad::<3>(x));
                    sums[0] = widen(sums[0], _mm256_add_epi16(first, second));
                }
                Kind::P4 | Kind::P2v | Kind::P8 => {
                    sums[0] = Self::dot2::<KIND, 0>(sums[0], [w[0], w[1]], x);
                    sums[1 % CHAINS] = Self::dot2::<KIND, 2>(sums[1 % CHAINS], [w[2], w[3]], x);
                }
            }
        }
    }

    shared!();
    dot_ops! {
        table<KIND>(codebook: *const i8) -> [__m256i; 2] = ymm::table::<KIND>(codebook, Self::bias::<KIND>() as i8);
        decode<KIND, HALF>(table: [__m256i; 2], group: *const u8) -> [__m256i; 4] =
            ymm::decode::<KIND, HALF>(table, group, 0);
        dot1<KIND, Q>(sum: __m256i, w: __m256i, x: *const i8) -> __m256i = {
            let x = quad::<Q>(x);
            let pairs = match Kind::numbered(KIND) {
                Kind::P8 => _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)),
                _ => _mm256_maddubs_epi16(w, x),
            };
            widen(sum, pairs)
        };
    }
}

/// AVX-VNNI: `vpdpbusd` as in AVX-512, on half the width.
struct Avx2Vnni;

impl Dot for Avx2Vnni {
    const PARTS: usize = 2;
    const AHEAD_OF_STREAMS: usize = AHEAD_OF_STREAMS;
    type V = __m256i;
    type X = *const i8;
    type Sum = __m256i;
    type F = __m256;

    #[inline(always)]
    fn block<const KIND: usize>() -> usize {
        6
    }

    #[inline(always)]
    fn bias<const KIND: usize>() -> i32 {
        128
    }

    shared!();
    dot_ops! {
        table<KIND>(codebook: *const i8) -> [__m256i; 2] = ymm::table::<KIND>(codebook, -128);
        decode<KIND, HALF>(table: [__m256i; 2], group: *const u8) -> [__m256i; 4] =
            ymm::decode::<KIND, HALF>(table, group, -128);
        dot1<KIND, Q>(sum: __m256i, w: __m256i, x: *const i8) -> __m256i =
            _mm256_dpbusd_avx_epi32(sum, w, quad::<Q>(x));
    }
}

const _: () = assert!(fits::<Avx2>() && fits::<Avx2Vnni>());

/// Without AVX-VNNI.
pub(crate) mod plain {
    use super::*;
    instances!(Avx2, Level::Avx2, "avx2,fma,f16c");
}

/// With AVX-VNNI.
pub(crate) mod vnni {
    use super::*;
    instances!(Avx2Vnni, Level::Avx2Vnni, "avx2,fma,f16c,avxvnni");
}
