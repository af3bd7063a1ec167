//! Token-by-token inference: products with prepacked weights, a paged key-value cache, attention.
//!
//! A *row* is one token of one sequence at one position; a step computes any set of rows.
//! **Invariant:** what a row gets does not depend on the other rows of the step, on their number or
//! order, nor on the number of threads: every output is one chain of fused multiply-adds in a fixed
//! order, and tiles only decide which chains run side by side. So a prompt may be split into steps,
//! and sequences into batches, in any way.

pub mod attention;
pub mod cache;
pub mod cuda;
pub mod linear;

pub use attention::Row;
pub use cache::{Cache, Pages, Sequence};
pub use linear::Packed;
