//! Kernels as types: one description per kernel, from which its launch, its C++ signature and its
//! limits follow.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;

use super::graph::Graph;
use super::memory::Allocation;
use super::tensor_map::{Matrix, TensorMap};
use super::{Error, Product};

/// A `.cu` file.
#[derive(Debug)]
pub struct Source {
    /// The file's name, such as `rms_norm.cu`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// What it includes beside `device.cuh`.
    pub headers: &'static [Header],
    /// The one architecture that it is for; none for all from `sm_80` on.
    pub only: Option<&'static str>,
    /// The kernels in it.
    pub kernels: &'static [Kernel],
}

/// A file that kernels include.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Source {
    /// A file that includes `device.cuh` alone, for every architecture.
    pub const fn new(name: &'static str, text: &'static str, kernels: &'static [Kernel]) -> Self {
        Self { name, text, headers: &[], only: None, kernels }
    }

    /// The same with more headers.
    #[must_use]
    pub const fn including(self, headers: &'static [Header]) -> Self {
        Self { headers, ..self }
    }

    /// The same for one architecture.
    #[must_use]
    pub const fn only(self, arch: &'static str) -> Self {
        Self { only: Some(arch), ..self }
    }

    /// Whether it is for `arch`.
    pub fn is_for(&self, arch: &str) -> bool {
        self.only.is_none_or(|only| only == arch)
    }
}

/// One `extern "C" __global__` function.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// The function.
    pub name: &'static str,
    /// The file that holds it.
    pub source: &'static str,
    /// Its parameters in order.
    pub params: &'static [Param],
    /// Most threads of a block, as in `__launch_bounds__`.
    pub threads_max: u32,
    /// Most bytes of shared memory of a block.
    pub shared_bytes_max: u32,
}

impl Kernel {
    /// The C++ type of a pointer to the function.
    pub fn signature(&self) -> String {
        let types: Vec<String> = self.params.iter().map(|param| (param.c_type)()).collect();
        format!("void (*)({})", types.join(", "))
    }
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Its C++ type.
    pub c_type: fn() -> String,
    /// Its size.
    pub size_bytes: usize,
}

/// A type that buffers hold and kernels take.
pub trait Element: Pod {
    /// Its name in the kernels.
    const C_NAME: &'static str;
}

macro_rules! elements {
    ($($rust:ty => $c:literal),* $(,)?) => {
        $(impl Element for $rust {
            const C_NAME: &'static str = $c;
        }
        impl Argument for $rust {
            fn c_type() -> String {
                $c.to_owned()
            }
        })*
    };
}

elements!(bf16 => "bf16", f32 => "float", f64 => "double", i32 => "int", u32 => "u32", u64 => "u64",
          i8 => "signed char");

/// A type that a kernel can have as a parameter.
pub trait Argument: Copy {
    /// Its C++ name.
    fn c_type() -> String;
}

/// Elements that a kernel reads.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct In<T>(u64, PhantomData<T>);

/// Elements that a kernel writes, or reads and writes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Out<T>(u64, PhantomData<T>);

impl<T> In<T> {
    /// The elements at `address`; 0 for none.
    pub fn new(address: u64) -> Self {
        Self(address, PhantomData)
    }
}

impl<T> Out<T> {
    /// The elements at `address`; 0 for none.
    pub fn new(address: u64) -> Self {
        Self(address, PhantomData)
    }
}

impl<T: Element> Argument for In<T> {
    fn c_type() -> String {
        format!("const {}*", T::C_NAME)
    }
}

impl<T: Element> Argument for Out<T> {
    fn c_type() -> String {
        format!("{}*", T::C_NAME)
    }
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in each direction.
    pub blocks: [u32; 3],
    /// Threads of a block; whole warps.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// A row of blocks without shared memory.
    pub fn row(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared_bytes: 0 }
    }

    /// The same with shared memory.
    #[must_use]
    pub fn shared(self, shared_bytes: u32) -> Self {
        Self { shared_bytes, ..self }
    }
}

/// One launch: addresses of the arguments, which have the kernel's types in its order.
pub struct Launch<'a> {
    /// What to run.
    pub kernel: &'static Kernel,
    /// On how many threads.
    pub grid: Grid,
    /// Addresses of the arguments.
    pub arguments: &'a [*mut c_void],
}

impl Launch<'_> {
    /// Panics when the kernel is not made for such a grid; devices call it first.
    pub fn check(&self) {
        let (kernel, grid) = (self.kernel, self.grid);
        let Grid { blocks, threads, shared_bytes } = grid;
        assert_eq!(self.arguments.len(), kernel.params.len(), "`{}`", kernel.name);
        assert!(
            threads > 0
                && threads.is_multiple_of(32)
                && threads <= kernel.threads_max
                && shared_bytes <= kernel.shared_bytes_max
                && blocks.iter().all(|&n| n > 0)
                && blocks[1] <= 65_535
                && blocks[2] <= 65_535,
            "`{}` takes at most {} threads and {} bytes of shared memory: {grid:?}",
            kernel.name,
            kernel.threads_max,
            kernel.shared_bytes_max
        );
    }
}

