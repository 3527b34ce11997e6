//! AVX-512 VNNI, with and without VBMI: a vector is a whole quad.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes: weights are raised by 128, activations stay signed and come
//! as a broadcast from memory. The sum starts at -128 × Σ activations, which undoes the raise.

use std::arch::x86_64::*;

use super::codes::{EVEN, ODD, SECOND, THREE};
use super::{Dot, dot_ops, fits};
use crate::cpu::Level;
use crate::formats::Kind;
use crate::matmul::instances;

/// With `VBMI`, `vpermb` looks codes up: it reads six bits of an index, so the table is repeated over 64 bytes and
/// nothing needs masking. Without it, `vpshufb` wants clean nibbles. `RAISE` is what weights are raised by: 128, or 0 for
/// products that take them signed.
pub(super) struct Avx512<const VBMI: bool, const RAISE: i32 = 128>;

/// Hides where a table comes from. LLVM 22 does not end on `vpermb` of a table that it knows to repeat four bytes.
///
/// # Safety
/// Needs AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn opaque(mut table: __m512i) -> __m512i {
    // SAFETY: the text is a comment: no instruction is in it, and the register stays as it is.
    unsafe {
        std::arch::asm!("/* {0} */", inout(zmm_reg) table, options(pure, nomem, nostack, preserves_flags));
    }
    table
}

/// Sixteen bytes in every lane of as many.
///
/// # Safety
/// Needs AVX-512 F.
#[inline(always)]
unsafe fn lanes(bytes: &[u8; 16]) -> __m512i {
    // SAFETY: the caller promises the instructions; the bytes are read whole.
    unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
}

impl<const VBMI: bool, const RAISE: i32> Avx512<VBMI, RAISE> {
    /// The entries of 64 codes.
    ///
    /// # Safety
    /// Needs AVX-512 BW, and VBMI if the type says so.
    #[inline(always)]
    unsafe fn look_up(table: __m512i, index: __m512i) -> __m512i {
        // SAFETY: the caller promises the instructions; a table is a register, so no index leaves it.
        unsafe {
            if VBMI {
                _mm512_permutexvar_epi8(index, table)
            } else {
                _mm512_shuffle_epi8(table, _mm512_and_si512(index, _mm512_set1_epi8(15)))
            }
        }
    }

    /// Four quads of three bits: two bits of each code from `low`, the third from bit `4 * HALF` + quad of `high`. With VBMI an
    /// index of six bits holds codes of two neighbouring quads, of which each table reads one. Without, an index of four bits
    /// has room for one, but two quads are put together at once.
    ///
    /// # Safety
    /// Needs AVX-512 F and BW, and VBMI if the type says so.
    #[inline(always)]
    unsafe fn three<const HALF: usize>(
        [first, second]: [__m512i; 2],
        low: __m512i,
        high: __m512i,
    ) -> [__m512i; 4] {
        // SAFETY: the caller promises the instructions; tables are read whole, the rest is arithmetic on
        // registers.
        unsafe {
            if VBMI {
                // Third bits go to positions 4 and 5; shifts by 16 bits spoil only bits that do not count.
                let (near, far) = match HALF {
                    0 => (_mm512_slli_epi16::<4>(high), _mm512_slli_epi16::<2>(high)),
                    _ => (high, _mm512_srli_epi16::<2>(high)),
                };
                let four = _mm512_set1_epi8(15);
                let a = _mm512_ternarylogic_epi32::<0xca>(four, low, near);
                let b = _mm512_ternarylogic_epi32::<0xca>(four, _mm512_srli_epi16::<4>(low), far);
                return [
                    Self::look_up(first, a),
                    Self::look_up(second, a),
                    Self::look_up(first, b),
                    Self::look_up(second, b),
                ];
            }
            let high = if HALF == 0 { high } else { _mm512_srli_epi16::<4>(high) };
            let third = _mm512_and_si512(high, _mm512_set1_epi8(15));
            let two = _mm512_set1_epi8(0x33);
            let even = _mm512_ternarylogic_epi32::<0xca>(two, low, _mm512_shuffle_epi8(lanes(&EVEN), third));
            let low = _mm512_srli_epi16::<2>(low);
            let odd = _mm512_ternarylogic_epi32::<0xca>(two, low, _mm512_shuffle_epi8(lanes(&ODD), third));
            // Bits 3 and 7 are clear: of an index only bit 7 would matter beyond the nibble.
            [even, odd, _mm512_srli_epi16::<4>(even), _mm512_srli_epi16::<4>(odd)]
                .map(|index| _mm512_shuffle_epi8(first, index))
        }
    }
}

impl<const VBMI: bool, const RAISE: i32> Dot for Avx512<VBMI, RAISE> {
    const PARTS: usize = 1;
    type V = __m512i;
    type X = *const i8;
    type Sum = __m512i;
    type F = __m512;

