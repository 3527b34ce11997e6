//! How many int8 multiplications and additions a core does when nothing holds it up: the roof of every product. (On plain
//! AVX2 few rows of 2- and 3-bit weights widen half as often as its loop, so theirs is a little higher.)

use std::hint::black_box;

use crate::cpu::Level;

/// Independent sums: more than the latency of the instructions times the ports that run them.
const CHAINS: usize = 16;

/// Does `rounds` rounds of int8 products that wait for nothing, and returns how many multiply-adds those were. For measuring
/// speed; the instructions are those that the level's kernels use.
///
/// Levels that this machine does not have count as [`Level::Scalar`].
pub fn int8_products(level: Level, rounds: u64) -> u64 {
    let level = if level.is_available() { level } else { Level::Scalar };
    let each = match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            // SAFETY: the level is available, and AVX2 belongs to it.
            unsafe { x86::avx2(rounds) };
            32
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2Vnni => {
            // SAFETY: the level is available, and AVX2 and AVX-VNNI belong to it.
            unsafe { x86::avx2_vnni(rounds) };
            32
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vbmi => {
            // SAFETY: the level is available, and AVX-512 F and VNNI belong to it.
            unsafe { x86::avx512(rounds) };
            64
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Amx => {
            // SAFETY: the level is available only where the processor has AMX and the system has permitted
            // it.
            unsafe { crate::arch::amx::products(rounds) };
            16 * 16 * 64 * 8 / CHAINS as u64
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon => {
            // SAFETY: the level is available, and NEON belongs to it.
            unsafe { arm::neon(rounds) };
            8
        }
        #[cfg(target_arch = "aarch64")]
        Level::NeonDotprod => {
            // SAFETY: the level is available, and NEON and dot products belong to it.
            unsafe { arm::dotprod(rounds) };
            16
        }
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => {
            // SAFETY: the level is available, and NEON and matrix products belong to it.
            unsafe { arm::i8mm(rounds) };
            32
        }
        _ => {
            scalar(rounds);
            1
        }
    };
    rounds * CHAINS as u64 * each
}

fn scalar(rounds: u64) {
    let mut sums = [0i32; CHAINS];
    let mut x = black_box(3i32);
    for _ in 0..rounds {
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(x.wrapping_mul(index as i32));
        }
        x ^= sums[0];
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    #[target_feature(enable = "avx2")]
    pub fn avx2(rounds: u64) {
        // Half of the others' sums, so that all registers of the loop fit; and two products for each, which the kernels join before
        // they widen them.
        let mut sums = [_mm256_setzero_si256(); CHAINS / 2];
        let (w, x, one) = (_mm256_set1_epi8(3), _mm256_set1_epi8(1), black_box(_mm256_set1_epi16(1)));
        for _ in 0..rounds {
            for sum in &mut sums {
                let (first, second): (__m256i, __m256i);
                // SAFETY: arithmetic on registers; the function enables the instruction. It is not said to be `pure`, lest it
                // be taken out of the loop.
                unsafe {
                    asm!("vpmaddubsw {first}, {w}, {x}", "vpmaddubsw {second}, {w}, {x}",
                        first = out(ymm_reg) first, second = lateout(ymm_reg) second,
                        w = in(ymm_reg) w, x = in(ymm_reg) x, options(nomem, nostack, preserves_flags));
                }
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_add_epi16(first, second), one));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub fn avx2_vnni(rounds: u64) {
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        let (w, x) = (black_box(_mm256_set1_epi8(3)), black_box(_mm256_set1_epi8(1)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, w, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn avx512(rounds: u64) {
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        let (w, x) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(1)));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, w, x);
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;
    use std::hint::black_box;

    use super::CHAINS;

    #[target_feature(enable = "neon")]
    pub fn neon(rounds: u64) {
        let mut sums = [vdupq_n_s32(0); CHAINS];
        let mut w = black_box(vdup_n_s8(3));
        let x = black_box(vdup_n_s8(1));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = vpadalq_s16(*sum, vmull_s8(w, x));
                // Another factor each time, lest the product be taken out of the loop.
                w = veor_s8(w, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "neon,dotprod")]
    pub fn dotprod(rounds: u64) {
        let mut sums = [vdupq_n_s32(0); CHAINS];
        let (w, x) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(1)));
        for _ in 0..rounds {
            for sum in &mut sums {
                let mut next = *sum;
                // SAFETY: arithmetic on registers; the function enables the instruction.
                unsafe {
                    asm!("sdot {s:v}.4s, {w:v}.16b, {x:v}.16b", s = inout(vreg) next, w = in(vreg) w, x = in(vreg) x,
                        options(pure, nomem, nostack, preserves_flags));
                }
                *sum = next;
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "neon,i8mm")]
    pub fn i8mm(rounds: u64) {
        let mut sums = [vdupq_n_s32(0); CHAINS];
        let (w, x) = (black_box(vdupq_n_s8(3)), black_box(vdupq_n_s8(1)));
        for _ in 0..rounds {
            for sum in &mut sums {
                let mut next = *sum;
                // SAFETY: arithmetic on registers; the function enables the instruction.
                unsafe {
                    asm!("smmla {s:v}.4s, {w:v}.16b, {x:v}.16b", s = inout(vreg) next, w = in(vreg) w, x = in(vreg) x,
                        options(pure, nomem, nostack, preserves_flags));
                }
                *sum = next;
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_counts_its_products() {
        for level in Level::ALL {
            let found = int8_products(level, 10);
            assert_eq!(found % (10 * CHAINS as u64), 0);
            assert!(found >= 10 * CHAINS as u64, "{level}");
            assert_eq!(int8_products(level, 0), 0);
        }
    }
}
