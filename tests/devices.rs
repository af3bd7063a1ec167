//! `sbp` on machines with and without GPUs, played by libraries that stand in for CUDA's: nothing
//! panics, the CPU is taken only where `auto` allows it, and what to do is said.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::{Place, Ran, root};

/// A machine: what of CUDA it has.
struct Machine {
    driver: Option<&'static str>,
    nvrtc: Option<&'static str>,
    has_cublas: bool,
    gpus: &'static str,
}

const H200: Machine =
    Machine { driver: Some("13000"), nvrtc: Some("13"), has_cublas: true, gpus: "90,141,120" };

/// The folder with the stand-ins, each in a folder of its own; nothing without a C compiler.
fn fakes() -> Option<&'static Path> {
    static FAKES: OnceLock<Option<PathBuf>> = OnceLock::new();
    FAKES
        .get_or_init(|| {
            let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fake-cuda");
            let libraries = [
                ("DRIVER", "libcuda.so.1"),
                ("NVRTC", "libnvrtc.so.13"),
                ("NVRTC", "libnvrtc.so.12"),
                ("BLAS", "libcublasLt.so.13"),
            ];
            for (define, name) in libraries {
                let folder = dir.join(name);
                std::fs::create_dir_all(&folder).unwrap();
                // Each test is a process that builds them; others may be loading what lies there.
                let own = folder.join(format!("{name}-{}", std::process::id()));
                let built = Command::new("cc")
                    .args(["-shared", "-fPIC", "-w", &format!("-D{define}")])
                    .arg(format!("-Wl,-soname,{name}"))
                    .arg("-o")
                    .arg(&own)
                    .arg(root().join("tests/fakes/cuda.c"))
                    .status();
                match built {
                    Ok(status) => {
                        assert!(status.success(), "{name} is not built");
                        std::fs::rename(&own, folder.join(name)).unwrap();
                    }
                    Err(error) => {
                        println!("skipped: there is no C compiler `cc`: {error}");
                        return None;
                    }
                }
            }
            Some(dir)
        })
        .as_deref()
}

impl Machine {
    /// Runs `sbp` on the machine. What the test's own machine has is out of sight.
    fn sbp(&self, place: &Place, args: &[&str]) -> Ran {
        let dir = fakes().expect("asked before");
        let mut names = Vec::new();
        names.extend(self.driver.map(|_| "libcuda.so.1".to_owned()));
        names.extend(self.nvrtc.map(|major| format!("libnvrtc.so.{major}")));
        names.extend(self.has_cublas.then(|| "libcublasLt.so.13".to_owned()));
        let paths: Vec<String> =
            names.iter().map(|name| dir.join(name).display().to_string()).collect();
        let home = place.path().display().to_string();
        let output = place
            .command(args)
            .env("LD_LIBRARY_PATH", paths.join(":"))
            .env("FAKE_DRIVER", self.driver.unwrap_or_default())
            .env("FAKE_NVRTC", self.nvrtc.unwrap_or_default())
            .env("FAKE_GPUS", self.gpus)
            .envs([("HOME", &home), ("XDG_CACHE_HOME", &home)])
            .env_remove("CUDA_HOME")
            .env_remove("CUDA_PATH")
            .env_remove("VIRTUAL_ENV")
            .env_remove("SBP_CUDA_DIR")
            .output()
            .unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What a run of a pipeline that trains on `device` prints, and its exit code.
    fn train(&self, device: &str) -> (i32, String) {
        let place = Place::new();
        place.write("p.yaml", &PIPELINE.replace("DEVICE", device));
        let ran = self.sbp(&place, &["run", "p.yaml"]);
        (ran.code.expect("no signal"), ran.stdout + &ran.stderr)
    }
}

/// A model that there are kernels for, on as few documents as possible.
const PIPELINE: &str = r#"
version: 1
nodes:
  corpus: {task: generate_corpus, params: {n_concepts: 6}}
  tokenizer: {task: train_tokenizer, in: corpus, params: {vocab_size: 296}}
  real: {task: tokenize, in: {corpus: corpus, tokenizer: tokenizer}}
  order: {task: mix, in: {real: real}, params: {budget_tokens: 400}}
  train:
    task: pretrain
    in: {schedule: order, real: real, tokenizer: tokenizer}
    params: {arch: {preset: smoke, head_dim: 64}, context: 64, batch_tokens: 256}
    resources: {device: "DEVICE"}
"#;

/// A real driver may be known to the loader where no stand-in hides it.
fn is_real_driver_here() -> bool {
    let names = ["/dev/nvidiactl", "/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1"];
    names.iter().any(|name| Path::new(name).exists())
}

/// A real library may lie where the program looks, such as among the packages of a Python in `/opt`.
fn is_real_library_here(machine: &Machine, file: &str) -> bool {
    let shown = machine.sbp(&Place::new(), &["doctor"]).stdout;
    let is_found = shown.contains(file);
    if is_found {
        println!(
            "skipped in part: this machine has {file}, which a stand-in cannot hide:\n{shown}"
        );
    }
    is_found
}

/// `auto` takes the CPU and says why; the GPU that is named is an error for the same reason.
fn check_no_gpu(machine: &Machine, reason: &str, remedy: &str) {
    let (code, said) = machine.train("auto");
    assert_eq!(code, 0, "{said}");
    let said_in_one = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said_in_one.contains("`device: auto` takes the CPU"), "{said}");
    assert!(said_in_one.contains(reason), "`{reason}` is not in {said}");
    let (code, said) = machine.train("cuda:0");
    assert_eq!(code, 1, "{said}");
    let said_in_one = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in ["`device: cuda:0`", reason, remedy] {
        assert!(said_in_one.contains(expected), "`{expected}` is not in {said}");
    }
    for trouble in ["panicked", "RUST_BACKTRACE"] {
        assert!(!said.contains(trouble), "{said}");
    }
}