    #[inline(always)]
    fn block<const KIND: usize>() -> usize {
        6
    }

    #[inline(always)]
    fn bias<const KIND: usize>() -> i32 {
        RAISE
    }

    dot_ops! {
        table<KIND>(codebook: *const i8) -> [__m512i; 2] = {
            let sixteen = |entries: *const i8| _mm512_broadcast_i32x4(_mm_loadu_si128(entries.cast()));
            let raise = |entries| opaque(_mm512_xor_si512(entries, _mm512_set1_epi8(RAISE as i8)));
            let one = match Kind::numbered(KIND) {
                Kind::P2 => {
                    let four = _mm512_set1_epi32(codebook.cast::<i32>().read_unaligned());
                    return [raise(four), raise(_mm512_shuffle_epi8(four, lanes(&SECOND)))];
                }
                Kind::P3 => {
                    let eight = _mm512_set1_epi64(codebook.cast::<i64>().read_unaligned());
                    if VBMI {
                        // Not `map` over the array: it becomes a call without these instructions, once a tile.
                        let order = |code: usize| _mm512_loadu_si512(THREE[code].as_ptr().cast());
                        let by = |order| raise(_mm512_shuffle_epi8(eight, order));
                        return [by(order(0)), by(order(1))];
                    }
                    eight
                }
                Kind::P4 => sixteen(codebook),
                Kind::P2v => return [raise(sixteen(codebook)), raise(sixteen(codebook.add(16)))],
                Kind::P8 => _mm512_setzero_si512(),
            };
            [raise(one); 2]
        };
        decode<KIND, HALF>(tables: [__m512i; 2], group: *const u8) -> [__m512i; 4] = {
            let [table, second] = tables;
            let line = |i: usize| _mm512_loadu_si512(group.add(64 * i).cast());
            match Kind::numbered(KIND) {
                Kind::P2 | Kind::P2v => {
                    let low = line(HALF);
                    let high = _mm512_srli_epi16::<4>(low);
                    if VBMI {
                        return [
                            Self::look_up(table, low),
                            Self::look_up(second, low),
                            Self::look_up(table, high),
                            Self::look_up(second, high),
                        ];
                    }
                    let nibble = _mm512_set1_epi8(15);
                    let (low, high) = (_mm512_and_si512(low, nibble), _mm512_and_si512(high, nibble));
                    [(table, low), (second, low), (table, high), (second, high)]
                        .map(|(table, index)| _mm512_shuffle_epi8(table, index))
                }
                Kind::P3 => Self::three::<HALF>(tables, line(HALF), line(2)),
                Kind::P4 => {
                    let (a, b) = (line(2 * HALF), line(2 * HALF + 1));
                    [
                        Self::look_up(table, a),
                        Self::look_up(table, _mm512_srli_epi16::<4>(a)),
                        Self::look_up(table, b),
                        Self::look_up(table, _mm512_srli_epi16::<4>(b)),
                    ]
                }
                Kind::P8 => {
                    let raise = _mm512_set1_epi8(RAISE as i8);
                    [0, 1, 2, 3].map(|q| _mm512_xor_si512(line(4 * HALF + q), raise))
                }
            }
        };
        acts(p: *const i8) -> *const i8 = p;
        dot1<KIND, Q>(sum: __m512i, w: __m512i, x: *const i8) -> __m512i = {
            const { assert!(RAISE == 128, "`vpdpbusd` takes weights without sign") }
            _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x.add(4 * Q).cast::<i32>().read_unaligned()))
        };
        sum(start: i32) -> __m512i = _mm512_set1_epi32(start);
        add(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        load(p: *const u8) -> __m512i = _mm512_loadu_si512(p.cast());
        store(p: *mut u8, v: __m512i) = _mm512_storeu_si512(p.cast(), v);
        floats<KIND>(v: __m512i) -> [__m512; 4] = {
            let signed = _mm512_xor_si512(v, _mm512_set1_epi8(RAISE as i8));
            [
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(signed))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(signed))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(signed))),
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(signed)),
            ]
        };
        float(sum: __m512i) -> __m512 = _mm512_cvtepi32_ps(sum);
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        load_f(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        store_f(p: *mut f32, v: __m512) = _mm512_storeu_ps(p, v);
        prefetch(p: *const u8) = _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
}

const _: () = assert!(fits::<Avx512<false>>() && fits::<Avx512<true>>());

/// Without VBMI.
pub(crate) mod vnni {
    use super::*;
    instances!(Avx512<false>, Level::Avx512, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni");
}

/// With VBMI.
pub(crate) mod vbmi {
    use super::*;
    instances!(
        Avx512<true>,
        Level::Avx512Vbmi,
        "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi"
    );
}
