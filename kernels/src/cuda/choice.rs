//! Which device a node gets, decided from facts alone, so that every machine can be tried in a test.

use std::fmt;
use std::str::FromStr;

use super::libraries::Which;

/// Oldest CUDA release whose libraries are used.
const RELEASE_MIN: i32 = 12;
/// Oldest compute capability that the kernels are written for.
const CAPABILITY_MIN: [i32; 2] = [8, 0];
/// Share of a GPU's memory that must be taken before others are said to use it; the driver itself
/// takes some.
const IN_USE_SHARE: f64 = 0.1;

/// What a node asks for: `auto`, `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Request {
    /// A GPU where one can be used, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU and nothing else.
    Gpu(u32),
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Gpu(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Gpu)
                .ok_or_else(|| format!("`{text}` is no device; there are `auto`, `cpu`, `cuda:N`")),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuFacts {
    /// What the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: [i32; 2],
    /// All of its memory.
    pub memory_bytes: u64,
    /// What of it nobody uses; nothing when the driver gives no access.
    pub free_bytes: Option<u64>,
}

/// What is known of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The CUDA release that the driver supports, such as `[13, 0]`; nothing without a driver.
    pub driver: Option<[i32; 2]>,
    /// Why the driver does not start, where it does not.
    pub driver_trouble: Option<String>,
    /// NVRTC's release; nothing without it.
    pub nvrtc: Option<[i32; 2]>,
    /// Architectures that NVRTC knows, such as 90.
    pub architectures: Vec<i32>,
    /// Whether cuBLASLt was found.
    pub has_cublas: bool,
    /// The GPUs by index.
    pub gpus: Vec<GpuFacts>,
}

/// What a node asks of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes that must be free.
    pub bytes: u64,
    /// What makes it less.
    pub remedy: &'static str,
}

impl Need {
    /// Nothing that is known before.
    pub const NOTHING: Self = Self { bytes: 0, remedy: "" };
}

/// A device, and what to tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The CPU, and why no GPU.
    Cpu {
        /// The reason.
        reason: String,
    },
    /// A GPU.
    Gpu {
        /// Its index.
        index: u32,
        /// The architecture to compile for, such as `sm_90a`.
        arch: String,
        /// What else is worth saying.
        notes: Vec<String>,
    },
}

/// Why no GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What stands in the way.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

fn refuse<T>(reason: impl Into<String>, remedy: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: reason.into(), remedy: remedy.into() })
}

/// Chooses a device that has free what is needed.
///
/// `auto` takes the usable GPU with most free memory, and the CPU when there is none; the reason is
/// to be said aloud. `cuda:N` is that GPU or a refusal: never silently another device.
///
/// # Errors
/// When `request` names a GPU that cannot be used.
pub fn choose(request: Request, facts: &Facts, need: Need) -> Result<Choice, Refusal> {
    match request {
        Request::Cpu => Ok(Choice::Cpu { reason: "`cpu` was asked for".to_owned() }),
        Request::Gpu(index) => {
            software(facts)?;
            usable(facts, index, need)
        }
        Request::Auto => {
            let choice = software(facts).and_then(|()| best(facts, need));
            Ok(choice.unwrap_or_else(|refusal| Choice::Cpu { reason: refusal.reason }))
        }
    }
}

fn best(facts: &Facts, need: Need) -> Result<Choice, Refusal> {
    let mut order: Vec<u32> = (0..facts.gpus.len() as u32).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(facts.gpus[i as usize].free_bytes), i));
    let mut first_refusal = None;
    for index in order {
        match usable(facts, index, need) {
            Ok(choice) => return Ok(choice),
            Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
        }
    }
    Err(first_refusal.expect("`software` found a GPU"))
}

/// Whether driver and libraries go together.
fn software(facts: &Facts) -> Result<(), Refusal> {
    let Some(driver) = facts.driver else {
        let reason = facts.driver_trouble.clone();
        let reason = reason.unwrap_or_else(|| "there is no NVIDIA driver".to_owned());
        return refuse(reason, "install NVIDIA's driver, or ask for `device: cpu`");
    };
    if facts.gpus.is_empty() {
        let reason = facts.driver_trouble.clone();
        let reason = reason.unwrap_or_else(|| "the driver shows no GPU".to_owned());
        return refuse(reason, "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES");
    }
    let release = |[major, minor]: [i32; 2]| format!("CUDA {major}.{minor}");
    if driver[0] < RELEASE_MIN {
        return refuse(
            format!("the driver supports {}, below {}", release(driver), release([RELEASE_MIN, 0])),
            "update NVIDIA's driver",
        );
    }
    let Some(nvrtc) = facts.nvrtc else {
        return refuse(
            "NVRTC, which compiles the kernels, is missing",
            Which::Nvrtc.remedy(facts.driver),
        );
    };
    if driver[0] < nvrtc[0] {
        // Our own search passes it over, so the loader knows it.
        return refuse(
            format!(
                "the driver supports {} and cannot load what NVRTC of {} compiles",
                release(driver),
                release(nvrtc)
            ),
            format!(
                "update NVIDIA's driver, or take libnvrtc.so.{} out of the loader's path \
                 (LD_LIBRARY_PATH, ldconfig)",
                nvrtc[0]
            ),
        );
    }
    if !facts.has_cublas {
        return refuse(
            "cuBLASLt, which multiplies matrices, is missing",
            Which::CublasLt.remedy(facts.driver),
        );
    }
    Ok(())
}

