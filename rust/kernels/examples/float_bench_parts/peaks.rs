//! What multiply-adds from registers reach, for comparison with products of many rows: in float32 and, where the processor has
//! them, as dot products of bf16.

use pocketlm_kernels::Level;

/// Float32 operations per second of one thread at a level, if that is known.
#[cfg(target_arch = "x86_64")]
pub fn flops(level: Level) -> Option<f64> {
    const ROUNDS: usize = 4096;
    let wide = match level {
        Level::Avx2 | Level::Avx2Vnni => false,
        Level::Avx512 | Level::Avx512Vbmi | Level::Avx512Amx => true,
        _ => return None,
    };
    assert!(level.is_available());
    // SAFETY: the processor has the level, as was just asserted.
    let run = || unsafe { if wide { x86::avx512(ROUNDS) } else { x86::avx2(ROUNDS) } };
    let chains = if wide { 24 } else { 6 };
    Some((ROUNDS * chains * 32) as f64 / super::shared::fastest(0.2, run))
}

/// The same of bf16 dot products, where this processor has them.
#[cfg(target_arch = "x86_64")]
pub fn bf16_flops() -> Option<f64> {
    const ROUNDS: usize = 4096;
    is_x86_feature_detected!("avx512bf16").then(|| {
        // SAFETY: the processor has the features, which no processor has without AVX-512.
        (ROUNDS * 24 * 64) as f64 / super::shared::fastest(0.2, || unsafe { x86::bf16(ROUNDS) })
    })
}

#[cfg(not(target_arch = "x86_64"))]
pub fn flops(_: Level) -> Option<f64> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
pub fn bf16_flops() -> Option<f64> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use pocketlm_kernels::simd::Simd;

    /// Sums that wait for nothing: as many as registers allow beside the factors.
    #[inline(always)]
    fn multiply_add<S: Simd, const CHAINS: usize>(s: S, rounds: usize) {
        let mut sums = [s.zero(); CHAINS];
        let (a, b) = black_box((s.splat(0.5), s.splat(1.0)));
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = s.fma(*sum, a, b));
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn avx2(rounds: usize) {
        // SAFETY: the caller may call this only where the processor has the features.
        multiply_add::<_, 6>(unsafe { pocketlm_kernels::simd::Avx2::new() }, rounds);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub fn avx512(rounds: usize) {
        // SAFETY: the caller may call this only where the processor has the features.
        multiply_add::<_, 24>(unsafe { pocketlm_kernels::simd::Avx512::new() }, rounds);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn bf16(rounds: usize) {
        let mut sums = [_mm512_setzero_ps(); 24];
        // SAFETY: both are 512 bits without invalid values: bf16 numbers 1.
        let one: __m512bh =
            black_box(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi16(0x3f80)) });
        for _ in 0..rounds {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, one, one));
        }
        black_box(sums);
    }
}
