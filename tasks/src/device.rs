//! The device that a node computes on: what its `device` resource asks for, given what there is.
//!
//! A GPU that is named is used or the node fails; only `auto` may take the CPU instead, and says why.
//! The device is in no key, as threads are in none: results on a GPU are in bf16 and differ from the
//! CPU's, so what computed is written into the artifact.

use std::sync::Arc;

use engine::task::{Context, Failure, Outputs};
use kernels::cuda::choice::{Choice, Facts, Need, Request, choose};
use kernels::cuda::{Device, Error, Gpu, compile, gpu};

/// Memory that the driver, its modules and cuBLASLt take beside what is planned.
const DRIVER_BYTES: u64 = 1 << 30;

/// The final figure of a node that computed on a GPU.
const ON_GPU: &str = "on_gpu";

/// What a node is about to do on a device.
pub struct Work {
    /// Whether there are kernels for it, or what stands in the way.
    pub supported: Result<(), String>,
    /// Bytes of device memory that it plans to take.
    pub planned_bytes: u64,
    /// What makes it smaller.
    pub remedy: &'static str,
}

impl Work {
    /// This work and `other` at the same time.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            supported: self.supported.and(other.supported),
            planned_bytes: self.planned_bytes + other.planned_bytes,
            remedy: self.remedy,
        }
    }
}

/// What is decided: the CPU, with what is to be told, or a GPU.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Cpu { told: Option<String> },
    Gpu { index: u32, arch: String, notes: Vec<String> },
}

/// A device that was opened, and what a person is told of the choice.
pub struct Opened {
    /// The GPU; nothing for the CPU.
    pub device: Option<Arc<dyn Device>>,
    /// What was chosen, where a GPU was.
    pub chosen: Option<String>,
    /// What stands in the way of a better choice.
    pub warnings: Vec<String>,
}

impl Opened {
    fn cpu(warning: Option<String>) -> Self {
        Self { device: None, chosen: None, warnings: warning.into_iter().collect() }
    }
}

/// Opens the GPU that the node's `device` resource means; nothing for the CPU. What `auto` chooses,
/// and why no GPU where it takes the CPU, is logged.
///
/// # Errors
/// When the node names a GPU that cannot be used.
pub fn open(ctx: &Context, work: &Work) -> Result<Option<Arc<dyn Device>>, Failure> {
    let Opened { device, chosen, warnings } = open_named(ctx.device(), work)?;
    if let Some(chosen) = chosen {
        ctx.info(chosen);
    }
    for warning in warnings {
        ctx.warn(warning);
    }
    Ok(device)
}

/// Opens the GPU that `name` means, as of a node's `device`; nothing for the CPU.
///
/// # Errors
/// When it names a GPU that cannot be used, or is no device.
pub fn open_named(name: &str, work: &Work) -> Result<Opened, Failure> {
    #[cfg(test)]
    if let Some(dir) = name.strip_prefix(tests::EMULATOR) {
        return Ok(Opened { device: Some(tests::emulator(dir)), ..Opened::cpu(None) });
    }
    let request: Request = name.parse().map_err(Failure::permanent)?;
    if request == Request::Cpu {
        return Ok(Opened::cpu(None));
    }
    match decide(request, &gpu::probe(), work)? {
        Decision::Cpu { told } => Ok(Opened::cpu(told)),
        Decision::Gpu { index, arch, notes } => {
            match Gpu::open(index, arch, &compile::cache_dir()) {
                Ok(gpu) => {
                    let chosen = format!("`device: {request}` is cuda:{index}, {}", gpu.name());
                    let refusals = gpu.refusals().iter().map(ToString::to_string);
                    let warnings = notes.into_iter().chain(refusals).collect();
                    let device: Arc<dyn Device> = Arc::new(gpu);
                    Ok(Opened { device: Some(device), chosen: Some(chosen), warnings })
                }
                Err(error) if request == Request::Auto => Ok(Opened::cpu(Some(format!(
                    "`device: auto` takes the CPU: cuda:{index} does not open: {error}"
                )))),
                Err(error) => Err(failure(error)),
            }
        }
    }
}

/// Adds to what a node reports that a GPU computed, where one did.
#[must_use]
pub fn note(outputs: Outputs, is_on_gpu: bool) -> Outputs {
    if is_on_gpu { outputs.metric(ON_GPU, 1.0) } else { outputs }
}

/// The name of a stage whose items have the bits of the device that makes them. It is in their keys,
/// so that helpers on another kind of device mix none of theirs in.
pub fn stage(name: &str, device: Option<&dyn Device>) -> String {
    match device {
        None => name.to_owned(),
        Some(device) => format!("{name} on {}", device.name()),
    }
}

/// For work that has no kernels though its task has some. That `auto` takes the CPU is logged.
///
/// # Errors
/// When the node names a GPU.
pub fn require_cpu(ctx: &Context, what: &str) -> Result<(), Failure> {
    match ctx.device().parse() {
        Ok(Request::Gpu(_)) => {
            let device = ctx.device();
            Err(Failure::permanent(format!("`device: {device}`: {what} have no GPU kernels"))
                .help("leave `device` out, or set it to `auto` or `cpu`"))
        }
        Ok(Request::Auto) => {
            ctx.warn(format!("`device: auto` takes the CPU: {what} have no GPU kernels"));
            Ok(())
        }
        Ok(Request::Cpu) => Ok(()),
        Err(message) => Err(Failure::permanent(message)),
    }
}

