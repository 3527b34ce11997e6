//! Room for guesses: what a step has left beside the tokens that it writes anyway.
//!
//! A guess must never make a step fail that fits without it, so rows, context and blocks of the cache all bound them.

use crate::kv::KV_TOKENS;

/// What is left for guesses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    rows: usize,
    context: usize,
    blocks: usize,
}

impl Room {
    /// Of a step of at most `rows` rows, with so many positions and free blocks.
    pub fn new(rows: usize, context: usize, blocks: usize) -> Self {
        Self { rows, context, blocks }
    }

    /// Sets aside what `tokens` further tokens of a sequence of `length` need at most.
    pub fn set_aside(&mut self, length: usize, tokens: usize) {
        // A last block that is not full may be shared, and is copied then.
        let copied = usize::from(!length.is_multiple_of(KV_TOKENS));
        self.take(length, tokens);
        self.blocks = self.blocks.saturating_sub(copied);
    }

    /// Guesses that fit behind `length` tokens of a sequence, for which room was set aside.
    pub fn behind(&self, length: usize) -> usize {
        let in_block = length.next_multiple_of(KV_TOKENS) - length;
        self.rows.min(self.context.saturating_sub(length)).min(in_block + self.blocks * KV_TOKENS)
    }

    /// Takes room for `tokens` tokens behind `length`.
    pub fn take(&mut self, length: usize, tokens: usize) {
        let blocks = (length + tokens).div_ceil(KV_TOKENS) - length.div_ceil(KV_TOKENS);
        self.rows = self.rows.saturating_sub(tokens);
        self.blocks = self.blocks.saturating_sub(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_of_rows_context_and_blocks_counts() {
        assert_eq!(Room::new(5, 1000, 9).behind(70), 5);
        assert_eq!(Room::new(500, 75, 9).behind(70), 5);
        assert_eq!(Room::new(500, 75, 9).behind(76), 0);
        assert_eq!(Room::new(500, 1000, 0).behind(70), 58);
        assert_eq!(Room::new(500, 1000, 0).behind(128), 0);
        assert_eq!(Room::new(500, 1000, 1).behind(128), 64);
    }

    #[test]
    fn what_is_written_anyway_comes_first() {
        let mut room = Room::new(500, 1000, 2);
        // One block for the token itself.
        room.set_aside(64, 1);
        assert_eq!((room.behind(65), room.rows), (63 + 64, 499));
        // Another for the copy of a last block that may be shared.
        room.set_aside(62, 1);
        assert_eq!((room.behind(63), room.behind(65)), (1, 63));
        room.take(63, 1);
        assert_eq!(room.behind(64), 0);
        // What does not fit is the step's own to refuse.
        room.set_aside(0, 1000);
        assert_eq!(room.behind(65), 0);
    }
}
