//! Where buffers lie in the arena: two whose lifetimes do not meet share memory.

use pocketlm_kernels::{blocks, row_stride};

use super::Domain;

/// Every buffer starts at a cache line, and every row of floats too.
pub(crate) const ALIGN: usize = 64;
const FLOAT: usize = 4;

/// What a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// f32 rows of this many columns.
    Float(usize),
    /// Quantized rows of this many columns: int8 values, then scales, then sums. Of each row as many terms, one behind the other,
    /// which add up to it.
    Quantized(usize, usize),
}

/// A matrix of activations.
#[derive(Debug, Clone)]
pub(crate) struct Buffer {
    pub content: Content,
    pub domain: Domain,
    /// First and last phase that touch it.
    pub life: (usize, usize),
    /// First byte in the arena.
    pub offset: usize,
}

impl Buffer {
    /// Elements from one row to the next: f32 or int8.
    pub fn stride(&self) -> usize {
        match self.content {
            Content::Float(width) => width.next_multiple_of(ALIGN / FLOAT),
            Content::Quantized(width, _) => row_stride(width),
        }
    }

    /// Bytes of the buffer, or `None` on overflow.
    pub fn bytes(&self, rows: usize) -> Option<usize> {
        let row = match self.content {
            Content::Float(_) => self.stride() * FLOAT,
            // Both tables of the blocks have elements of four bytes.
            Content::Quantized(width, terms) => {
                (self.stride() + 2 * FLOAT * blocks(width)).checked_mul(terms)?
            }
        };
        // Room to round the tables of the blocks up to a line of their own.
        row.checked_mul(rows)?.checked_add(2 * ALIGN)?.checked_next_multiple_of(ALIGN)
    }
}

/// Assigns offsets, each the lowest that is free over the buffer's life; larger buffers first, since they fit worst.
/// Returns the bytes of the arena, or `None` on overflow.
pub(crate) fn place(buffers: &mut [Buffer], rows: impl Fn(Domain) -> usize) -> Option<usize> {
    let sizes: Option<Vec<usize>> = buffers.iter().map(|buffer| buffer.bytes(rows(buffer.domain))).collect();
    let sizes = sizes?;
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(sizes[index]), index));
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0usize;
    for index in order {
        let life = buffers[index].life;
        let meets = |other: &&usize| buffers[**other].life.0 <= life.1 && life.0 <= buffers[**other].life.1;
        let mut taken: Vec<(usize, usize)> =
            placed.iter().filter(meets).map(|&other| (buffers[other].offset, sizes[other])).collect();
        taken.sort_unstable();
        let mut offset = 0usize;
        for (start, size) in taken {
            if offset.checked_add(sizes[index])? <= start {
                break;
            }
            offset = offset.max(start + size);
        }
        buffers[index].offset = offset;
        total = total.max(offset.checked_add(sizes[index])?);
        placed.push(index);
    }
    isize::try_from(total).is_ok().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_meet_never_overlap_and_others_share() {
        let mut buffers: Vec<Buffer> = (0..60usize)
            .map(|index| Buffer {
                content: Content::Float(1 + index * 37 % 100),
                domain: Domain::All,
                life: (index, index + index * 7 % 5),
                offset: 0,
            })
            .collect();
        let total = place(&mut buffers, |_| 3).unwrap();
        let sizes: Vec<usize> = buffers.iter().map(|buffer| buffer.bytes(3).unwrap()).collect();
        assert!(total < sizes.iter().sum::<usize>() / 4);
        for (one, a) in buffers.iter().enumerate() {
            assert!(a.offset % ALIGN == 0 && a.offset + sizes[one] <= total);
            for (two, b) in buffers.iter().enumerate().skip(one + 1) {
                let apart = a.life.1 < b.life.0 || b.life.1 < a.life.0;
                let beside = a.offset + sizes[one] <= b.offset || b.offset + sizes[two] <= a.offset;
                assert!(apart || beside, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn overflow_is_noticed() {
        let buffer =
            Buffer { content: Content::Float(1 << 40), domain: Domain::All, life: (0, 0), offset: 0 };
        assert_eq!(place(&mut [buffer], |_| 1 << 40), None);
    }
}
