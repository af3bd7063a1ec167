//! What is true of this machine, for [`crate::cuda::choice`]. Nothing here fails: trouble is a fact.

use cudarc::driver::{result, sys};

use super::failed;
use crate::cuda::choice::{Facts, GpuFacts};
use crate::cuda::compile::Compiler;
use crate::cuda::libraries::{self, Which};

/// Looks at driver, libraries and GPUs.
pub fn probe() -> Facts {
    let mut facts = Facts::default();
    if libraries::load(Which::Driver).is_none() {
        return facts;
    }
    facts.driver = libraries::driver_release();
    if facts.driver.is_none() {
        facts.driver_trouble = Some("the driver does not tell its version".to_owned());
        return facts;
    }
    if let Ok(compiler) = Compiler::new() {
        facts.nvrtc = Some(compiler.version());
        facts.architectures = compiler.architectures().unwrap_or_default();
    }
    facts.has_cublas = libraries::load(Which::CublasLt).is_some();
    if let Err(error) = result::init() {
        facts.driver_trouble = Some(failed("cuInit", error).to_string());
        return facts;
    }
    let n_gpus = result::device::get_count().unwrap_or(0);
    facts.gpus = (0..n_gpus).filter_map(gpu).collect();
    facts
}

/// What the driver says of one GPU.
fn gpu(index: i32) -> Option<GpuFacts> {
    let device = result::device::get(index).ok()?;
    let attribute = |attribute| {
        // SAFETY: The device was just found.
        unsafe { result::device::get_attribute(device, attribute) }.ok()
    };
    let capability = [
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ];
    // SAFETY: The device was just found.
    let memory_bytes = unsafe { result::device::total_mem(device) }.ok()? as u64;
    Some(GpuFacts {
        name: result::device::get_name(device).ok()?,
        capability,
        memory_bytes,
        free_bytes: free_bytes(device),
    })
}

/// Free memory; nothing when no context can be made, as on a GPU that another process holds alone.
fn free_bytes(device: sys::CUdevice) -> Option<u64> {
    let before = result::ctx::get_current().ok().flatten();
    // SAFETY: The device was just found.
    let context = unsafe { result::primary_ctx::retain(device) }.ok()?;
    // SAFETY: Just retained.
    let bound = unsafe { result::ctx::set_current(context) };
    let free = bound.ok().and_then(|()| result::mem_get_info().ok()).map(|(free, _)| free as u64);
    // SAFETY: The context that was current, or none.
    let _ = unsafe { result::ctx::set_current(before.unwrap_or(std::ptr::null_mut())) };
    // SAFETY: Retained above.
    let _ = unsafe { result::primary_ctx::release(device) };
    free
}
