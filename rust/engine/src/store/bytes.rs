//! Bytes of a tensor: a range of a mapped file, or memory of our own, aligned alike.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::error::StoreError;
use crate::error::EngineError;
use crate::reserve::filled;

/// Alignment of codes in files and in memory: one line of a tile, one cache line.
pub const LINE: usize = 64;

/// A file mapped for reading. Pages are shared with every other process that maps it.
#[derive(Debug)]
pub(super) struct MappedFile {
    pub path: Arc<Path>,
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// The length is taken once, here. A file that another program cuts short afterwards makes the system end the process
    /// at the first read of a lost page (SIGBUS), as with every mapped file; writers must replace files, not change them.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // Asked before opening: to open a named pipe would wait for its writer.
        let about = fs::metadata(path).map_err(|error| StoreError::io(path, &error))?;
        if !about.is_file() {
            let reason = if about.is_dir() { "is a directory, not a file" } else { "is not a regular file" };
            return Err(StoreError::Missing { file: path.to_owned(), reason: reason.into() });
        }
        if about.len() == 0 {
            return Err(StoreError::format(path, "the file is empty"));
        }
        let file = File::open(path).map_err(|error| StoreError::io(path, &error))?;
        // SAFETY: the map is only read, as bytes, every value of which is valid. That the file is not changed while mapped is
        // the condition stated above; all lengths are checked against the map's own length.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| StoreError::io(path, &error))?;
        // Asks for 2 MiB pages where the file system has them (ext4, XFS, Btrfs on a recent Linux). They come about as the file
        // is read in; pages that are there already stay as they are. With them a page fault brings 512 times as much, and
        // reading all weights for each token needs hardly any look-ups of page tables. A refusal changes nothing but time.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { path: path.into(), map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Bytes that live as long as anyone holds them. Cloning shares them.
#[derive(Debug, Clone)]
pub enum Bytes {
    /// Part of a mapped file.
    Mapped(MappedRange),
    /// Memory of our own.
    Owned(OwnedBytes),
}

/// A range of a mapped file.
#[derive(Debug, Clone)]
pub struct MappedRange {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

/// Memory aligned to [`LINE`].
#[derive(Debug, Clone)]
pub struct OwnedBytes {
    lines: Arc<Vec<Line>>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

impl Bytes {
    /// `range` must lie inside the file: the header's validation sees to it.
    pub(super) fn mapped(file: &Arc<MappedFile>, range: Range<usize>) -> Self {
        debug_assert!(range.start <= range.end && range.end <= file.bytes().len());
        Self::Mapped(MappedRange { file: Arc::clone(file), range })
    }

    /// A copy of `source` in aligned memory.
    pub fn copy(source: &[u8]) -> Self {
        let lines = source.chunks(LINE).map(|chunk| {
            let mut line = Line([0; LINE]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            line
        });
        Self::Owned(OwnedBytes { lines: Arc::new(lines.collect()), len: source.len() })
    }

    /// `len` bytes in aligned memory, which are zeros until `write` has written them.
    ///
    /// # Errors
    /// [`EngineError::Memory`] about `what`.
    pub(crate) fn written(
        len: usize,
        what: &str,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<Self, EngineError> {
        let mut lines = filled(len.div_ceil(LINE), Line([0; LINE]), what)?;
        // SAFETY: the lines are contiguous, initialised, borrowed by this slice alone, and 64 plain bytes each.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), lines.len() * LINE) };
        write(&mut bytes[..len]);
        Ok(Self::Owned(OwnedBytes { lines: Arc::new(lines), len }))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(part) => &part.file.bytes()[part.range.clone()],
            Self::Owned(own) => {
                // SAFETY: `lines` is contiguous, initialised, `Line` is 64 plain bytes without padding, and `len` is at most
                // the bytes that the lines hold.
                unsafe { std::slice::from_raw_parts(own.lines.as_ptr().cast::<u8>(), own.len) }
            }
        }
    }

    /// Gives the memory of a mapped file's pages back; they are read again when needed. For passes over files larger than
    /// memory. Does nothing where the system cannot, and to memory of our own.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Self::Mapped(MappedRange { file, range }) = self {
            // SAFETY: the map is of a file and never written, so that a page dropped now reads the same bytes later.
            let outcome = unsafe {
                file.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // Advice that was not taken costs memory, not correctness.
            drop(outcome);
        }
    }

    /// Brings the pages of a mapped file into memory and into this process's tables, so that the first use does not wait for them.
    pub fn prefetch(&self) {
        #[cfg(target_os = "linux")]
        if let Self::Mapped(MappedRange { file, range }) = self {
            // One call for all pages, since Linux 5.14.
            if file.map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len()).is_ok() {
                return;
            }
        }
        for page in self.as_slice().chunks(4096) {
            std::hint::black_box(page[0]);
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first byte's address is a multiple of `alignment`.
    pub fn is_aligned(&self, alignment: usize) -> bool {
        self.as_slice().as_ptr().addr().is_multiple_of(alignment)
    }

    /// The bytes as 16-bit words, if they are aligned to two and even in number.
    pub fn as_u16(&self) -> Option<&[u16]> {
        // SAFETY: any two bytes are a u16, and bytes are initialised.
        let (head, words, tail) = unsafe { self.as_slice().align_to::<u16>() };
        (head.is_empty() && tail.is_empty()).then_some(words)
    }

    /// The bytes as signed 8-bit integers.
    pub fn as_i8(&self) -> &[i8] {
        let bytes = self.as_slice();
        // SAFETY: i8 and u8 have the same size and alignment, and every pattern of bits is a valid i8.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<i8>(), bytes.len()) }
    }
}
