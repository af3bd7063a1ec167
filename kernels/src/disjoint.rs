//! One buffer, written by many tiles at once, each at places of its own.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that tiles of one op share. Bounds are checked here; that no two tiles touch the
/// same element is the caller's promise.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: Elements are reached only through the unsafe methods, whose callers promise that no two
// threads reach the same one.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// While the slice lives, nothing else reaches an element of `range`.
    #[expect(clippy::mut_from_ref, reason = "callers promise disjoint ranges")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a tile stays in its buffer");
        // SAFETY: The range is in bounds, and the caller promises that it is not aliased.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The place of element `index`, from which a strided tile that ends before `end` is written.
    pub(crate) fn strided(&self, index: usize, end: usize) -> *mut T {
        assert!(index < self.len && end <= self.len, "a tile stays in its buffer");
        self.start.wrapping_add(index)
    }
}
