//! The task `exec`: any program as a node.
//!
//! The program finds its inputs, outputs and params in `SBP_*` variables and, complete, in the JSON
//! file that `SBP_TASK` names; nothing else of the environment reaches it except what `pass_env`
//! lists. It may print `::sbp progress 3/10`, `::sbp metric loss=1.2 step=7`, `::sbp result n=3` and
//! `::sbp warn TEXT`; every other line goes to the node's log. Exit code 75 asks for another try.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::process::{Ended, GRACE, LastLines, Limits, Program, Stream, kill_leftovers};
use crate::task::{
    Arity, Context, Determinism, Failure, Inputs, Outputs, OwnPort, ParamError, Port, Task,
};

/// Tells the program, and whoever cleans up after a crash, which attempt it belongs to.
pub(crate) const ATTEMPT: &str = "SBP_ATTEMPT_DIR";
/// `EX_TEMPFAIL` of `sysexits.h`.
const TRY_AGAIN: i32 = 75;

/// Runs a program.
pub struct Exec;

/// Params of `exec`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The program and its arguments; `{in.PORT}`, `{out.PORT}`, `{checkpoint}`, `{scratch}` and
    /// `{threads}` stand for paths and the number of threads. No shell is involved unless `shell`
    /// is set. Runs in the folder in which `sbp` was started.
    pub command: Vec<String>,
    /// Hands `command`, a single text, to `/bin/sh -c`.
    #[serde(default)]
    pub shell: bool,
    /// Raise it when the program gives other results.
    #[serde(default = "one")]
    pub revision: u32,
    /// Input ports and the kinds of artifact they take, such as `{corpus: corpus}`; `any` takes
    /// every kind. A kind with `?` is an optional port, one with `*` takes a list.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// Output ports and the kinds of artifact they give. The program fills the folder of each.
    pub outputs: BTreeMap<String, String>,
    /// Values for the program: in `SBP_PARAM_NAME` and in the JSON file.
    #[serde(default)]
    pub params: Map<String, Value>,
    /// Variables for the program.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Names of variables that the program gets as they are here. Their values are not part of the
    /// key.
    #[serde(default)]
    pub pass_env: Vec<String>,
    /// Files that the program consists of or reads, as patterns; their contents are part of the key.
    #[serde(default)]
    pub files: Vec<String>,
}

fn one() -> u32 {
    1
}

impl Task for Exec {
    const KIND: &'static str = "exec";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "runs a program";
    const DETERMINISM: Determinism = Determinism::Measured;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[];
    const UNKEYED: &'static [&'static str] = &["files", "pass_env"];
    const HAS_OWN_PORTS: bool = true;
    type Params = Params;

    fn own_ports(params: &Map<String, Value>) -> (Vec<OwnPort>, Vec<OwnPort>) {
        let ports = |name: &str| {
            let declared = params.get(name).and_then(Value::as_object).into_iter().flatten();
            let port = |(name, kind): (&String, &Value)| Some(own_port(name, kind.as_str()?));
            declared.filter_map(port).collect()
        };
        (ports("inputs"), ports("outputs"))
    }

    fn check(params: &Params) -> Result<(), ParamError> {
        let program = params.command.first().map(String::as_str).unwrap_or_default();
        if program.is_empty() {
            return Err(ParamError::new("command", "it names no program"));
        }
        if params.shell && params.command.len() != 1 {
            let n = params.command.len();
            return Err(ParamError::new("command", format!("it has {n} parts; a shell takes one"))
                .help("write `command: [\"TEXT\"]`, or remove `shell`"));
        }
        if params.outputs.is_empty() {
            return Err(ParamError::new("outputs", "a node without outputs makes nothing"));
        }
        for (param, ports) in [("inputs", &params.inputs), ("outputs", &params.outputs)] {
            for (port, kind) in ports {
                check_port(param, port, kind)?;
            }
        }
        check_placeholders(params)?;
        for name in params.env.keys().chain(&params.pass_env) {
            if name.is_empty() || name.starts_with("SBP_") || name.contains(['=', '\0']) {
                let message = format!("`{name}` cannot be the name of a program's variable");
                return Err(ParamError::new("env", message));
            }
        }
        Ok(())
    }

    fn external(params: &Params) -> Vec<String> {
        params.files.clone()
    }

    fn run(ctx: &mut Context, params: &Params, inputs: &Inputs) -> Result<Outputs, Failure> {
        let (outputs, _) = (outputs(ctx, params)?, ctx.scratch()?);
        let command = command(ctx, params, inputs, &outputs)?;
        let shown = params.command[0].lines().next().unwrap_or_default().to_owned();
        let program = Program::start(command).map_err(|error| {
            Failure::permanent(format!("cannot start `{shown}`: {error}")).help(
                "the program is looked for in PATH, relative paths in the folder of `sbp run`",
            )
        })?;
        if let Some(bytes) = ctx.memory_bytes()
            && let Err(error) = program.limit_memory(bytes)
        {
            ctx.warn(format!("the memory of `{shown}` is not limited: {error}"));
        }
        let mut heard = Heard::default();
        let is_done = Cell::new(false);
        let limits = Limits { cancel: ctx.cancel_token(), grace: GRACE, is_done: &is_done };
        let ended = program
            .wait(&limits, Program::terminate, |stream, line| heard.line(ctx, stream, line))
            .map_err(|error| Failure::io(format!("cannot wait for `{shown}`"), &error))?;
        // What it left in a session of its own is in none of our groups.
        kill_leftovers(ATTEMPT, &[attempt_dir(ctx)?]);
        ctx.note_program(ended.peak_memory_bytes);
        ctx.check_cancelled()?;
        if !ended.is_success() {
            return Err(heard.failure(&shown, ended, ctx.memory_bytes()));
        }
        check_outputs(ctx, &outputs)?;
        let peak_mib = ended.peak_memory_bytes as f64 / f64::from(1 << 20);
        Ok(heard.outputs.metric("peak_memory_mib", peak_mib))
    }
}

