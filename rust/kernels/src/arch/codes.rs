//! Two codes in one index: tables that let an instruction that looks bytes up take them apart.
//!
//! Codes of two bits lie four to a byte, so a nibble holds those of two neighbouring quads: looked up in the codebook as it repeats it
//! yields the first, in a table whose entries stand four times each the second, without a shift and a mask between them.
//! Third bits lie in a line of their own, four quads to a nibble, and are spread to where the other two bits wait.

/// Entries of the codebook of four by bits 2 and 3 of an index.
pub(super) const SECOND: [u8; 16] = bytes(0);
/// From the third bits of quads 0 to 3 in a nibble, those of quads 0 and 2 at bits 2 and 6.
pub(super) const EVEN: [u8; 16] = bytes(1);
/// Those of quads 1 and 3.
pub(super) const ODD: [u8; 16] = bytes(2);

/// Bits 2 and 3 (0), or bits 0 and 2 (1) or 1 and 3 (2) moved to bits 2 and 6, of the numbers below 16.
const fn bytes(what: u8) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        let n = i as u8;
        table[i] = match what {
            0 => n >> 2,
            1 => (n & 1) << 2 | (n >> 2 & 1) << 6,
            _ => (n >> 1 & 1) << 2 | (n >> 3) << 6,
        };
        i += 1;
    }
    table
}

/// Entries of the codebook of eight by an index of six bits: the two lower bits of one code, those of another, then the third bit of each.
/// The table of the first code, then that of the second.
#[cfg(target_arch = "x86_64")]
pub(super) const THREE: [[u8; 64]; 2] = {
    let mut tables = [[0; 64]; 2];
    let mut i = 0;
    while i < 64 {
        let n = i as u8;
        tables[0][i] = n & 3 | (n >> 4 & 1) << 2;
        tables[1][i] = n >> 2 & 3 | n >> 5 << 2;
        i += 1;
    }
    tables
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_taken_apart() {
        for (low, high) in (0..16usize).flat_map(|low| (0..16usize).map(move |high| (low, high))) {
            assert_eq!(usize::from(SECOND[low]), low / 4);
            let bit = |quad: usize| high >> quad & 1;
            assert_eq!(usize::from(EVEN[high]), bit(0) * 4 + bit(2) * 64);
            assert_eq!(usize::from(ODD[high]), bit(1) * 4 + bit(3) * 64);
            #[cfg(target_arch = "x86_64")]
            if high < 4 {
                assert_eq!(usize::from(THREE[0][high * 16 + low]), low % 4 + bit(0) * 4);
                assert_eq!(usize::from(THREE[1][high * 16 + low]), low / 4 + bit(1) * 4);
            }
        }
    }
}
