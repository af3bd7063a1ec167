//! What an emulator notes instead of doing it, and does when the graph is replayed.

use std::ffi::c_void;
use std::sync::Arc;

use half::bf16;

use super::{Emulator, Memory};
use crate::cuda::launch::{Device, Grid, Kernel, Launch};
use crate::cuda::product::{Layout, Product, Target};
use crate::cuda::{Buffer, Error};
use crate::matmul::Accumulate;

/// A graph of the emulator.
pub(super) struct Record {
    pub(super) steps: Vec<Step>,
    /// Keeps every address alive.
    pub(super) _memory: Vec<Arc<Memory>>,
}

/// One thing to do, with its arguments as they were.
pub(super) enum Step {
    Launch { kernel: &'static Kernel, grid: Grid, arguments: Vec<Vec<Line>> },
    Fill { address: u64, value: u8, size_bytes: usize },
    Copy { from: u64, to: u64, size_bytes: usize },
    Multiply(OwnedProduct),
}

/// Bytes of an argument, aligned as any parameter of a kernel may be: as a tensor map is.
#[derive(Clone, Copy)]
#[repr(align(128))]
pub(super) struct Line(
    #[expect(dead_code, reason = "kernels read it through its address")] [u8; 128],
);

/// [`Product`] with its buffers.
pub(super) struct OwnedProduct {
    layout: Layout,
    sizes: [usize; 3],
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    c: OwnedTarget,
    accumulate: Accumulate,
}

enum OwnedTarget {
    Bf16(Buffer<bf16>),
    F32(Buffer<f32>),
}

impl Step {
    /// Copies the arguments of a launch.
    ///
    /// # Safety
    /// They have the kernel's types.
    pub(super) unsafe fn launch(launch: &Launch<'_>) -> Self {
        let copied = |(&argument, size_bytes): (&*mut c_void, usize)| {
            let mut lines = vec![Line([0; 128]); size_bytes.div_ceil(128)];
            // SAFETY: An argument has the size of its parameter's type, by the caller's word, and the
            // lines hold as many bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    argument.cast::<u8>().cast_const(),
                    lines.as_mut_ptr().cast::<u8>(),
                    size_bytes,
                );
            }
            lines
        };
        let sizes = launch.kernel.params.iter().map(|param| param.size_bytes);
        let arguments = launch.arguments.iter().zip(sizes).map(copied).collect();
        Self::Launch { kernel: launch.kernel, grid: launch.grid, arguments }
    }

    pub(super) fn multiply(product: &Product<'_>) -> Self {
        let &Product { layout, sizes, a, b, c, accumulate } = product;
        let c = match c {
            Target::Bf16(c) => OwnedTarget::Bf16(c.clone()),
            Target::F32(c) => OwnedTarget::F32(c.clone()),
        };
        Self::Multiply(OwnedProduct { layout, sizes, a: a.clone(), b: b.clone(), c, accumulate })
    }

    /// Does it.
    pub(super) fn run(&self, emulator: &Emulator) -> Result<(), Error> {
        match self {
            Self::Launch { kernel, grid, arguments } => {
                let arguments: Vec<*mut c_void> =
                    arguments.iter().map(|lines| lines.as_ptr().cast_mut().cast()).collect();
                let launch = Launch { kernel, grid: *grid, arguments: &arguments };
                // SAFETY: What was recorded had the kernel's types, and the record holds the memory.
                unsafe { emulator.launch(&launch) }
            }
            Self::Fill { address, value, size_bytes } => {
                // SAFETY: The range belonged to an allocation, which the record holds.
                unsafe { emulator.fill(*address, *value, *size_bytes) }
            }
            Self::Copy { from, to, size_bytes } => {
                // SAFETY: As above, for both ranges.
                unsafe { emulator.copy(*from, *to, *size_bytes) }
            }
            Self::Multiply(product) => {
                let OwnedProduct { layout, sizes, a, b, c, accumulate } = product;
                let c = match c {
                    OwnedTarget::Bf16(c) => Target::Bf16(c),
                    OwnedTarget::F32(c) => Target::F32(c),
                };
                let (layout, sizes, accumulate) = (*layout, *sizes, *accumulate);
                emulator.multiply(&Product { layout, sizes, a, b, c, accumulate })
            }
        }
    }
}
