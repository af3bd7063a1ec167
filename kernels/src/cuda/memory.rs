//! Memory of a device: allocations, and typed ranges of them.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use super::Error;
use super::launch::{Device, Element, In, Out};

/// Where the parts of an arena begin: a multiple of this.
const ALIGNMENT: usize = 256;

/// Memory of a device, given back when the last holder drops it.
pub trait Allocation: Send + Sync {
    /// Where it begins.
    fn address(&self) -> u64;
    /// Its size.
    fn size_bytes(&self) -> usize;
}

/// A range of elements on a device. Clones and slices share the memory.
pub struct Buffer<T> {
    allocation: Arc<dyn Allocation>,
    offset_bytes: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        let (offset_bytes, len) = (self.offset_bytes, self.len);
        Self { allocation: Arc::clone(&self.allocation), offset_bytes, len, element: PhantomData }
    }
}

impl<T: Element> Buffer<T> {
    /// Memory of its own for `len` elements, whose bytes are all ones: NaN as floats.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn poisoned(device: &dyn Device, len: usize) -> Result<Self, Error> {
        let allocation = device.allocate((len * size_of::<T>()).max(1))?;
        let buffer = Self { allocation, offset_bytes: 0, len, element: PhantomData };
        // SAFETY: The range is the allocation.
        unsafe { device.fill(buffer.address(), 0xff, len * size_of::<T>()) }?;
        Ok(buffer)
    }

    /// A copy of `values` in memory of its own.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn of(device: &dyn Device, values: &[T]) -> Result<Self, Error> {
        let buffer = Self::poisoned(device, values.len())?;
        buffer.write(device, values)?;
        Ok(buffer)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.allocation.address() + self.offset_bytes as u64
    }

    /// A part of it.
    ///
    /// # Panics
    /// When `range` is not within.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        Self {
            offset_bytes: self.offset_bytes + range.start * size_of::<T>(),
            len: range.end - range.start,
            ..self.clone()
        }
    }

    /// The first `len` elements.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn front(&self, len: usize) -> Self {
        self.slice(0..len)
    }

    /// Copies `values` here.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn write(&self, device: &dyn Device, values: &[T]) -> Result<(), Error> {
        assert_eq!(values.len(), self.len, "a buffer is written whole");
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: The range is the buffer's.
        unsafe { device.write(self.address(), bytemuck::cast_slice(values)) }
    }

    /// The elements, once everything given to the device before is done.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&self, device: &dyn Device) -> Result<Vec<T>, Error> {
        let mut values = vec![T::zeroed(); self.len];
        // SAFETY: The range is the buffer's.
        unsafe { device.read(self.address(), bytemuck::cast_slice_mut(&mut values)) }?;
        Ok(values)
    }

    /// Sets all bytes to 0.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear(&self, device: &dyn Device) -> Result<(), Error> {
        // SAFETY: The range is the buffer's.
        unsafe { device.fill(self.address(), 0, self.len * size_of::<T>()) }
    }

    /// Copies another buffer's elements here, on the device.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn copy_from(&self, device: &dyn Device, from: &Self) -> Result<(), Error> {
        assert_eq!(from.len, self.len, "a buffer is copied whole");
        // SAFETY: Both ranges are the buffers'.
        unsafe { device.copy(from.address(), self.address(), self.len * size_of::<T>()) }
    }

    pub(crate) fn input(&self) -> In<T> {
        In::new(self.address())
    }

    pub(crate) fn output(&self) -> Out<T> {
        Out::new(self.address())
    }
}

/// Hands out one allocation piece by piece, so that a step allocates nothing.
pub struct Arena {
    allocation: Arc<dyn Allocation>,
    used_bytes: usize,
}

impl Arena {
    /// Takes `size_bytes` at once.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn new(device: &dyn Device, size_bytes: usize) -> Result<Self, Error> {
        Ok(Self { allocation: device.allocate(size_bytes.max(1))?, used_bytes: 0 })
    }

    /// Bytes that `len` elements take of an arena.
    pub fn size_of<T>(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(ALIGNMENT)
    }

    /// The next `len` elements; their contents are anything.
    ///
    /// # Panics
    /// When the arena was planned too small.
    pub fn take<T>(&mut self, len: usize) -> Buffer<T> {
        let offset_bytes = self.used_bytes;
        self.used_bytes += Self::size_of::<T>(len);
        let size_bytes = self.allocation.size_bytes();
        assert!(self.used_bytes <= size_bytes, "{} bytes of {size_bytes}", self.used_bytes);
        let allocation = Arc::clone(&self.allocation);
        Buffer { allocation, offset_bytes, len, element: PhantomData }
    }
}