#[test]
fn machines_without_a_usable_gpu_are_told_what_is_missing() {
    if fakes().is_none() {
        return;
    }
    if is_real_driver_here() {
        println!("skipped in part: this machine has a driver, which a stand-in cannot hide");
    } else {
        let none = Machine { driver: None, ..H200 };
        check_no_gpu(&none, "there is no NVIDIA driver", "install NVIDIA's driver");
    }
    let no_nvrtc = Machine { nvrtc: None, ..H200 };
    if !is_real_library_here(&no_nvrtc, "libnvrtc.so") {
        check_no_gpu(
            &no_nvrtc,
            "NVRTC, which compiles the kernels, is missing",
            "nvidia-cuda-nvrtc==13.*",
        );
    }
    let no_cublas = Machine { has_cublas: false, ..H200 };
    if !is_real_library_here(&no_cublas, "libcublasLt.so") {
        check_no_gpu(
            &no_cublas,
            "cuBLASLt, which multiplies matrices, is missing",
            "nvidia-cublas==13.*",
        );
    }
    let ancient = Machine { driver: Some("11080"), ..H200 };
    check_no_gpu(
        &ancient,
        "the driver supports CUDA 11.8, below CUDA 12.0",
        "update NVIDIA's driver",
    );
    let too_old = Machine { driver: Some("12040"), ..H200 };
    check_no_gpu(
        &too_old,
        "the driver supports CUDA 12.4 and cannot load",
        "update NVIDIA's driver",
    );
    let no_gpu = Machine { gpus: "", ..H200 };
    check_no_gpu(&no_gpu, "the driver shows no GPU", "nvidia-smi");
    let unknown = Machine { gpus: "130,288,280", ..H200 };
    check_no_gpu(&unknown, "compute capability 13.0, which NVRTC", "install a newer NVRTC");
    let weak = Machine { gpus: "75,16,15", ..H200 };
    check_no_gpu(&weak, "compute capability 7.5, below 8.0", "use an A100 or newer");
    let full = Machine { gpus: "90,141,0", ..H200 };
    check_no_gpu(&full, "0.0 of 141.0 GiB free", "lower `micro_batch_tokens`");
    let held = Machine { gpus: "90,141,held", ..H200 };
    check_no_gpu(&held, "is held by another process alone", "wait for it");
}

/// What runs a model without a pipeline has the same rule.
#[test]
fn a_model_folder_runs_on_the_device_that_is_named_or_not_at_all() {
    if fakes().is_none() {
        return;
    }
    let (place, no_gpu) = (Place::new(), Machine { gpus: "", ..H200 });
    let pipeline = PIPELINE.replace("DEVICE", "cpu");
    place.write("p.yaml", &pipeline);
    place.write("text.txt", "a text of a few words");
    place.sbp(&["run", "p.yaml"]).expect(0);
    let trained = place.sbp(&["show", "train", "--json"]).expect(0).json();
    let outputs = trained["node"]["outputs"].as_array().unwrap();
    let model = outputs.iter().find(|output| output["port"] == "model").unwrap();
    let model = model["path"].as_str().unwrap();
    for command in [&["generate"][..], &["perplexity"]] {
        let file = if command == ["generate"] { "a text" } else { "text.txt" };
        let run = |device: &str| {
            let args = ["lm", command[0], model, file, "--device", device, "--json"];
            no_gpu.sbp(&place, &args)
        };
        let ran = run("auto").expect(0);
        assert!(ran.stdout.contains("\"device\":\"cpu\""), "{}", ran.stdout);
        assert!(ran.stderr.contains("`device: auto` takes the CPU"), "{}", ran.stderr);
        let ran = run("cuda:0").expect(2);
        assert!(ran.stdout.contains("`device: cuda:0`: the driver shows no GPU"), "{}", ran.stdout);
        let ran = run("gpu").expect(2);
        assert!(ran.stdout.contains("`gpu` is no device"), "{}", ran.stdout);
    }
}

