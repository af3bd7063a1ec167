//! Token-by-token inference: products with prepacked weights, a paged key-value cache, attention.
//!
//! A *row* is one token of one sequence at one position; a step computes any set of rows.
//! **Invariant:** what a row gets does not depend on the other rows of the step, on their number or
//! order, nor on the number of threads: every output is one chain of fused multiply-adds in a fixed
//! order, and tiles only decide which chains run side by side. So a prompt may be split into steps,
//! and sequences into batches, in any way.

pub mod attention;
pub mod cache;
pub(crate) mod isa;
pub mod linear;

pub use attention::Row;
pub use cache::{Cache, Sequence};
pub use linear::Packed;

/// A raw pointer that worker threads share to write disjoint parts of one buffer.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: Each user states which elements a tile writes; tiles of one parallel region never overlap.
unsafe impl Send for Shared {}
// SAFETY: As above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut f32 {
        self.0
    }
}
