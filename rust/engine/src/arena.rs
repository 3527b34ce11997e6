//! The memory of a step's activations: one map, reserved once, that the workers of a step share.

use std::marker::PhantomData;
use std::ops::Range;

use memmap2::{MmapMut, MmapOptions};
use pocketlm_kernels::{KernelError, PackedRows, QuantRowMut, QuantRows, blocks};

use crate::error::EngineError;
use crate::plan::{Buffer, Content, Plan, View};

/// Anonymous memory, zeroed, committed by the system when first touched.
pub(crate) struct Arena {
    map: MmapMut,
}

impl Arena {
    pub fn new(bytes: usize) -> Result<Self, EngineError> {
        let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon();
        let map = map.map_err(|_| EngineError::Memory {
            what: "activations of a step".into(),
            needed: bytes as u64,
            available: 0,
        })?;
        Ok(Self { map })
    }

    /// The buffers of a plan, laid out in this arena, which was made for it.
    pub fn view<'a>(&'a mut self, plan: &'a Plan) -> ArenaView<'a> {
        assert!(plan.arena_bytes <= self.map.len());
        ArenaView { base: self.map.as_mut_ptr(), len: self.map.len(), plan, life: PhantomData }
    }
}

/// The arena as the workers of a step see it. Each worker takes rows and columns that no other touches in the
/// same phase; barriers separate the phases, and within one the writing of packed rows from their reading. That
/// division is what the callers of the unsafe methods promise; bounds are checked here. Different buffers that are used in one phase lie apart: [`crate::plan::Plan`]
/// lets only those share memory whose lives do not meet.
#[derive(Clone, Copy)]
pub(crate) struct ArenaView<'a> {
    base: *mut u8,
    len: usize,
    plan: &'a Plan,
    life: PhantomData<&'a mut MmapMut>,
}

// SAFETY: the map belongs to no thread, and a view reads and writes nothing by itself: who makes a reference
// by one of its unsafe methods promises that no other thread's gets in its way.
unsafe impl Send for ArenaView<'_> {}
// SAFETY: as for `Send`: a shared view can do no more than a sent one, since views are copied freely.
unsafe impl Sync for ArenaView<'_> {}

impl<'a> ArenaView<'a> {
    fn buffer(&self, index: usize) -> (&'a Buffer, usize) {
        let buffer = &self.plan.buffers[index];
        (buffer, self.plan.rows(buffer.domain))
    }

    /// A pointer to `count` elements from byte `offset` on.
    fn at<T>(&self, offset: usize, count: usize) -> *mut T {
        assert!(offset <= self.len && count <= (self.len - offset) / size_of::<T>());
        assert!(offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the offset lies inside the map or at its end, as just checked.
        unsafe { self.base.add(offset).cast() }
    }

    /// Byte offset of a row of a view, and the elements from one row to the next.
    fn locate(&self, view: View, row: usize) -> (usize, usize) {
        let (buffer, rows) = self.buffer(view.buffer);
        assert!(row < rows && matches!(buffer.content, Content::Float(_)));
        let stride = buffer.stride();
        assert!(view.start + view.width <= stride);
        (buffer.offset + 4 * (row * stride + view.start), stride)
    }

    /// One row of a view, to be read.
    ///
    /// # Safety
    /// Nobody, this thread included, writes these elements while the result is used.
    pub unsafe fn row(&self, view: View, row: usize) -> &'a [f32] {
        let (offset, _) = self.locate(view, row);
        // SAFETY: inside the map, which lives for 'a, and aligned, as `at` checks (the map begins at a page);
        // any bits are a float; not written meanwhile, by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at(offset, view.width), view.width) }
    }

