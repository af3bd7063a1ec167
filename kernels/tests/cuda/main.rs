//! The CUDA kernels on machines without a GPU: executed by the emulator, compiled by NVRTC, and held
//! to their descriptions.

#[cfg(test)]
mod compiled;
#[cfg(test)]
mod emulated;