/// A GPU of which the stand-in NVRTC says that it can be used: the kernels then do not compile, which
/// is an error of the node that asked, and never another device in silence.
#[test]
fn of_two_gpus_the_one_named_is_used() {
    if fakes().is_none() {
        return;
    }
    let two = Machine { gpus: "90,141,0 90,141,120", ..H200 };
    let (code, said) = two.train("cuda:1");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not compile for sm_90a") && said.contains("fake"), "{said}");
    let (code, said) = two.train("cuda:0");
    assert!(code == 1 && said.contains("0.0 of 141.0 GiB free"), "{said}");
    let (code, said) = two.train("cuda:2");
    assert!(code == 1 && said.contains("there is no cuda:2"), "{said}");
    let place = Place::new();
    let shown = two.sbp(&place, &["doctor"]).expect(0).stdout;
    for expected in ["cuda:1, Fake 1, kernels for sm_90a", "CUDA 13.0"] {
        assert!(shown.contains(expected), "`{expected}` is not in {shown}");
    }
}

/// Kernels for one architecture are tried before they are used: how that went is said, kept, and forgotten
/// with the file that says so.
#[test]
fn kernels_that_fail_their_trial_are_not_used_nor_tried_again() {
    if fakes().is_none() {
        return;
    }
    let place = Place::new();
    place.write("p.yaml", &PIPELINE.replace("DEVICE", "cuda:0"));
    let doctor = || H200.sbp(&place, &["doctor"]).expect(0).stdout;
    let run = || {
        let ran = H200.sbp(&place, &["run", "p.yaml"]).expect(1);
        ran.stdout + &ran.stderr
    };
    let check = |said: &str, words: &str| assert!(said.contains(words), "`{words}`: {said}");
    let untried = "`attention_hopper.cu` was not tried yet";
    check(&doctor(), untried);
    let fails = "`attention_hopper.cu` is not used: `attention_hopper.cu` does not compile";
    check(&run(), fails);
    check(&doctor(), fails);

    let verdicts: Vec<PathBuf> = std::fs::read_dir(place.path().join("sbp/cubins"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "verdict"))
        .collect();
    let [verdict] = verdicts.as_slice() else { panic!("{verdicts:?}") };
    check(&doctor(), &format!("to try it again, delete {}", verdict.display()));
    let text = std::fs::read_to_string(verdict).unwrap();
    check(&text, "attention_hopper.cu for sm_90a on Fake 0, driver [13, 0]");
    std::fs::write(verdict, "begun\n").unwrap();
    let died = "`attention_hopper.cu` is not used: a process that tried it did not live";
    check(&run(), died);
    check(&doctor(), died);
    std::fs::remove_file(verdict).unwrap();
    check(&doctor(), untried);
    check(&run(), fails);
}

/// The release of NVRTC that a driver can load is found, whatever else is there.
#[test]
fn a_driver_of_cuda_12_gets_nvrtc_12() {
    if fakes().is_none() {
        return;
    }
    let machine = Machine { driver: Some("12040"), nvrtc: Some("12"), ..H200 };
    let shown = machine.sbp(&Place::new(), &["doctor"]).expect(0).stdout;
    assert!(shown.contains("CUDA 12.4") && shown.contains("CUDA 12.0"), "{shown}");
}

#[test]
fn wrong_devices_are_mistakes_of_the_pipeline() {
    let place = Place::new();
    let check = |task: &str, device: &str, code: &str, words: &str| {
        let node = format!("  a: {{task: {task}, resources: {{device: {device}}}}}\n");
        place.write("p.yaml", &format!("version: 1\nnodes:\n{node}"));
        let said = place.sbp(&["plan", "p.yaml"]).expect(2).stderr;
        assert!(said.contains(code) && said.contains(words), "{said}");
    };
    check("pretrain", "gpu", "spec::bad_device", "`cpu`, `auto`, or a GPU such as `cuda:0`");
    check("pretrain", "\"cuda:x\"", "spec::bad_device", "cuda:0");
    check("generate_corpus", "\"cuda:0\"", "spec::no_gpu_kernels", "`auto` is a GPU for the tasks");
}
