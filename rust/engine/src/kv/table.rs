//! Which sequence holds which blocks: tables, counts of holders, and the list of free blocks.

use super::KV_TOKENS;

/// A sequence of this cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SequenceId(usize);

struct Table {
    blocks: Vec<u32>,
    length: usize,
}

/// The tables of all sequences.
pub(crate) struct Tables {
    sequences: Vec<Table>,
    /// Places in `sequences` that no sequence uses.
    vacant: Vec<usize>,
    /// Sequences that hold each block.
    holders: Vec<u32>,
    /// Blocks of the longest sequence: tables are reserved for it, so that no step allocates.
    longest: usize,
    /// Free blocks; taken from the end, so that used ones are taken again before fresh memory is touched.
    free: Vec<u32>,
}

impl Tables {
    pub fn new(blocks: usize, longest: usize) -> Self {
        let free = (0..blocks as u32).rev().collect();
        Self {
            sequences: Vec::new(),
            vacant: Vec::new(),
            holders: vec![0; blocks],
            longest: longest.min(blocks),
            free,
        }
    }

    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    pub fn length(&self, id: SequenceId) -> usize {
        self.sequences[id.0].length
    }

    pub fn blocks(&self, id: SequenceId) -> &[u32] {
        &self.sequences[id.0].blocks
    }

    pub fn create(&mut self) -> SequenceId {
        SequenceId(self.vacant.pop().unwrap_or_else(|| {
            self.sequences.push(Table { blocks: Vec::with_capacity(self.longest), length: 0 });
            self.sequences.len() - 1
        }))
    }

    pub fn fork(&mut self, id: SequenceId) -> SequenceId {
        let copy = self.create();
        let mut blocks = std::mem::take(&mut self.sequences[copy.0].blocks);
        let Table { blocks: old, length } = &self.sequences[id.0];
        for &block in old {
            self.holders[block as usize] += 1;
        }
        blocks.extend_from_slice(old);
        self.sequences[copy.0] = Table { blocks, length: *length };
        copy
    }

    /// Forgets an empty sequence. Its memory is kept for the next one.
    pub fn remove(&mut self, id: SequenceId) {
        debug_assert_eq!(self.sequences[id.0].blocks.len(), 0);
        self.vacant.push(id.0);
    }

    /// Shortens a sequence and releases the blocks behind its end.
    pub fn truncate(&mut self, id: SequenceId, length: usize) {
        let table = &mut self.sequences[id.0];
        table.length = table.length.min(length);
        for block in table.blocks.drain(table.length.div_ceil(KV_TOKENS).min(table.blocks.len())..) {
            let holders = &mut self.holders[block as usize];
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }

    /// Blocks that growing each sequence by its tokens takes: new ones, and copies of shared partial ones.
    pub fn blocks_needed(&self, wanted: &[(SequenceId, usize)]) -> usize {
        let needed = |(index, &(id, tokens)): (usize, &(SequenceId, usize))| {
            let table = &self.sequences[id.0];
            let new = (table.length + tokens).div_ceil(KV_TOKENS) - table.blocks.len();
            let copied = self.shared_partial(id).is_some_and(|block| {
                // Each earlier sequence of this step leaves the block to the others; the last holder keeps it.
                let earlier =
                    wanted[..index].iter().filter(|(other, _)| self.shared_partial(*other) == Some(block));
                self.holders[block as usize] as usize - earlier.count() > 1
            });
            new + usize::from(copied)
        };
        wanted.iter().enumerate().map(needed).sum()
    }

    /// The last block, if it has room left and others hold it too.
    fn shared_partial(&self, id: SequenceId) -> Option<u32> {
        let table = &self.sequences[id.0];
        let last = table.blocks.last().copied().filter(|_| !table.length.is_multiple_of(KV_TOKENS))?;
        (self.holders[last as usize] > 1).then_some(last)
    }

    /// Replaces a shared partial last block by a new one; returns both.
    pub fn unshare_last(&mut self, id: SequenceId) -> Option<(u32, u32)> {
        let old = self.shared_partial(id)?;
        let new = self.take();
        self.holders[old as usize] -= 1;
        if let Some(last) = self.sequences[id.0].blocks.last_mut() {
            *last = new;
        }
        Some((old, new))
    }

    /// Adds blocks for further tokens.
    pub fn grow(&mut self, id: SequenceId, tokens: usize) {
        let length = self.sequences[id.0].length + tokens;
        while self.sequences[id.0].blocks.len() < length.div_ceil(KV_TOKENS) {
            let block = self.take();
            self.sequences[id.0].blocks.push(block);
        }
        self.sequences[id.0].length = length;
    }

    /// A free block. `blocks_needed` was asked, so there is one.
    fn take(&mut self) -> u32 {
        let block = self.free.pop().expect("blocks were counted before they are taken");
        self.holders[block as usize] = 1;
        block
    }
}
