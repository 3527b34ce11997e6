//! One 512-bit register holds the sixteen lanes.

use super::avx2::largest_word;
use super::{LANES, Simd, simd_ops};
use core::arch::x86_64::*;

/// Token of a CPU with AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// Makes the token.
    ///
    /// # Safety
    /// The CPU must have `avx512f`, `avx512bw`, `avx512vl`, `avx512dq` and `avx512vnni`, and the caller must be a function with these target features
    /// for the operations to be inlined.
    #[inline(always)]
    pub unsafe fn new() -> Self {
        Self(())
    }
}

/// Lanes 0 to 7, and 8 to 15.
///
/// # Safety
/// Needs the CPU of the token.
#[inline(always)]
unsafe fn halves(a: __m512) -> (__m256, __m256) {
    // SAFETY: the caller promises the CPU; all is arithmetic on registers.
    unsafe { (_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a)))) }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type Q = __m512i;
    const REGISTERS: usize = 32;
    const DOT_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn f32_at(self, p: *const u8) -> __m512 {
        // SAFETY: the caller promises 64 readable bytes; the token promises the features.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn f16_at(self, p: *const u8) -> __m512 {
        // SAFETY: the caller promises 32 readable bytes; the token promises the features.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn bf16_at(self, p: *const u8) -> __m512 {
        // SAFETY: the caller promises 32 readable bytes; the token promises the features.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn i8_at(self, p: *const u8) -> __m512 {
        // SAFETY: the caller promises 16 readable bytes; the token promises the features.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn quads_at(self, p: *const u8) -> __m512i {
        // SAFETY: the caller promises 64 readable bytes; the token promises the features.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(i8::MIN)) }
    }

    simd_ops! {
        prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T1>(p.cast());
        store(to: &mut [f32; LANES], v: __m512) = _mm512_storeu_ps(to.as_mut_ptr(), v);
        store_f16(to: &mut [u16; LANES], v: __m512) =
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v));
        store_i8(to: &mut [i8; LANES], v: __m512i) = _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v));
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        round(a: __m512) -> __m512 = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        gt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b);
        mask(bits: u16) -> __mmask16 = bits;
        select(m: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(m, b, a);
        hsum(a: __m512) -> f32 = {
            let (lo, hi) = halves(a);
            let v = _mm256_add_ps(lo, hi);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        };
        hmax(a: __m512) -> f32 = {
            let (lo, hi) = halves(a);
            let v = _mm256_max_ps(lo, hi);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        };
        bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
        with_bits(a: __m512i) -> __m512 = _mm512_castsi512_ps(a);
        to_i32(a: __m512) -> __m512i = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        float(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
        dot4(acc: __m512i, quads: __m512i, x: i32) -> __m512i = _mm512_dpbusd_epi32(acc, quads, _mm512_set1_epi32(x));
        isplat(x: i32) -> __m512i = _mm512_set1_epi32(x);
        iadd(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        isub(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        iand(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        imax(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        ishl23(a: __m512i) -> __m512i = _mm512_slli_epi32::<23>(a);
        isar1(a: __m512i) -> __m512i = _mm512_srai_epi32::<1>(a);
        ihsum(a: __m512i) -> i32 = _mm512_reduce_add_epi32(a);
        ihmax(a: __m512i) -> i32 = _mm512_reduce_max_epi32(a);
        largest_group(bytes: &[[i8; 64]]) -> i32 = {
            let (zero, ones) = (_mm512_setzero_si512(), _mm512_set1_epi8(1));
            let mut largest = zero;
            for bytes in bytes {
                let bytes = _mm512_loadu_si512(bytes.as_ptr().cast());
                let above = _mm512_maddubs_epi16(_mm512_max_epi8(bytes, zero), ones);
                let below = _mm512_maddubs_epi16(_mm512_max_epi8(_mm512_sub_epi8(zero, bytes), zero), ones);
                // Beside each quad's two pairs come those of the next quad; the other words have sums of parts.
                let above = _mm512_add_epi16(above, _mm512_srli_epi64::<32>(above));
                let below = _mm512_add_epi16(below, _mm512_srli_epi64::<32>(below));
                largest = _mm512_max_epi16(largest, _mm512_max_epi16(above, below));
            }
            let half = _mm256_max_epi16(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64::<1>(largest));
            largest_word(_mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half)))
        };
    }
}