/// Whether one GPU can be used.
fn usable(facts: &Facts, index: u32, need: Need) -> Result<Choice, Refusal> {
    let Some(gpu) = facts.gpus.get(index as usize) else {
        let n = facts.gpus.len();
        return refuse(
            format!("there is no cuda:{index}: the driver shows {n}, from cuda:0 on"),
            "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES",
        );
    };
    let GpuFacts { name, capability, memory_bytes, free_bytes } = gpu;
    let [major, minor] = *capability;
    if *capability < CAPABILITY_MIN {
        let [want_major, want_minor] = CAPABILITY_MIN;
        return refuse(
            format!(
                "cuda:{index} ({name}) has compute capability {major}.{minor}, below \
                 {want_major}.{want_minor}"
            ),
            "use an A100 or newer, or ask for `device: cpu`",
        );
    }
    let mut notes = Vec::new();
    let arch = architecture(facts, index, &mut notes)?;
    let Some(free) = free_bytes else {
        return refuse(
            format!("cuda:{index} ({name}) is held by another process alone"),
            "wait for it, or set its compute mode to default (`nvidia-smi -c 0`)",
        );
    };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    if need.bytes > *free {
        return refuse(
            format!(
                "cuda:{index} ({name}) has {:.1} of {:.1} GiB free, and {:.1} are needed",
                gib(*free),
                gib(*memory_bytes),
                gib(need.bytes)
            ),
            format!("{}, or free the GPU", need.remedy),
        );
    }
    let used = memory_bytes.saturating_sub(*free);
    if used as f64 > IN_USE_SHARE * *memory_bytes as f64 {
        notes.push(format!("others use {:.1} GiB of cuda:{index}, so it may be slow", gib(used)));
    }
    Ok(Choice::Gpu { index, arch, notes })
}

