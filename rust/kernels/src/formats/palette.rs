//! A palettized weight, borrowed from the file that it lies in.

use super::kind::{Kind, TILE};
use crate::error::{KernelError, expect_len, product};

/// A palettized weight of `rows` outputs × `cols` inputs; see the format page for the order of its bytes.
///
/// `w[n, k] = scale[n] * codebook[n / 16][code(n, k)]`; for [`Kind::P8`], `scale[n] * value(n, k)`; for [`Kind::P2v`] the code
/// is that of a pair, and the codebook holds the pairs' first elements before their second ones.
#[derive(Debug, Clone, Copy)]
pub struct Palette<'a> {
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) tile_bytes: usize,
    pub(crate) codes: &'a [u8],
    pub(crate) codebook: &'a [i8],
    pub(crate) scale: &'a [u16],
}

impl<'a> Palette<'a> {
    /// Wraps codes (`[tiles, bytes_per_tile]`), codebook (`[tiles, kind.codebook_len()]` int8) and row scales
    /// (`[rows]`, bits of f16). Costs a few comparisons: no data is read.
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn new(
        kind: Kind,
        rows: usize,
        cols: usize,
        codes: &'a [u8],
        codebook: &'a [i8],
        scale: &'a [u16],
    ) -> Result<Self, KernelError> {
        let tiles = rows.div_ceil(TILE);
        let tile_bytes = kind.bytes_per_tile(cols)?;
        expect_len("codes", codes.len(), product("codes", &[tiles, tile_bytes])?)?;
        expect_len("codebook", codebook.len(), product("codebook", &[tiles, kind.codebook_len()])?)?;
        expect_len("scale", scale.len(), rows)?;
        Ok(Self { kind, rows, cols, tile_bytes, codes, codebook, scale })
    }

    /// Reads the codebook and the scales once and refuses what a sound file never holds. For loaders: kernels stay
    /// memory-safe without it, but entries off the grid give sums that differ between instruction sets.
    ///
    /// # Errors
    /// When a codebook entry is off the grid of its kind, or a scale is not finite.
    pub fn check_values(&self) -> Result<(), KernelError> {
        let (low, high) = self.kind.grid();
        if self.codebook.iter().any(|v| !(low..=high).contains(v)) {
            return Err(KernelError::Invalid {
                what: "codebook",
                reason: "an entry is off the grid of its kind",
            });
        }
        if self.scale.iter().any(|s| s & 0x7c00 == 0x7c00) {
            return Err(KernelError::Invalid { what: "scale", reason: "a value is not finite" });
        }
        Ok(())
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of tiles: outputs / 16, rounded up.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// The codes of a tile.
    pub(crate) fn tile(&self, tile: usize) -> &'a [u8] {
        &self.codes[tile * self.tile_bytes..(tile + 1) * self.tile_bytes]
    }

    /// The codebook of a tile (empty for `P8`).
    pub(crate) fn tile_codebook(&self, tile: usize) -> &'a [i8] {
        let n = self.kind.codebook_len();
        &self.codebook[tile * n..(tile + 1) * n]
    }

    /// The integer value (before the row's scale) of input `k` of output `n`.
    ///
    /// # Panics
    /// When the position is outside the weight.
    pub fn value(&self, n: usize, k: usize) -> i8 {
        assert!(
            n < self.rows && k < self.cols,
            "position ({n}, {k}) of a {} x {} weight",
            self.rows,
            self.cols
        );
        let entry = self.kind.entry(self.tile(n / TILE), n % TILE, k);
        match self.kind {
            Kind::P8 => entry as i8,
            _ => self.tile_codebook(n / TILE)[usize::from(entry)],
        }
    }

    /// The row scales of a tile as float32; 0 for rows beyond the last.
    #[inline(always)]
    pub(crate) fn tile_scales(&self, tile: usize) -> [f32; TILE] {
        let have = &self.scale[tile * TILE..self.rows.min((tile + 1) * TILE)];
        let mut bits = [0u16; TILE];
        match <&[u16; TILE]>::try_from(have) {
            Ok(full) => bits = *full,
            Err(_) => bits[..have.len()].copy_from_slice(have),
        }
        // A counted loop: the closure of a map would not be inlined into code with vector instructions.
        let mut scales = [0.0; TILE];
        for (scale, bits) in scales.iter_mut().zip(bits) {
            *scale = f16_to_f32(bits);
        }
        scales
    }
}

/// Converts the bits of an f16, exactly. Without branches, so that a loop over it becomes vector code.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // As f32 bits, the magnitude is 2^112 too small: one exact product mends normal and subnormal numbers alike.
    let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = magnitude | 0x7f80_0000;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#06x}");
        }
    }
}
