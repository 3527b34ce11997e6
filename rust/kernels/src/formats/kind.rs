//! Kinds of palettized weights and where each code of a tile lies.

use crate::error::{KernelError, product};

/// Output rows of a tile.
pub const TILE: usize = 16;

/// A kind of palettized weight: the width of its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// 2-bit codes; codebook entries on a 5-bit grid.
    P2,
    /// 3-bit codes; codebook entries on a 6-bit grid.
    P3,
    /// 4-bit codes; codebook entries on a 7-bit grid.
    P4,
    /// Int8 values themselves; no codebook.
    P8,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::P2, Kind::P3, Kind::P4, Kind::P8];

    /// The name in files, reports and the registry.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::P2 => "p2",
            Kind::P3 => "p3",
            Kind::P4 => "p4",
            Kind::P8 => "p8",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Kind::P2 => 2,
            Kind::P3 => 3,
            Kind::P4 => 4,
            Kind::P8 => 8,
        }
    }

    /// Entries of a tile's codebook; 0 for `P8`, which has none.
    pub const fn codebook_len(self) -> usize {
        match self {
            Kind::P8 => 0,
            kind => 1 << kind.bits(),
        }
    }

    /// Smallest and largest codebook entry (for `P8`: value). On these grids AVX2's 16-bit sums cannot saturate.
    pub const fn grid(self) -> (i8, i8) {
        match self {
            Kind::P2 => (-16, 15),
            Kind::P3 => (-32, 31),
            Kind::P4 => (-64, 63),
            Kind::P8 => (-127, 127),
        }
    }

    /// Bytes of a group of 32 inputs of one tile.
    pub const fn group_bytes(self) -> usize {
        self.bits() * 64
    }

    /// Bytes of codes of a tile with `cols` inputs, padding to a multiple of 32 included.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn bytes_per_tile(self, cols: usize) -> Result<usize, KernelError> {
        product("codes of a tile", &[cols.div_ceil(32), self.group_bytes()])
    }

    /// Bytes of the codes of a `rows` × `cols` weight.
    ///
    /// # Errors
    /// When the size overflows.
    pub fn code_bytes(self, rows: usize, cols: usize) -> Result<usize, KernelError> {
        product("codes", &[rows.div_ceil(TILE), self.bytes_per_tile(cols)?])
    }

    /// Where input `k` of row `r` (0..16) lies within a tile: byte and shift of the low bits of the code, and for
    /// `P3` byte and shift of its third bit.
    #[inline(always)]
    pub(crate) const fn locate(self, r: usize, k: usize) -> ((usize, usize), Option<(usize, usize)>) {
        let lane = 4 * r + k % 4;
        match self {
            Kind::P2 => ((k / 16 * 64 + lane, k % 16 / 4 * 2), None),
            Kind::P3 => {
                let group = k / 32 * 192;
                let low = (group + k % 32 / 16 * 64 + lane, k % 16 / 4 * 2);
                (low, Some((group + 128 + lane, k % 32 / 4)))
            }
            Kind::P4 => ((k / 8 * 64 + lane, k % 8 / 4 * 4), None),
            Kind::P8 => ((k / 4 * 64 + lane, 0), None),
        }
    }

    /// The code of input `k` of row `r` of a tile.
    #[inline(always)]
    pub(crate) fn code(self, tile: &[u8], r: usize, k: usize) -> u8 {
        let ((byte, shift), high) = self.locate(r, k);
        match (self, high) {
            (Kind::P8, _) => tile[byte],
            (Kind::P4, _) => tile[byte] >> shift & 15,
            (_, None) => tile[byte] >> shift & 3,
            (_, Some((at, bit))) => tile[byte] >> shift & 3 | (tile[at] >> bit & 1) << 2,
        }
    }
}