/// The architecture to compile for: the GPU's own, or the newest older one that it runs.
fn architecture(facts: &Facts, index: u32, notes: &mut Vec<String>) -> Result<String, Refusal> {
    let [major, minor] = facts.gpus[index as usize].capability;
    let own = major * 10 + minor;
    if facts.architectures.contains(&own) {
        // From 9.0 on, the `a` variant has the instructions of that very chip.
        return Ok(if major >= 9 { format!("sm_{own}a") } else { format!("sm_{own}") });
    }
    // Machine code runs on later minor versions of the same major one.
    let older = facts.architectures.iter().filter(|&&arch| arch / 10 == major && arch < own).max();
    if let Some(older) = older {
        notes.push(format!("NVRTC does not know sm_{own}: kernels are compiled for sm_{older}"));
        return Ok(format!("sm_{older}"));
    }
    let [nvrtc_major, nvrtc_minor] = facts.nvrtc.unwrap_or_default();
    refuse(
        format!(
            "cuda:{index} has compute capability {major}.{minor}, which NVRTC of CUDA \
             {nvrtc_major}.{nvrtc_minor} does not know"
        ),
        format!("install a newer NVRTC: {} --upgrade", Which::Nvrtc.remedy(facts.driver)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn need(gib: u64) -> Need {
        Need { bytes: gib * GIB, remedy: "lower `micro_batch_tokens`" }
    }

    fn h200(free_gib: u64) -> GpuFacts {
        GpuFacts {
            name: "NVIDIA H200".to_owned(),
            capability: [9, 0],
            memory_bytes: 141 * GIB,
            free_bytes: Some(free_gib * GIB),
        }
    }

    fn machine(gpus: Vec<GpuFacts>) -> Facts {
        Facts {
            driver: Some([13, 0]),
            driver_trouble: None,
            nvrtc: Some([13, 0]),
            architectures: vec![75, 80, 86, 89, 90, 100, 120],
            has_cublas: true,
            gpus,
        }
    }

    /// `auto` says why it takes the CPU; `cuda:0` refuses for the same reason.
    fn check_no_gpu(facts: &Facts, reason: &str, remedy: &str) {
        match choose(Request::Auto, facts, need(1)) {
            Ok(Choice::Cpu { reason: said }) => assert!(said.contains(reason), "{said}"),
            other => panic!("{other:?}"),
        }
        let refusal = choose(Request::Gpu(0), facts, need(1)).unwrap_err();
        assert!(refusal.reason.contains(reason), "{refusal:?}");
        assert!(refusal.remedy.contains(remedy), "{refusal:?}");
        assert!(matches!(choose(Request::Cpu, facts, need(1)), Ok(Choice::Cpu { .. })));
    }

    #[test]
    fn machines_without_a_usable_gpu() {
        check_no_gpu(&Facts::default(), "no NVIDIA driver", "install NVIDIA's driver");
        let mut facts = machine(vec![]);
        check_no_gpu(&facts, "shows no GPU", "nvidia-smi");
        facts.driver_trouble = Some("cuInit fails: no device".to_owned());
        check_no_gpu(&facts, "cuInit fails", "nvidia-smi");
        let facts = Facts { nvrtc: None, ..machine(vec![h200(140)]) };
        check_no_gpu(&facts, "NVRTC", "nvidia-cuda-nvrtc==13.*");
        let facts = Facts { driver: Some([12, 4]), ..facts };
        check_no_gpu(&facts, "NVRTC", "nvidia-cuda-nvrtc-cu12");
        let facts = Facts { driver: Some([12, 4]), ..machine(vec![h200(140)]) };
        check_no_gpu(&facts, "supports CUDA 12.4", "libnvrtc.so.13 out of the loader's path");
        let facts = Facts { driver: Some([11, 8]), ..facts };
        check_no_gpu(&facts, "CUDA 11.8, below CUDA 12.0", "update NVIDIA's driver");
        let facts = Facts { has_cublas: false, ..machine(vec![h200(140)]) };
        check_no_gpu(&facts, "cuBLASLt", "'nvidia-cublas==13.*'");
        let old = GpuFacts { capability: [7, 5], ..h200(10) };
        check_no_gpu(&machine(vec![old]), "capability 7.5", "A100");
        let new = GpuFacts { capability: [13, 0], ..h200(10) };
        check_no_gpu(&machine(vec![new]), "capability 13.0", "newer NVRTC");
        check_no_gpu(&machine(vec![h200(0)]), "0.0 of 141.0 GiB free", "micro_batch_tokens");
        let held = GpuFacts { free_bytes: None, ..h200(0) };
        check_no_gpu(&machine(vec![held]), "held by another process", "wait");
    }

    #[test]
    fn the_architecture_is_the_gpus_own_or_one_that_it_runs() {
        let check = |capability, expected: &str, n_notes| {
            let facts = machine(vec![GpuFacts { capability, ..h200(140) }]);
            match choose(Request::Gpu(0), &facts, need(1)).unwrap() {
                Choice::Gpu { index: 0, arch, notes } => {
                    assert_eq!((arch.as_str(), notes.len()), (expected, n_notes), "{notes:?}");
                }
                other => panic!("{other:?}"),
            }
        };
        check([8, 0], "sm_80", 0);
        check([8, 9], "sm_89", 0);
        check([9, 0], "sm_90a", 0);
        check([12, 0], "sm_120a", 0);
        check([8, 7], "sm_86", 1);
        check([10, 3], "sm_100", 1);
    }

    #[test]
    fn of_two_gpus_auto_takes_the_freer_and_a_name_means_that_one() {
        let facts = machine(vec![h200(30), h200(120)]);
        let index = |request, needed_gib: u64| match choose(request, &facts, need(needed_gib)) {
            Ok(Choice::Gpu { index, notes, .. }) => Ok((index, notes.len())),
            Ok(Choice::Cpu { reason }) | Err(Refusal { reason, .. }) => Err(reason),
        };
        assert_eq!(index(Request::Auto, 10), Ok((1, 1)));
        assert_eq!(index(Request::Gpu(0), 10), Ok((0, 1)));
        assert!(index(Request::Gpu(0), 50).unwrap_err().contains("30.0 of 141.0"));
        assert!(index(Request::Gpu(2), 1).unwrap_err().contains("no cuda:2"));
        assert!(index(Request::Auto, 130).is_err());
    }

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Request>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Request::Gpu(0)));
        assert!("gpu".parse::<Request>().unwrap_err().contains("`cuda:N`"));
    }
}
