//! Two 256-bit registers hold the sixteen lanes: lanes 0 to 7, and 8 to 15.

// Counted loops over arrays of registers: they unroll reliably, and the index names the register.
#![allow(clippy::needless_range_loop)]

use super::{LANES, Simd, simd_ops};
use core::arch::x86_64::*;

/// Token of a CPU with AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// Makes the token.
    ///
    /// # Safety
    /// The CPU must have `avx2`, `fma` and `f16c`, and the caller must be a function with these target features for the
    /// operations to be inlined.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

type F = (__m256, __m256);
type I = (__m256i, __m256i);

/// Eight bfloat16 as floats.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn widen(half: __m128i) -> __m256 {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))) }
}

/// `acc + Σ quads[i] * x[i]` in eight lanes of four signed bytes. Two products of magnitudes up to 127 fit into 16 bits.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn dot4(acc: __m256i, quads: __m256i, x: __m256i) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(quads), _mm256_sign_epi8(x, quads));
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Of 32 bytes, none of which is -128, the groups of [`Simd::largest_group`] in words, the larger of their two sums; and sums of parts of
/// groups, which are no larger.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn groups(bytes: __m256i) -> __m256i {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe {
        let (zero, ones) = (_mm256_setzero_si256(), _mm256_set1_epi8(1));
        let above = _mm256_maddubs_epi16(_mm256_max_epi8(bytes, zero), ones);
        let below = _mm256_maddubs_epi16(_mm256_max_epi8(_mm256_sub_epi8(zero, bytes), zero), ones);
        // Beside each quad's two pairs come those of the next quad.
        let above = _mm256_add_epi16(above, _mm256_srli_epi64::<32>(above));
        let below = _mm256_add_epi16(below, _mm256_srli_epi64::<32>(below));
        _mm256_max_epi16(above, below)
    }
}

/// The largest of the words, none of which is negative.
///
/// # Safety
/// Needs the CPU of the token, or SSE4.1.
#[inline(always)]
pub(super) unsafe fn largest_word(words: __m128i) -> i32 {
    // SAFETY: the caller promises the CPU. The instruction finds the smallest of unsigned words.
    unsafe {
        let least = _mm_minpos_epu16(_mm_xor_si128(words, _mm_set1_epi16(-1)));
        !_mm_cvtsi128_si32(least) & 0xffff
    }
}