/// Where kernels run: launches, copies and products are done in the order in which they are given.
pub trait Device: Send + Sync {
    /// The device as a person calls it.
    fn name(&self) -> String;

    /// Bytes that nobody uses.
    ///
    /// # Errors
    /// When the device fails.
    fn free_bytes(&self) -> Result<u64, Error>;

    /// Takes memory, 256-byte aligned; its contents are anything.
    ///
    /// # Errors
    /// When there is not enough.
    fn allocate(&self, size_bytes: usize) -> Result<Arc<dyn Allocation>, Error>;

    /// Copies bytes to the device.
    ///
    /// # Safety
    /// The bytes from `address` on belong to one allocation of this device.
    ///
    /// # Errors
    /// When the device fails.
    unsafe fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Copies bytes from the device, after everything given before is done.
    ///
    /// # Safety
    /// As of [`Self::write`].
    ///
    /// # Errors
    /// When the device fails, now or in what was given before.
    unsafe fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error>;

    /// Sets bytes.
    ///
    /// # Safety
    /// As of [`Self::write`].
    ///
    /// # Errors
    /// When the device fails.
    unsafe fn fill(&self, address: u64, value: u8, size_bytes: usize) -> Result<(), Error>;

    /// Copies bytes within the device; the ranges do not overlap.
    ///
    /// # Safety
    /// As of [`Self::write`], for both ranges.
    ///
    /// # Errors
    /// When the device fails.
    unsafe fn copy(&self, from: u64, to: u64, size_bytes: usize) -> Result<(), Error>;

    /// Whether the kernels of `source` may be used here: they are for this architecture, and where
    /// that is the only one, they have proved themselves (`proof.rs`).
    fn offers(&self, source: &Source) -> bool;

    /// A matrix for the copy engine.
    ///
    /// # Errors
    /// When the device has none, or fails.
    ///
    /// # Panics
    /// When rows do not begin at multiples of 16 bytes, or a box has no rows or more than 256.
    fn tensor_map(&self, matrix: &Matrix<'_>) -> Result<TensorMap, Error>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments have the kernel's types, and what it reads and writes belongs to allocations.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or launched.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), Error>;

    /// Computes a matrix product.
    ///
    /// # Errors
    /// When the device fails.
    fn multiply(&self, product: &Product<'_>) -> Result<(), Error>;

    /// Waits until everything given is done.
    ///
    /// # Errors
    /// When any of it failed.
    fn synchronize(&self) -> Result<(), Error>;

    /// Begins to record: until [`Self::end_recording`], launches, fills, copies within the device and
    /// products are noted and not done. [`super::graph::record`] calls both.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When it records; and so do all that read, write or take memory, or wait, until the end.
    fn begin_recording(&self) -> Result<(), Error>;

    /// Ends the recording and gives what was recorded.
    ///
    /// # Errors
    /// When the device cannot record what it was given.
    ///
    /// # Panics
    /// When it does not record.
    fn end_recording(&self) -> Result<Graph, Error>;

    /// Does what was recorded, in its order.
    ///
    /// # Errors
    /// As what was recorded.
    ///
    /// # Panics
    /// When another device recorded it, or while recording.
    fn replay(&self, graph: &Graph) -> Result<(), Error>;
}

/// Defines a kernel as a struct of its arguments, in the order of the C++ function.
macro_rules! kernel {
    (
        $(#[$doc:meta])*
        $name:ident = $function:literal in $source:literal,
        threads $threads:expr, shared $shared:expr,
        { $($param:ident: $type:ty),* $(,)? }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name {
            $(pub(crate) $param: $type),*
        }

        impl $name {
            pub(crate) const KERNEL: $crate::cuda::launch::Kernel = $crate::cuda::launch::Kernel {
                name: $function,
                source: $source,
                params: &[$($crate::cuda::launch::Param {
                    name: stringify!($param),
                    c_type: <$type as $crate::cuda::launch::Argument>::c_type,
                    size_bytes: size_of::<$type>(),
                }),*],
                threads_max: $threads,
                shared_bytes_max: $shared,
            };

            /// # Safety
            /// What the kernel reads and writes on this grid belongs to live allocations.
            pub(crate) unsafe fn launch(
                self,
                device: &dyn $crate::cuda::launch::Device,
                grid: $crate::cuda::launch::Grid,
            ) -> Result<(), $crate::cuda::Error> {
                static KERNEL: $crate::cuda::launch::Kernel = $name::KERNEL;
                let arguments = [$((&raw const self.$param).cast_mut().cast()),*];
                let launch =
                    $crate::cuda::launch::Launch { kernel: &KERNEL, grid, arguments: &arguments };
                // SAFETY: The arguments are fields of the kernel's types, in its order; the caller
                // answers for the memory.
                unsafe { device.launch(&launch) }
            }
        }
    };
}
pub(crate) use kernel;
