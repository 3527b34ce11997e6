//! Codes in row-major order to tiles and back, and to float32.

use super::kind::{Kind, TILE};
use super::palette::{Palette, f16_to_f32};
use crate::error::{KernelError, expect_len, product};

/// Packs codes (`[rows, kind.codes_per_row(cols)]` row-major; for `P8` the int8 values' bits) into tiles. Padding is zero.
///
/// # Errors
/// When the number of codes is another, or a code has more bits than the kind.
pub fn pack(kind: Kind, rows: usize, cols: usize, codes: &[u8]) -> Result<Vec<u8>, KernelError> {
    product("codes to pack", &[rows, cols])?;
    let row_len = kind.codes_per_row(cols);
    expect_len("codes to pack", codes.len(), product("codes to pack", &[rows, row_len])?)?;
    if codes.iter().any(|&c| usize::from(c) >= kind.codes()) {
        return Err(KernelError::Invalid {
            what: "codes to pack",
            reason: "a code has more bits than its kind",
        });
    }
    let tile_bytes = kind.bytes_per_tile(cols)?;
    let mut out = vec![0u8; kind.code_bytes(rows, cols)?];
    if cols == 0 {
        return Ok(out);
    }
    for (n, row) in codes.chunks_exact(row_len).enumerate() {
        let tile = &mut out[n / TILE * tile_bytes..(n / TILE + 1) * tile_bytes];
        for (c, &code) in row.iter().enumerate() {
            let ((byte, shift), high) = kind.locate(n % TILE, c);
            match high {
                None => tile[byte] |= code << shift,
                Some((at, bit)) => {
                    tile[byte] |= (code & 3) << shift;
                    tile[at] |= (code >> 2) << bit;
                }
            }
        }
    }
    Ok(out)
}

/// The codes of a weight, `[rows, kind.codes_per_row(cols)]` row-major: the inverse of [`pack`].
pub fn unpack(w: &Palette<'_>) -> Vec<u8> {
    let row_len = w.kind.codes_per_row(w.cols);
    let mut out = Vec::with_capacity(w.rows * row_len);
    for n in 0..w.rows {
        let tile = w.tile(n / TILE);
        out.extend((0..row_len).map(|c| w.kind.code(tile, n % TILE, c)));
    }
    out
}

/// The weights as float32, `[rows, cols]` row-major, into `out`. Each product is exact up to one rounding.
///
/// # Errors
/// When `out` has the wrong length.
pub fn dequantize(w: &Palette<'_>, out: &mut [f32]) -> Result<(), KernelError> {
    expect_len("dequantized weights", out.len(), product("dequantized weights", &[w.rows, w.cols])?)?;
    if w.cols > 0 {
        for (n, row) in out.chunks_exact_mut(w.cols).enumerate() {
            decode_row(w, n, row);
        }
    }
    Ok(())
}

/// Decodes one row; `out` has `cols` elements.
pub(crate) fn decode_row(w: &Palette<'_>, n: usize, out: &mut [f32]) {
    let (tile, r) = (w.tile(n / TILE), n % TILE);
    let scale = f16_to_f32(w.scale[n]);
    let mut values = [0f32; 32];
    for (value, &entry) in values.iter_mut().zip(w.tile_codebook(n / TILE)) {
        *value = f32::from(entry) * scale;
    }
    let look_up = |entry: u8| values[usize::from(entry & 31)];
    match w.kind {
        Kind::P2 => decode_groups(tile, out, look_up, |group: &[u8; 128]| {
            std::array::from_fn(|k| word(group, k / 16, r)[k % 4] >> (k % 16 / 4 * 2) & 3)
        }),
        Kind::P2v => decode_groups(tile, out, look_up, |group: &[u8; 128]| {
            let second = |k: usize| 16 * (k as u8 / 4 % 2);
            std::array::from_fn(|k| (word(group, k / 16, r)[k % 4] >> (k % 16 / 8 * 4) & 15) + second(k))
        }),
        Kind::P3 => decode_groups(tile, out, look_up, |group: &[u8; 192]| {
            let third = |k: usize| word(group, 2, r)[k % 4] >> (k / 4) & 1;
            std::array::from_fn(|k| word(group, k / 16, r)[k % 4] >> (k % 16 / 4 * 2) & 3 | third(k) << 2)
        }),
        Kind::P4 => decode_groups(tile, out, look_up, |group: &[u8; 256]| {
            std::array::from_fn(|k| word(group, k / 8, r)[k % 4] >> (k % 8 / 4 * 4) & 15)
        }),
        Kind::P8 => {
            let value = |code: u8| f32::from(code as i8) * scale;
            decode_groups(tile, out, value, |group: &[u8; 512]| {
                std::array::from_fn(|k| word(group, k / 4, r)[k % 4])
            });
        }
    }
}