fn own_port(name: &str, kind: &str) -> OwnPort {
    let (kind, arity) = match kind.strip_suffix('?') {
        Some(kind) => (kind, Arity::Optional),
        None => match kind.strip_suffix('*') {
            Some(kind) => (kind, Arity::Many),
            None => (kind, Arity::One),
        },
    };
    OwnPort { name: name.to_owned(), kind: kind.to_owned(), arity }
}

fn check_port(param: &str, port: &str, kind: &str) -> Result<(), ParamError> {
    let is_word = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let OwnPort { kind: bare, arity, .. } = own_port(port, kind);
    if !is_word(port) || !is_word(&bare) || (param == "outputs" && arity != Arity::One) {
        let message = format!("`{port}: {kind}` is no port");
        return Err(ParamError::new(param, message)
            .help("names and kinds are letters, digits and `_`; `?` and `*` are for inputs"));
    }
    Ok(())
}

/// A port that may hold none or several artifacts has no one path.
fn check_placeholders(params: &Params) -> Result<(), ParamError> {
    for (port, kind) in &params.inputs {
        let placeholder = format!("{{in.{port}}}");
        let is_used = params.command.iter().any(|text| text.contains(&placeholder));
        if is_used && !params.shell && own_port(port, kind).arity != Arity::One {
            let message = format!("`{placeholder}` has no one path: the port is `{kind}`");
            return Err(ParamError::new("command", message)
                .help("the JSON file that `SBP_TASK` names lists the folders of every port"));
        }
    }
    Ok(())
}

/// The folder of each output, made and empty.
fn outputs(ctx: &Context, params: &Params) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let mut dirs = BTreeMap::new();
    for port in params.outputs.keys() {
        dirs.insert(port.clone(), ctx.out(port)?);
    }
    Ok(dirs)
}

fn command(
    ctx: &Context,
    params: &Params,
    inputs: &Inputs,
    outputs: &BTreeMap<String, PathBuf>,
) -> Result<Command, Failure> {
    let scratch = ctx.scratch()?.to_owned();
    let checkpoint = ctx.checkpoint_dir()?;
    let threads = ctx.n_threads().to_string();
    let dirs: BTreeMap<&String, Vec<&Path>> = params
        .inputs
        .keys()
        .map(|port| (port, inputs.many(port).iter().map(|input| input.dir.as_path()).collect()))
        .collect();
    let described = json!({
        "params": params.params, "inputs": dirs, "outputs": outputs, "checkpoint_dir": checkpoint,
        "scratch_dir": scratch, "threads": ctx.n_threads(), "memory_bytes": ctx.memory_bytes(),
    });
    let task = scratch.join("task.json");
    fs::write(&task, serde_json::to_vec_pretty(&described).map_err(std::io::Error::from)?)?;

    let mut command = if params.shell {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(&params.command[0]);
        command
    } else {
        let fill = |text: &String| {
            let mut text = text.clone();
            let mut put = |name: String, path: &Path| {
                text = text.replace(&name, &path.to_string_lossy());
            };
            for (port, dirs) in &dirs {
                if let Some(dir) = dirs.first() {
                    put(format!("{{in.{port}}}"), dir);
                }
            }
            for (port, dir) in outputs {
                put(format!("{{out.{port}}}"), dir);
            }
            put("{checkpoint}".to_owned(), &checkpoint);
            put("{scratch}".to_owned(), &scratch);
            put("{threads}".to_owned(), Path::new(&threads));
            text
        };
        let words: Vec<String> = params.command.iter().map(fill).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    };
    command.stdin(Stdio::null()).env_clear();
    for name in ["PATH", "HOME"].into_iter().chain(params.pass_env.iter().map(String::as_str)) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("LANG", "C.UTF-8").env("LC_ALL", "C.UTF-8").env("TMPDIR", &scratch);
    command.envs(&params.env);
    command.env("SBP_TASK", &task).env("SBP_THREADS", &threads);
    command.env("SBP_CHECKPOINT_DIR", &checkpoint).env("SBP_SCRATCH_DIR", &scratch);
    command.env(ATTEMPT, attempt_dir(ctx)?);
    if let Some(bytes) = ctx.memory_bytes() {
        command.env("SBP_MEMORY_BYTES", bytes.to_string());
    }
    for (port, dirs) in &dirs {
        if let [dir] = dirs[..] {
            command.env(variable("IN", port), dir);
        }
    }
    for (port, dir) in outputs {
        command.env(variable("OUT", port), dir);
    }
    for (name, value) in &params.params {
        match value {
            Value::String(text) => command.env(variable("PARAM", name), text),
            value => command.env(variable("PARAM", name), value.to_string()),
        };
    }
    Ok(command)
}

