//! Every kernel compiled by NVRTC for the architectures that we name: no warning, no spill, and no
//! more registers and shared memory than the committed budget.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use kernels::cuda::compile::Compiler;
use kernels::cuda::{Error, Source, sources};

/// Architectures of the budget; the newest that NVRTC knows is compiled too.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];
/// Registers of a multiprocessor, the same on every one of them.
const REGISTERS: u32 = 65_536;

fn compiler() -> Option<Compiler> {
    match Compiler::new() {
        Ok(compiler) => Some(compiler),
        Err(error @ Error::Missing { .. }) => {
            assert!(std::env::var_os("SBP_REQUIRE_NVRTC").is_none(), "{error}");
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What ptxas says of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

fn usages(log: &str) -> BTreeMap<String, Usage> {
    let mut usages = BTreeMap::new();
    let mut name = String::new();
    let number = |line: &str, unit: &str| -> u32 {
        let before = line.split(unit).next().unwrap_or_default().trim_end();
        before.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or_default()
    };
    for line in log.lines() {
        if let Some(quoted) = line.split("entry function '").nth(1) {
            quoted.split('\'').next().unwrap_or_default().clone_into(&mut name);
        }
        let usage: &mut Usage = usages.entry(name.clone()).or_default();
        if line.contains("bytes spill stores") {
            usage.stack_bytes = number(line, "bytes stack frame");
            usage.spill_bytes =
                number(line, "bytes spill stores") + number(line, "bytes spill loads");
        }
        if line.contains("Used ") && line.contains(" registers") {
            usage.registers = number(line, "registers");
        }
    }
    usages.remove("");
    usages
}

/// What the compiler warns of, or says of products that are waited for one by one and registers that are
/// not handed over, which it calls information.
fn objection(log: &str) -> Option<&str> {
    log.lines().find(|line| line.contains("warning") || line.contains("Potential Performance Loss"))
}

fn budget_path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/budget.txt")
}

#[test]
fn every_kernel_compiles_within_its_budget() {
    let Some(compiler) = compiler() else { return };
    let newest = compiler.architectures().unwrap().last().copied().unwrap();
    let newest = format!("sm_{newest}");
    let mut used = BTreeMap::new();
    for arch in ARCHITECTURES.into_iter().chain([newest.as_str()]) {
        for source in sources().into_iter().filter(|source| source.is_for(arch)) {
            let cubin = compiler.compile(source, arch).unwrap_or_else(|error| panic!("{error}"));
            assert!(cubin.bytes.starts_with(b"\x7fELF"), "{}: no machine code", source.name);
            let objection = objection(&cubin.log);
            assert_eq!(objection, None, "{} on {arch}: {}", source.name, cubin.log);
            let usages = usages(&cubin.log);
            for kernel in source.kernels {
                let name = kernel.name;
                let usage = usages.get(name).unwrap_or_else(|| panic!("{name}: {}", cubin.log));
                assert_eq!((usage.stack_bytes, usage.spill_bytes), (0, 0), "{name} on {arch}");
                assert!(usage.registers > 0, "{name} on {arch}: {}", cubin.log);
                // A block must start: registers are given in units of 8 a thread.
                let registers = usage.registers.next_multiple_of(8);
                assert!(registers * kernel.threads_max <= REGISTERS, "{name} on {arch}");
                if arch != newest {
                    let line = (usage.registers, kernel.shared_bytes_max);
                    used.insert((name.to_owned(), arch.to_owned()), line);
                }
            }
        }
    }
    check_budget(&used);
}

type Lines = BTreeMap<(String, String), (u32, u32)>;

/// Compares with `budget.txt`; `SBP_UPDATE_BUDGET=1` writes it.
fn check_budget(used: &Lines) {
    if std::env::var_os("SBP_UPDATE_BUDGET").is_some() {
        let mut text = String::from("# kernel architecture registers shared-memory-bytes\n");
        for ((name, arch), (registers, shared_bytes)) in used {
            writeln!(text, "{name} {arch} {registers} {shared_bytes}").unwrap();
        }
        std::fs::write(budget_path(), text).unwrap();
    }
    let text = std::fs::read_to_string(budget_path()).unwrap();
    let budget: Lines = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |i: usize| words[i].parse().unwrap();
            ((words[0].to_owned(), words[1].to_owned()), (number(2), number(3)))
        })
        .collect();
    let names: Vec<_> = budget.keys().collect();
    assert_eq!(names, used.keys().collect::<Vec<_>>(), "SBP_UPDATE_BUDGET=1 writes budget.txt");
    for (key, (registers, shared_bytes)) in used {
        let (registers_max, shared_max) = budget[key];
        // Another release of NVRTC may take a few registers more or less.
        let limit = if registers_max > 247 { 255 } else { registers_max + 8 };
        assert!(*registers <= limit, "{key:?} takes {registers} registers of {registers_max}");
        assert!(*shared_bytes <= shared_max, "{key:?} takes {shared_bytes} bytes of {shared_max}");
    }
}

/// Sums that are touched before they are waited for, and registers that nobody can count.
#[test]
fn what_undoes_a_pipeline_is_an_objection() {
    let Some(compiler) = compiler() else { return };
    let hopper = &kernels::attention::cuda::hopper::SOURCE;
    let wait = "        products_wait<0>(sum);\n        release(bars.values[stage]);\n";
    let early = "        scale_rows(sum, rescale);\n";
    for (from, to, expected) in [
        (format!("{wait}{early}"), format!("{early}{wait}"), "serialized"),
        ("__launch_bounds__(THREADS, 1)".to_owned(), String::new(), "'setmaxnreg' ignored"),
    ] {
        assert!(hopper.text.contains(&from), "`{from}` is not in the kernel");
        let text = Box::leak(hopper.text.replace(&from, &to).into_boxed_str());
        let changed = Source { text, ..*hopper };
        let log = compiler.compile(&changed, "sm_90a").unwrap().log;
        assert!(objection(&log).is_some() && log.contains(expected), "{log}");
    }
}

/// A kernel whose description is wrong does not compile.
#[test]
fn wrong_descriptions_do_not_compile() {
    let Some(compiler) = compiler() else { return };
    let [_, norm] = ["adamw.cu", "norm.cu"]
        .map(|name| sources().into_iter().find(|source| source.name == name).unwrap());
    let text = norm.text.replace("double* partial, u64 len", "double* partial, int len");
    let wrong = Source::new(norm.name, Box::leak(text.into_boxed_str()), norm.kernels);
    let error = compiler.compile(&wrong, "sm_80").unwrap_err().to_string();
    assert!(error.contains("arguments of norm_tiles_f32"), "{error}");
}

/// What is compiled once is read the next time, and damage is noticed.
#[test]
fn cubins_are_kept() {
    let Some(compiler) = compiler() else { return };
    let dir = tempfile::tempdir().unwrap();
    let source = sources()[0];
    let first = compiler.compile_cached(source, "sm_80", dir.path()).unwrap();
    let again = compiler.compile_cached(source, "sm_80", dir.path()).unwrap();
    assert_eq!(first.bytes, again.bytes);
    assert!(!first.log.is_empty() && again.log.is_empty());
    let other = compiler.compile_cached(source, "sm_90a", dir.path()).unwrap();
    assert_ne!(first.bytes, other.bytes);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let mended = compiler.compile_cached(source, "sm_80", dir.path()).unwrap();
    assert_eq!(mended.bytes, first.bytes);
    assert!(!mended.log.is_empty());
}
