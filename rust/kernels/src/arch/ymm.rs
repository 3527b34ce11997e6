//! What AVX2 and AVX-VNNI share: decoding into 256-bit vectors, 8 rows each.

use std::arch::x86_64::*;

use super::codes::{EVEN, ODD, SECOND};
use crate::formats::Kind;

/// Sixteen bytes in both lanes.
///
/// # Safety
/// Needs AVX2; `bytes` must be valid for reading 16 bytes.
#[inline(always)]
unsafe fn lanes(bytes: *const u8) -> __m256i {
    // SAFETY: the caller promises both.
    unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.cast())) }
}

/// The contract of `Dot::table`: the codebook in every 16-byte lane, raised by `bias`.
///
/// # Safety
/// Needs AVX2; `codebook` must be valid for reading `codebook_len` bytes of the kind, which `P8` has none of.
#[inline(always)]
pub(super) unsafe fn table<const KIND: usize>(codebook: *const i8, bias: i8) -> [__m256i; 2] {
    // SAFETY: the caller promises AVX2 and the kind's entries: 4, 8, 16, twice 16 or none, which is what is
    // read.
    unsafe {
        let sixteen = |entries: *const i8| lanes(entries.cast());
        let raise = |entries| _mm256_add_epi8(entries, _mm256_set1_epi8(bias));
        let one = match Kind::numbered(KIND) {
            Kind::P2 => {
                let four = _mm256_set1_epi32(codebook.cast::<i32>().read_unaligned());
                return [raise(four), raise(_mm256_shuffle_epi8(four, lanes(SECOND.as_ptr())))];
            }
            Kind::P3 => _mm256_set1_epi64x(codebook.cast::<i64>().read_unaligned()),
            Kind::P4 => sixteen(codebook),
            Kind::P2v => return [raise(sixteen(codebook)), raise(sixteen(codebook.add(16)))],
            Kind::P8 => _mm256_setzero_si256(),
        };
        [raise(one); 2]
    }
}

/// The contract of `Dot::decode`; for `P8`, `raise` is added to the values.
///
/// # Safety
/// Needs AVX2; `group` must point at a part, of 32 bytes, of the first line of a group that is readable to
/// its end.
#[inline(always)]
pub(super) unsafe fn decode<const KIND: usize, const HALF: usize>(
    [table, second]: [__m256i; 2],
    group: *const u8,
    raise: i8,
) -> [__m256i; 4] {
    // SAFETY: the caller promises AVX2 and the group. The lines read are those that the kind has: 2, 3, 4 or
    // 8, each from the same part on.
    unsafe {
        let line = |i: usize| _mm256_loadu_si256(group.add(64 * i).cast());
        let nibble = |index| _mm256_and_si256(index, _mm256_set1_epi8(15));
        let look_up = |index| _mm256_shuffle_epi8(table, nibble(index));
        match Kind::numbered(KIND) {
            Kind::P2 | Kind::P2v => {
                let a = line(HALF);
                let (low, high) = (nibble(a), nibble(_mm256_srli_epi16::<4>(a)));
                [(table, low), (second, low), (table, high), (second, high)]
                    .map(|(table, index)| _mm256_shuffle_epi8(table, index))
            }
            Kind::P3 => {
                let (low, high) = (line(HALF), line(2));
                let third = nibble(if HALF == 0 { high } else { _mm256_srli_epi16::<4>(high) });
                let join = |low, table: &[u8; 16]| {
                    let low = _mm256_and_si256(low, _mm256_set1_epi8(0x33));
                    _mm256_or_si256(low, _mm256_shuffle_epi8(lanes(table.as_ptr()), third))
                };
                let (even, odd) = (join(low, &EVEN), join(_mm256_srli_epi16::<2>(low), &ODD));
                // Bits 3 and 7 are clear: of an index only bit 7 would matter beyond the nibble.
                [even, odd, _mm256_srli_epi16::<4>(even), _mm256_srli_epi16::<4>(odd)]
                    .map(|index| _mm256_shuffle_epi8(table, index))
            }
            Kind::P4 => {
                let (a, b) = (line(2 * HALF), line(2 * HALF + 1));
                [
                    look_up(a),
                    look_up(_mm256_srli_epi16::<4>(a)),
                    look_up(b),
                    look_up(_mm256_srli_epi16::<4>(b)),
                ]
            }
            Kind::P8 => [0, 1, 2, 3].map(|q| _mm256_add_epi8(line(4 * HALF + q), _mm256_set1_epi8(raise))),
        }
    }
}
