//! Every fast path against its `f64` reference, and every reference gradient against central
//! differences: on each instruction set of this machine, with 1, 2 and 3 threads.

mod adamw;
mod attention;
mod common;
mod cross_entropy;
mod embedding;
mod matmul;
mod norm;
mod qk_norm_rope;
mod rms_norm;
mod swiglu;