/// Columns of eight rows.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe {
        // In each half of a register, columns of two rows, then of four; then the halves of both fours.
        let mut two = [r[0]; 8];
        let mut four = [r[0]; 8];
        let mut eight = [r[0]; 8];
        for i in 0..4 {
            two[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            two[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in [0, 4] {
            four[i] = _mm256_shuffle_ps::<0b01_00_01_00>(two[i], two[i + 2]);
            four[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(two[i], two[i + 2]);
            four[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(two[i + 1], two[i + 3]);
            four[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(two[i + 1], two[i + 3]);
        }
        for i in 0..4 {
            eight[i] = _mm256_permute2f128_ps::<0x20>(four[i], four[i + 4]);
            eight[i + 4] = _mm256_permute2f128_ps::<0x31>(four[i], four[i + 4]);
        }
        eight
    }
}

/// Sixteen lanes to one by `f` and its wider form `g`, in the order of the fixed tree.
///
/// # Safety
/// Needs the CPU of the token; `f` and `g` must need no more.
#[inline(always)]
unsafe fn fold(
    a: I,
    f: unsafe fn(__m128i, __m128i) -> __m128i,
    g: unsafe fn(__m256i, __m256i) -> __m256i,
) -> i32 {
    // SAFETY: the caller promises the CPU, also for `f` and `g`; all is arithmetic on registers.
    unsafe {
        let v = g(a.0, a.1);
        let v = f(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        let v = f(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        _mm_cvtsi128_si32(f(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
    }
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type M = F;
    type Q = I;
    const REGISTERS: usize = 8;
    const ASKS_AHEAD: bool = true;
    const DOT_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn f32_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 64 readable bytes; the token promises the features.
        unsafe { (_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn f16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes; the token promises the features.
        unsafe {
            (_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())))
        }
    }
    #[inline(always)]
    unsafe fn bf16_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 32 readable bytes; the token promises the features.
        unsafe { (widen(_mm_loadu_si128(p.cast())), widen(_mm_loadu_si128(p.add(16).cast()))) }
    }
    #[inline(always)]
    unsafe fn i8_at(self, p: *const u8) -> F {
        // SAFETY: the caller promises 16 readable bytes; the token promises the features.
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            (
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))),
            )
        }
    }

    #[inline(always)]
    unsafe fn quads_at(self, p: *const u8) -> I {
        // SAFETY: the caller promises 64 readable bytes; the token promises the features.
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }

    #[inline(always)]
    unsafe fn store_columns(self, to: *mut f32, stride: usize, rows: [F; 8]) {
        // SAFETY: the token promises the features, the caller 16 times 8 floats.
        unsafe {
            let [a, b, c, d, e, f, g, h] = rows;
            let columns = transpose([a.0, b.0, c.0, d.0, e.0, f.0, g.0, h.0]);
            for l in 0..8 {
                _mm256_storeu_ps(to.add(l * stride), columns[l]);
            }
            let columns = transpose([a.1, b.1, c.1, d.1, e.1, f.1, g.1, h.1]);
            for l in 0..8 {
                _mm256_storeu_ps(to.add((8 + l) * stride), columns[l]);
            }
        }
    }

    simd_ops! {
        prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T1>(p.cast());
        store(to: &mut [f32; LANES], v: F) = {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        };
        store_f16(to: &mut [u16; LANES], v: F) = {
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(to.as_mut_ptr().add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        };
        store_i8(to: &mut [i8; LANES], v: I) = {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(v.0, v.1));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        };
        splat(x: f32) -> F = (_mm256_set1_ps(x), _mm256_set1_ps(x));
        add(a: F, b: F) -> F = (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1));
        sub(a: F, b: F) -> F = (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1));
        mul(a: F, b: F) -> F = (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1));
        div(a: F, b: F) -> F = (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1));
        fma(a: F, b: F, c: F) -> F = (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1));
        max(a: F, b: F) -> F = (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1));
        min(a: F, b: F) -> F = (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1));
        round(a: F) -> F = (
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0),
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.1),
        );
        gt(a: F, b: F) -> F = (_mm256_cmp_ps::<_CMP_GT_OQ>(a.0, b.0), _mm256_cmp_ps::<_CMP_GT_OQ>(a.1, b.1));
        mask(bits: u16) -> F = {
            let low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let high = _mm256_slli_epi32::<8>(low);
            let all = _mm256_set1_epi32(i32::from(bits));
            (
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)),
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high)),
            )
        };
        select(m: F, a: F, b: F) -> F = (_mm256_blendv_ps(b.0, a.0, m.0), _mm256_blendv_ps(b.1, a.1, m.1));
        hsum(a: F) -> f32 = {
            let v = _mm256_add_ps(a.0, a.1);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        hmax(a: F) -> f32 = {
            let v = _mm256_max_ps(a.0, a.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };
        bits(a: F) -> I = (_mm256_castps_si256(a.0), _mm256_castps_si256(a.1));
        with_bits(a: I) -> F = (_mm256_castsi256_ps(a.0), _mm256_castsi256_ps(a.1));
        to_i32(a: F) -> I = (_mm256_cvtps_epi32(a.0), _mm256_cvtps_epi32(a.1));
        float(a: I) -> F = (_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1));
        dot4(acc: I, quads: I, x: i32) -> I = {
            let x = _mm256_set1_epi32(x);
            (dot4(acc.0, quads.0, x), dot4(acc.1, quads.1, x))
        };
        isplat(x: i32) -> I = (_mm256_set1_epi32(x), _mm256_set1_epi32(x));
        iadd(a: I, b: I) -> I = (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1));
        isub(a: I, b: I) -> I = (_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1));
        iand(a: I, b: I) -> I = (_mm256_and_si256(a.0, b.0), _mm256_and_si256(a.1, b.1));
        imax(a: I, b: I) -> I = (_mm256_max_epi32(a.0, b.0), _mm256_max_epi32(a.1, b.1));
        ishl23(a: I) -> I = (_mm256_slli_epi32::<23>(a.0), _mm256_slli_epi32::<23>(a.1));
        isar1(a: I) -> I = (_mm256_srai_epi32::<1>(a.0), _mm256_srai_epi32::<1>(a.1));
        ihsum(a: I) -> i32 = fold(a, _mm_add_epi32, _mm256_add_epi32);
        ihmax(a: I) -> i32 = fold(a, _mm_max_epi32, _mm256_max_epi32);
        largest_group(bytes: &[[i8; 64]]) -> i32 = {
            let mut largest = _mm256_setzero_si256();
            for bytes in bytes.as_flattened().as_chunks::<32>().0 {
                largest = _mm256_max_epi16(largest, groups(_mm256_loadu_si256(bytes.as_ptr().cast())));
            }
            let halves = (_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            largest_word(_mm_max_epi16(halves.0, halves.1))
        };
    }
}