/// What a request means on a machine of which `facts` are known.
fn decide(request: Request, facts: &Facts, work: &Work) -> Result<Decision, Failure> {
    if let (Err(reason), false) = (&work.supported, request == Request::Cpu) {
        let message = format!("there are no GPU kernels for it: {reason}");
        return match request {
            Request::Auto => {
                Ok(Decision::Cpu { told: Some(format!("`device: auto` takes the CPU: {message}")) })
            }
            Request::Cpu | Request::Gpu(_) => {
                Err(Failure::permanent(format!("`device: {request}`: {message}"))
                    .help("set `device: cpu`, or choose another model"))
            }
        };
    }
    let need = Need { bytes: work.planned_bytes + DRIVER_BYTES, remedy: work.remedy };
    match choose(request, facts, need) {
        Ok(Choice::Cpu { reason }) => {
            let told = (request == Request::Auto)
                .then(|| format!("`device: auto` takes the CPU: {reason}"));
            Ok(Decision::Cpu { told })
        }
        Ok(Choice::Gpu { index, arch, notes }) => Ok(Decision::Gpu { index, arch, notes }),
        Err(refusal) => Err(Failure::permanent(format!("`device: {request}`: {}", refusal.reason))
            .help(refusal.remedy)),
    }
}

/// A device's error as the task's.
pub fn failure(error: Error) -> Failure {
    match error {
        full @ Error::OutOfMemory { .. } => Failure::permanent(full.to_string())
            .help("free the GPU, or make the node smaller, such as by `micro_batch_tokens`"),
        other => Failure::permanent(other.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use kernels::cuda::Emulator;
    use kernels::cuda::choice::GpuFacts;
    use kernels::cuda::emulator::Schedule;

    use super::*;

    /// In tests, a device of this name and a folder is the emulator.
    pub(crate) const EMULATOR: &str = "emulator:";

    /// The device resource that means the emulator, which keeps its compiled kernels.
    pub(crate) fn emulated() -> String {
        format!("{EMULATOR}{}", std::env::temp_dir().join("sbp-emulated-kernels").display())
    }

    pub(super) fn emulator(dir: &str) -> Arc<dyn Device> {
        Arc::new(Emulator::new(Path::new(dir), Schedule::Forward))
    }

    fn machine(free_gib: &[u64]) -> Facts {
        let gpu = |&free: &u64| GpuFacts {
            name: "NVIDIA H200".to_owned(),
            capability: [9, 0],
            memory_bytes: 141 << 30,
            free_bytes: Some(free << 30),
        };
        Facts {
            driver: Some([13, 0]),
            driver_trouble: None,
            nvrtc: Some([13, 0]),
            architectures: vec![80, 90],
            has_cublas: true,
            gpus: free_gib.iter().map(gpu).collect(),
        }
    }

    fn work(gib: u64) -> Work {
        Work { supported: Ok(()), planned_bytes: gib << 30, remedy: "lower `micro_batch_tokens`" }
    }

    #[test]
    fn auto_says_why_it_takes_the_cpu_and_a_named_gpu_is_never_replaced() {
        let check = |facts: &Facts, work: &Work, reason: &str| {
            match decide(Request::Auto, facts, work) {
                Ok(Decision::Cpu { told: Some(told) }) => {
                    assert!(told.contains("takes the CPU") && told.contains(reason), "{told}");
                }
                other => panic!("{other:?}"),
            }
            let failure = decide(Request::Gpu(0), facts, work).unwrap_err();
            assert!(failure.message.contains(reason), "{failure:?}");
            assert!(failure.help.is_some(), "{failure:?}");
            let cpu = decide(Request::Cpu, facts, work);
            assert_eq!(cpu, Ok(Decision::Cpu { told: None }));
        };
        check(&Facts::default(), &work(1), "no NVIDIA driver");
        check(&machine(&[40]), &work(40), "40.0 of 141.0 GiB free, and 41.0 are needed");
        let odd = Work { supported: Err("a `head_dim` of 32".to_owned()), ..work(1) };
        check(&machine(&[140]), &odd, "`head_dim` of 32");
    }

    #[test]
    fn of_two_gpus_the_one_that_is_named_is_taken() {
        let index = |request| match decide(request, &machine(&[60, 120]), &work(50)) {
            Ok(Decision::Gpu { index, .. }) => index,
            other => panic!("{other:?}"),
        };
        assert_eq!(index(Request::Gpu(0)), 0);
        assert_eq!(index(Request::Gpu(1)), 1);
        assert_eq!(index(Request::Auto), 1);
        let failure = decide(Request::Gpu(0), &machine(&[60, 120]), &work(70)).unwrap_err();
        let help = failure.help.unwrap();
        assert!(help.contains("lower `micro_batch_tokens`, or free the GPU"), "{help}");
        assert!(decide(Request::Gpu(2), &machine(&[60, 120]), &work(1)).is_err());
    }
}