/// The folder of the attempt, by which its programs are known.
fn attempt_dir(ctx: &Context) -> std::io::Result<PathBuf> {
    let scratch = ctx.scratch()?;
    Ok(scratch.parent().unwrap_or(scratch).to_owned())
}

fn variable(kind: &str, name: &str) -> String {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect();
    format!("SBP_{kind}_{name}")
}

/// What a program said.
#[derive(Default)]
struct Heard {
    outputs: Outputs,
    last: LastLines,
}

impl Heard {
    fn line(&mut self, ctx: &Context, stream: Stream, line: &str) {
        if stream == Stream::Out
            && let Some(said) = line.strip_prefix("::sbp ")
        {
            if self.obey(ctx, said).is_none() {
                ctx.warn(format!("cannot make sense of `{line}`"));
            }
            return;
        }
        self.last.push(line);
        ctx.info(line);
    }

    fn obey(&mut self, ctx: &Context, said: &str) -> Option<()> {
        let (verb, rest) = said.trim().split_once(' ')?;
        match verb {
            "progress" => {
                let (figures, unit) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
                let (done, total) = figures.split_once('/').unwrap_or((figures, "0"));
                let unit = if unit.trim().is_empty() { "steps" } else { unit.trim() };
                ctx.progress(done.parse().ok()?, total.parse().ok()?, unit);
            }
            "metric" | "result" => {
                let pairs: Option<Vec<(&str, &str)>> =
                    rest.split_whitespace().map(|pair| pair.split_once('=')).collect();
                let pairs = pairs?;
                let step = pairs.iter().find(|(name, _)| *name == "step");
                let step: Option<u64> = match step {
                    Some((_, text)) => Some(text.parse().ok()?),
                    None => None,
                };
                for (name, value) in pairs.iter().filter(|(name, _)| *name != "step") {
                    let value: f64 = value.parse().ok()?;
                    match (verb, step) {
                        ("metric", Some(step)) => ctx.metric(name, step, value),
                        ("result", None) if value.is_finite() => {
                            self.outputs.metrics.insert((*name).to_owned(), value);
                        }
                        _ => return None,
                    }
                }
            }
            "warn" => ctx.warn(rest),
            _ => return None,
        }
        Some(())
    }

    fn failure(&self, shown: &str, ended: Ended, limit: Option<u64>) -> Failure {
        let message = self.last.after(format!("`{shown}` {ended}"));
        if ended.code == Some(TRY_AGAIN) {
            return Failure::transient(message);
        }
        ended.advise(Failure::permanent(message), limit)
    }
}

/// Every declared output must be there, and nothing else.
fn check_outputs(ctx: &Context, outputs: &BTreeMap<String, PathBuf>) -> Result<(), Failure> {
    for (port, dir) in outputs {
        let metadata = fs::symlink_metadata(dir);
        if !metadata.is_ok_and(|metadata| metadata.is_dir()) {
            let message = format!("the output `{port}` is no folder any more");
            return Err(Failure::permanent(message).help("write files below it"));
        }
        if fs::read_dir(dir)?.next().is_none() {
            let message = format!("the program left its output `{port}` empty");
            let help = format!("write files below `${}`", variable("OUT", port));
            return Err(Failure::permanent(message).help(help));
        }
        let parent = dir.parent().expect("an output lies in a folder");
        for entry in fs::read_dir(parent)? {
            let name = entry?.file_name();
            if !outputs.keys().any(|port| name == port.as_str()) {
                let name = name.to_string_lossy();
                let message = format!("the program wrote `{name}`, which is no declared output");
                return Err(Failure::permanent(message));
            }
        }
    }
    ctx.check_cancelled()
}

#[cfg(test)]
mod tests;