/// The bytes of row `r` (0..16) in a line of a group.
#[inline(always)]
fn word(group: &[u8], line: usize, r: usize) -> [u8; 4] {
    let at = 64 * line + 4 * (r % TILE);
    [group[at], group[at + 1], group[at + 2], group[at + 3]]
}

/// One row of a tile, group by group of 32 inputs: the places of their values by `entries`, which is [`Kind::entry`] for all of them.
/// Whole groups at once, so that places are constants and the lookups of all are independent.
#[inline(always)]
fn decode_groups<const BYTES: usize>(
    tile: &[u8],
    out: &mut [f32],
    value: impl Fn(u8) -> f32,
    entries: impl Fn(&[u8; BYTES]) -> [u8; 32],
) {
    for (group, out) in tile.as_chunks::<BYTES>().0.iter().zip(out.chunks_mut(32)) {
        for (y, entry) in out.iter_mut().zip(entries(group)) {
            *y = value(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_is_undone_by_unpacking() {
        for kind in Kind::ALL {
            for (rows, cols) in [(0, 0), (1, 1), (16, 32), (17, 33), (5, 0), (31, 257), (33, 15), (48, 100)] {
                let codes: Vec<u8> = (0..rows * kind.codes_per_row(cols))
                    .map(|i| ((i * 2654435761) >> 7) as u8 & (kind.codes() - 1) as u8)
                    .collect();
                let packed = pack(kind, rows, cols, &codes).unwrap();
                assert_eq!(packed.len(), rows.div_ceil(16) * cols.div_ceil(32) * 64 * kind.bits());
                let codebook = vec![0i8; rows.div_ceil(16) * kind.codebook_len()];
                let scale = vec![0u16; rows];
                let w = Palette::new(kind, rows, cols, &packed, &codebook, &scale).unwrap();
                assert_eq!(unpack(&w), codes, "{kind:?} {rows} x {cols}");
            }
        }
    }

    #[test]
    fn rows_are_decoded_to_the_value_of_each_place() {
        let (rows, mut seed) = (35, 1u32);
        let mut next = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 24) as u8
        };
        for kind in Kind::ALL {
            for cols in [1, 7, 31, 32, 33, 64, 100, 257] {
                let codes: Vec<u8> = (0..kind.code_bytes(rows, cols).unwrap()).map(|_| next()).collect();
                let codebook: Vec<i8> = (0..3 * kind.codebook_len()).map(|_| next() as i8).collect();
                let scale: Vec<u16> = (0..rows).map(|n| 0x2c00 + 7 * n as u16).collect();
                let w = Palette::new(kind, rows, cols, &codes, &codebook, &scale).unwrap();
                let mut out = vec![0.0; cols];
                for (n, &bits) in scale.iter().enumerate() {
                    decode_row(&w, n, &mut out);
                    for (k, &y) in out.iter().enumerate() {
                        let exact = f32::from(w.value(n, k)) * f16_to_f32(bits);
                        assert_eq!(y, exact, "{kind:?} {cols}: {n}, {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_and_wide_codes_are_refused() {
        assert!(pack(Kind::P4, 2, 3, &[0; 5]).is_err());
        assert!(pack(Kind::P2, 1, 2, &[0, 4]).is_err());
        assert!(pack(Kind::P2v, 1, 9, &[0, 0, 0, 0, 0, 0, 0, 16]).is_err());
        assert!(pack(Kind::P2v, 1, 9, &[0; 9]).is_err());
        assert!(pack(Kind::P8, usize::MAX, 2, &[]).is_err());
        assert!(Kind::P8.bytes_per_tile(usize::MAX).is_err());
        assert!(Palette::new(Kind::P4, 16, 32, &[0; 255], &[0; 16], &[0; 16]).is_err());
        assert!(Palette::new(Kind::P4, 16, 32, &[0; 256], &[0; 15], &[0; 16]).is_err());
        assert!(Palette::new(Kind::P4, 16, 32, &[0; 256], &[0; 16], &[0; 15]).is_err());
        assert!(Palette::new(Kind::P4, usize::MAX, usize::MAX, &[], &[], &[]).is_err());
        let w = Palette::new(Kind::P4, 16, 32, &[0; 256], &[0; 16], &[0; 16]).unwrap();
        assert!(dequantize(&w, &mut [0.0; 3]).is_err());
    }
}
