//! Kernels for NVIDIA GPUs, compiled at run time, and what they need around them.
//!
//! An op's kernels are its `.cu` file; its `cuda.rs` beside it checks shapes and launches them. All
//! of that speaks to a [`Device`], of which there are two: a GPU, and the [`Emulator`], which runs
//! the same kernels on a CPU. Kernels are compiled by NVRTC for the GPU at hand and kept in a folder.
//! Nothing here needs CUDA to build or to start: libraries are looked for when they are wanted.

pub mod choice;
pub mod compile;
pub mod emulator;
pub mod gpu;
pub mod graph;
pub mod launch;
pub mod libraries;
pub mod memory;
pub mod parity;
pub mod product;
pub mod proof;
pub mod speed;
pub mod sum_rows;
pub mod tensor_map;

pub use emulator::Emulator;
pub use gpu::Gpu;
pub use launch::{Device, Kernel, Source};
pub use memory::Buffer;
pub use product::{Layout, Product};
pub use tensor_map::{Matrix, TensorMap};

use crate::{
    adamw, attention, cross_entropy, decode, embedding, int8_search, norm, qk_norm_rope, rms_norm,
    sampling, swiglu,
};

/// What every kernel includes.
pub const DEVICE_HEADER: &str = include_str!("cuda/device.cuh");
/// What kernels for `sm_90a` include beside it.
pub(crate) const HOPPER_HEADER: launch::Header =
    launch::Header { name: "hopper.cuh", text: include_str!("cuda/hopper.cuh") };

/// What goes wrong on a device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A kernel does not compile.
    #[error("`{source_name}` does not compile for {target}: {log}")]
    Compile {
        /// The kernel's file.
        source_name: String,
        /// The architecture or compiler.
        target: String,
        /// What the compiler says.
        log: String,
    },
    /// A kernel broke a rule while it was emulated.
    #[error("`{kernel}` fails: {message}")]
    Emulation {
        /// The kernel.
        kernel: String,
        /// Which rule, where.
        message: String,
    },
    /// There is not enough memory on the device.
    #[error("the device has {free_bytes} bytes free of the {needed_bytes} needed")]
    OutOfMemory {
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// A call of a library failed.
    #[error("{call} fails: {message}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the library says.
        message: String,
    },
    /// A program or library is missing.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
}

/// Every kernel file, in the order of the modules.
pub fn sources() -> [&'static Source; 13] {
    [
        &adamw::cuda::SOURCE,
        &attention::cuda::SOURCE,
        &attention::cuda::hopper::SOURCE,
        &cross_entropy::cuda::SOURCE,
        &decode::cuda::SOURCE,
        &embedding::cuda::SOURCE,
        &int8_search::cuda::SOURCE,
        &norm::cuda::SOURCE,
        &qk_norm_rope::cuda::SOURCE,
        &rms_norm::cuda::SOURCE,
        &sampling::cuda::SOURCE,
        &sum_rows::SOURCE,
        &swiglu::cuda::SOURCE,
    ]
}

/// Bytes of shared memory for one `T` per warp.
pub(crate) fn warp_scratch<T>(n_threads: u32) -> u32 {
    n_threads / 32 * size_of::<T>() as u32
}

/// A size as the kernels count: `int`, or `unsigned` in the emulation's sense.
///
/// # Panics
/// When it does not fit.
pub(crate) fn int(n: usize) -> i32 {
    i32::try_from(n).expect("sizes fit in an int")
}

/// [`int`] for grids.
pub(crate) fn blocks(n: usize) -> u32 {
    int(n) as u32
}
