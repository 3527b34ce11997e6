//! Kinds of palettized weights and where each code of a tile lies.

use crate::error::{KernelError, product};

/// Output rows of a tile.
pub const TILE: usize = 16;
/// Inputs that one code of a pair and its place in a line cover: inputs k and k + 4 of eight are a pair.
const PAIRED: usize = 8;

/// A kind of palettized weight: how many bits a weight has, and what a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// 2-bit codes.
    P2,
    /// 4-bit codes of pairs of weights: 2 bits for each.
    P2v,
    /// 3-bit codes.
    P3,
    /// 4-bit codes.
    P4,
    /// Int8 values themselves; no codebook.
    P8,
}

/// What a kind is, in numbers.
struct Facts {
    name: &'static str,
    bits: usize,
    codes: usize,
    codebook: usize,
    grid: (i8, i8),
}

/// Calls a macro with the names of all kinds, for what has to be written out for each: instances of generic kernels.
macro_rules! each_kind {
    ($callback:ident) => {
        $callback! { P2 P2v P3 P4 P8 }
    };
}
pub(crate) use each_kind;

impl Kind {
    /// All kinds, by ascending bits; of those with as many bits the better one comes later.
    pub const ALL: [Kind; 5] = [Kind::P2, Kind::P2v, Kind::P3, Kind::P4, Kind::P8];

    const fn facts(self) -> Facts {
        match self {
            Kind::P2 => Facts { name: "p2", bits: 2, codes: 4, codebook: 4, grid: (-16, 15) },
            Kind::P2v => Facts { name: "p2v", bits: 2, codes: 16, codebook: 32, grid: (-64, 63) },
            Kind::P3 => Facts { name: "p3", bits: 3, codes: 8, codebook: 8, grid: (-32, 31) },
            Kind::P4 => Facts { name: "p4", bits: 4, codes: 16, codebook: 16, grid: (-64, 63) },
            Kind::P8 => Facts { name: "p8", bits: 8, codes: 256, codebook: 0, grid: (-127, 127) },
        }
    }

    /// The kind with that number, `kind as usize`: kernels are generic over the number, since the compiler does not yet take
    /// enumerations as constant parameters.
    pub(crate) const fn numbered(number: usize) -> Kind {
        Self::ALL[number]
    }

    /// The name in files, reports and the registry.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Bits of a weight, codebook and scales not counted.
    pub const fn bits(self) -> usize {
        self.facts().bits
    }

    /// How many codes there are; each is below.
    pub const fn codes(self) -> usize {
        self.facts().codes
    }

    /// Int8 entries of a tile's codebook; 0 for `P8`, which has none. For `P2v` the first elements of its sixteen pairs, then
    /// their second elements.
    pub const fn codebook_len(self) -> usize {
        self.facts().codebook
    }

    /// Smallest and largest codebook entry (for `P8`: value). On these grids, and with groups of activations no larger than
    /// [`GROUP`](crate::GROUP), AVX2's 16-bit sums cannot overflow.
    pub const fn grid(self) -> (i8, i8) {
        self.facts().grid
    }

    /// Codes of a row of `cols` inputs: one for each input, or for each pair (of inputs k and k + 4 among eight).
    pub const fn codes_per_row(self, cols: usize) -> usize {
        match self {
            Kind::P2v => cols.div_ceil(PAIRED) * (PAIRED / 2),
            _ => cols,
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

    /// Where code `c` of row `r` (0..16) lies within a tile: byte and shift of the low bits of the code, and for
    /// `P3` byte and shift of its third bit.
    #[inline(always)]
    pub(crate) const fn locate(self, r: usize, c: usize) -> ((usize, usize), Option<(usize, usize)>) {
        let lane = 4 * r + c % 4;
        match self {
            Kind::P2 => ((c / 16 * 64 + lane, c % 16 / 4 * 2), None),
            Kind::P3 => {
                let group = c / 32 * 192;
                let low = (group + c % 32 / 16 * 64 + lane, c % 16 / 4 * 2);
                (low, Some((group + 128 + lane, c % 32 / 4)))
            }
            Kind::P2v | Kind::P4 => ((c / 8 * 64 + lane, c % 8 / 4 * 4), None),
            Kind::P8 => ((c / 4 * 64 + lane, 0), None),
        }
    }

    /// Code `c` of row `r` of a tile.
    #[inline(always)]
    pub(crate) fn code(self, tile: &[u8], r: usize, c: usize) -> u8 {
        let ((byte, shift), high) = self.locate(r, c);
        match (self, high) {
            (Kind::P8, _) => tile[byte],
            (Kind::P2v | Kind::P4, _) => tile[byte] >> shift & 15,
            (_, None) => tile[byte] >> shift & 3,
            (_, Some((at, bit))) => tile[byte] >> shift & 3 | (tile[at] >> bit & 1) << 2,
        }
    }

    /// Where in the codebook the value of input `k` of row `r` of a tile is; for `P8` the value's bits.
    #[inline(always)]
    pub(crate) fn entry(self, tile: &[u8], r: usize, k: usize) -> u8 {
        match self {
            Kind::P2v => {
                let second = k % PAIRED / (PAIRED / 2);
                self.code(tile, r, k / PAIRED * (PAIRED / 2) + k % (PAIRED / 2)) + 16 * second as u8
            }
            _ => self.code(tile, r, k),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! listed {
        ($($kind:ident)*) => { [$(Kind::$kind),*] };
    }

    #[test]
    fn kinds_are_numbered_in_the_order_of_their_bits_and_listed_in_each_place() {
        assert_eq!(each_kind!(listed), Kind::ALL);
        assert!(Kind::ALL.windows(2).all(|pair| pair[0].bits() <= pair[1].bits()));
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!((kind as usize, Kind::numbered(number)), (number, kind));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
    }
}
