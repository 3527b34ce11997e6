//! Bits and geometry of the palettized kinds.

/// A palettized kind: codes of 2, 3, 4 or 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PaletteKind {
    /// 2-bit codes.
    P2,
    /// 3-bit codes.
    P3,
    /// 4-bit codes.
    P4,
    /// int8 values, no codebook.
    P8,
}

/// Output rows of a tile.
pub const TILE_ROWS: usize = 16;

impl PaletteKind {
    /// Every kind, by ascending bits.
    pub const ALL: [Self; 4] = [Self::P2, Self::P3, Self::P4, Self::P8];

    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Self::P2 => 2,
            Self::P3 => 3,
            Self::P4 => 4,
            Self::P8 => 8,
        }
    }

    /// Lower-case name, as in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::P2 => "p2",
            Self::P3 => "p3",
            Self::P4 => "p4",
            Self::P8 => "p8",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Entries of a tile's codebook; 0 for p8.
    pub fn codebook_len(self) -> usize {
        if self == Self::P8 {
            0
        } else {
            1 << self.bits()
        }
    }

    /// Bytes of a tile's codes for `cols` inputs, or none where they overflow.
    pub fn bytes_per_tile(self, cols: usize) -> Option<usize> {
        cols.checked_next_multiple_of(32)?
            .checked_mul(2 * self.bits())
    }

    /// Smallest and largest entry of a codebook (p8: value).
    pub fn grid(self) -> (i8, i8) {
        match self {
            Self::P2 => (-16, 15),
            Self::P3 => (-32, 31),
            Self::P4 => (-64, 63),
            Self::P8 => (-127, 127),
        }
    }
}
