//! What AVX2 and AVX-VNNI share: decoding into 256-bit vectors, 8 rows each.

use std::arch::x86_64::*;

/// The codebook in every 16-byte lane, raised by `bias`.
///
/// # Safety
/// Needs AVX2; `codebook` must be valid for 2^BITS bytes (none for 8 bits).
#[inline(always)]
pub(super) unsafe fn table<const BITS: usize>(codebook: *const i8, bias: i8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        let entries = match BITS {
            2 => _mm256_set1_epi32(codebook.cast::<i32>().read_unaligned()),
            3 => _mm256_set1_epi64x(codebook.cast::<i64>().read_unaligned()),
            4 => _mm256_broadcastsi128_si256(_mm_loadu_si128(codebook.cast())),
            _ => _mm256_setzero_si256(),
        };
        _mm256_add_epi8(entries, _mm256_set1_epi8(bias))
    }
}

/// The contract of `Dot::decode`; for 8 bits, `raise` is added to the values.
///
/// # Safety
/// Needs AVX2; `group` as in `Dot::decode`.
#[inline(always)]
pub(super) unsafe fn decode<const BITS: usize, const HALF: usize>(
    table: __m256i,
    group: *const u8,
    raise: i8,
) -> [__m256i; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let line = |i: usize| _mm256_loadu_si256(group.add(64 * i).cast());
        let look_up = |index| _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(15)));
        match BITS {
            2 => {
                // Tables repeat every four entries, so the bits above a code do no harm within a nibble.
                let a = line(HALF);
                [
                    look_up(a),
                    look_up(_mm256_srli_epi16::<2>(a)),
                    look_up(_mm256_srli_epi16::<4>(a)),
                    look_up(_mm256_srli_epi16::<6>(a)),
                ]
            }
            3 => {
                let (low, high) = (line(HALF), line(2));
                // The third bit goes to position 2; the table repeats every eight entries, so bit 3 may hold anything.
                let (h0, h1, h2, h3) = match HALF {
                    0 => (
                        _mm256_slli_epi16::<2>(high),
                        _mm256_slli_epi16::<1>(high),
                        high,
                        _mm256_srli_epi16::<1>(high),
                    ),
                    _ => (
                        _mm256_srli_epi16::<2>(high),
                        _mm256_srli_epi16::<3>(high),
                        _mm256_srli_epi16::<4>(high),
                        _mm256_srli_epi16::<5>(high),
                    ),
                };
                let join = |low, high| {
                    let low = _mm256_and_si256(low, _mm256_set1_epi8(3));
                    let high = _mm256_and_si256(high, _mm256_set1_epi8(4));
                    _mm256_shuffle_epi8(table, _mm256_or_si256(low, high))
                };
                [
                    join(low, h0),
                    join(_mm256_srli_epi16::<2>(low), h1),
                    join(_mm256_srli_epi16::<4>(low), h2),
                    join(_mm256_srli_epi16::<6>(low), h3),
                ]
            }
            4 => {
                let (a, b) = (line(2 * HALF), line(2 * HALF + 1));
                [
                    look_up(a),
                    look_up(_mm256_srli_epi16::<4>(a)),
                    look_up(b),
                    look_up(_mm256_srli_epi16::<4>(b)),
                ]
            }
            _ => [0, 1, 2, 3].map(|q| _mm256_add_epi8(line(4 * HALF + q), _mm256_set1_epi8(raise))),
        }
    }
}