    /// One row of a view, to be written.
    ///
    /// # Safety
    /// Nobody, this thread included, reads or writes these elements but through the result while that is
    /// used.
    pub unsafe fn row_mut(&self, view: View, row: usize) -> &'a mut [f32] {
        let (offset, _) = self.locate(view, row);
        // SAFETY: as in `row`, but that the caller promises exclusion.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, view.width), view.width) }
    }

    /// `count` rows of a view from `row` on, with what lies between them, and the elements from one row to the next.
    ///
    /// # Safety
    /// Nobody, this thread included, writes anything of these rows of the buffer while the result is used.
    pub unsafe fn rows(&self, view: View, row: usize, count: usize) -> (&'a [f32], usize) {
        let (offset, stride) = self.locate(view, row);
        let (_, rows) = self.buffer(view.buffer);
        assert!(count >= 1 && count <= rows - row);
        let len = (count - 1) * stride + view.width;
        // SAFETY: as in `row`, for all that lies between the first element and the last.
        (unsafe { std::slice::from_raw_parts(self.at(offset, len), len) }, stride)
    }

    /// Floats of the place for packed rows, to be written.
    ///
    /// # Safety
    /// Nobody, this thread included, reads or writes them but through the result while that is used.
    pub unsafe fn packed_mut(&self, floats: Range<usize>) -> &'a mut [f32] {
        let at = self.packed_at(floats.end) + 4 * floats.start;
        // SAFETY: inside the map, as `at` checks, behind the buffers; as in `row_mut`.
        unsafe { std::slice::from_raw_parts_mut(self.at(at, floats.len()), floats.len()) }
    }

    /// The packed rows, so many of so many inputs.
    ///
    /// # Safety
    /// Nobody, this thread included, writes them while the result is used.
    pub unsafe fn packed(&self, rows: usize, cols: usize) -> Result<PackedRows<'a>, KernelError> {
        let floats = PackedRows::floats(rows, cols).ok_or(KernelError::Overflow { what: "packed rows" })?;
        let at = self.packed_at(floats);
        // SAFETY: inside the map, as `at` checks, behind the buffers; as in `row`.
        PackedRows::new(rows, cols, unsafe { std::slice::from_raw_parts(self.at(at, floats), floats) })
    }

    /// Byte offset of the place for packed rows, which must have so many floats.
    fn packed_at(&self, floats: usize) -> usize {
        let packing = self.plan.packing.expect("a plan that packs rows");
        assert!(floats <= packing.floats);
        packing.offset
    }

    /// Terms of each row of a quantized buffer.
    pub fn terms(&self, index: usize) -> usize {
        let Content::Quantized(_, terms) = self.plan.buffers[index].content else {
            panic!("buffer {index} is not quantized")
        };
        terms
    }

    /// Byte offsets of values, scales and sums of a quantized buffer, its stride, columns and blocks.
    fn quantized(&self, index: usize) -> ([usize; 3], usize, usize, usize) {
        let (buffer, rows) = self.buffer(index);
        let Content::Quantized(cols, terms) = buffer.content else {
            panic!("buffer {index} is not quantized")
        };
        let (stride, count, rows) = (buffer.stride(), blocks(cols), rows * terms);
        let scales = buffer.offset + rows * stride;
        ([buffer.offset, scales, scales + 4 * rows * count], stride, cols, count)
    }

    /// The terms of the first `count` rows of a quantized buffer, those of one row behind each other.
    ///
    /// # Safety
    /// Nobody, this thread included, writes them while the result is used.
    pub unsafe fn quantized_rows(&self, index: usize, count: usize) -> Result<QuantRows<'a>, KernelError> {
        let ([values, scales, sums], stride, cols, per_row) = self.quantized(index);
        assert!(count <= self.buffer(index).1);
        let count = count * self.terms(index);
        // SAFETY: inside the map, which lives for 'a, and aligned, as `at` checks; any bits are a byte, a
        // float or an integer; not written meanwhile, by the caller's promise.
        let (values, scales, sums) = unsafe {
            (
                std::slice::from_raw_parts(self.at(values, count * stride), count * stride),
                std::slice::from_raw_parts(self.at(scales, count * per_row), count * per_row),
                std::slice::from_raw_parts(self.at(sums, count * per_row), count * per_row),
            )
        };
        QuantRows::new(count, cols, stride, values, scales, sums)
    }

    /// One term of a row of a quantized buffer, to be written.
    ///
    /// # Safety
    /// Nobody, this thread included, reads or writes it but through the result while that is used.
    pub unsafe fn quantized_row_mut(&self, index: usize, row: usize, term: usize) -> QuantRowMut<'a> {
        let ([values, scales, sums], stride, cols, count) = self.quantized(index);
        assert!(row < self.buffer(index).1 && term < self.terms(index));
        let row = row * self.terms(index) + term;
        // SAFETY: as in `quantized_rows`, but that the caller promises exclusion; the three do not meet,
        // being one behind the other in the buffer.
        unsafe {
            QuantRowMut {
                cols,
                values: std::slice::from_raw_parts_mut(self.at(values + row * stride, stride), stride),
                scales: std::slice::from_raw_parts_mut(self.at(scales + 4 * row * count, count), count),
                sums: std::slice::from_raw_parts_mut(self.at(sums + 4 * row * count, count), count),
            }
        }
    }
}
