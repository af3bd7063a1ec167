//! `sbp lm`: looks into model folders, and runs the models, without a pipeline.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tasks::cuda::Device;
use tasks::cuda::choice::Request;
use tasks::device::{self, Opened, Work};
use tasks::lm::Config;
use tasks::lm::folder::{Folder, FolderTokenizer, Writing, check_vocabulary};
use tasks::lm::generate::Decoder;
use tasks::lm::hf::{self, Inspection, Precision, TensorFigures};
use tasks::lm::memory::MemoryPlan;

use crate::cli::{
    ConvertArgs, GenerateArgs, InspectArgs, LmArgs, LmCommand, PerplexityArgs, PrecisionChoice,
};
use crate::error::{Error, Result};
use crate::exit::ExitStatus;
use crate::human;
use crate::printer::Printer;
use crate::settings;
use crate::table::Table;

pub(crate) fn run(args: LmArgs, printer: Printer) -> Result<ExitStatus> {
    match args.command {
        LmCommand::Inspect(args) => inspect(&args, printer),
        LmCommand::Generate(args) => generate(args, printer),
        LmCommand::Perplexity(args) => perplexity(&args, printer),
        LmCommand::Convert(args) => convert(&args, printer),
    }
}

fn model_error(error: hf::Error) -> Error {
    engine::task::Failure::from(error).into()
}

fn open(model: &Path, threads: Option<u32>) -> Result<Folder> {
    Ok(Folder::open(model, settings::n_threads(threads) as usize)?)
}

/// The device that `name` means, when that is not the CPU; what was chosen and why is told.
fn open_device(name: &str, work: &Work, printer: Printer) -> Result<Option<Arc<dyn Device>>> {
    let _: Request = name.parse().map_err(Error::usage)?;
    let Opened { device, chosen, warnings } = device::open_named(name, work)?;
    for line in chosen.into_iter().chain(warnings) {
        printer.talk(line);
    }
    Ok(device)
}

/// What computes, for those who compare figures.
fn device_name(device: Option<&dyn Device>) -> String {
    device.map_or_else(|| "cpu".to_owned(), Device::name)
}

/// Says what is there even where the model could not be loaded; then the status tells.
fn inspect(args: &InspectArgs, printer: Printer) -> Result<ExitStatus> {
    let config = hf::load_config(&args.model).map_err(model_error)?;
    let found = hf::inspect(&args.model).map_err(model_error)?;
    let problem = hf::load(&args.model).err().map(|error| error.to_string());
    let status = if problem.is_some() { ExitStatus::NodeFailed } else { ExitStatus::Done };
    let mut facts = shape_facts(&config);
    facts.extend(file_facts(&args.model, &config, &found));
    facts.push(("problem", json!(problem)));
    if printer.is_json() {
        let mut line: Map<String, Value> =
            facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        line.insert("tensors".to_owned(), json!(found.tensors));
        printer.json(&line)?;
        return Ok(status);
    }
    let mut table = Table::new(&["what", "value"]);
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_null()) {
        table.row([name.replace('_', " "), shown(name, value)]);
    }
    printer.table(&table)?;
    let is_shown = |tensor: &&TensorFigures| args.tensors || tensor.n_not_finite > 0;
    let listed: Vec<&TensorFigures> = found.tensors.iter().filter(is_shown).collect();
    if !listed.is_empty() {
        printer.data("\n")?;
        printer.table(&tensors(&listed))?;
    }
    Ok(status)
}

type Facts = Vec<(&'static str, Value)>;

fn shape_facts(config: &Config) -> Facts {
    let training = MemoryPlan::training(config, config.context, 0, None).total_bytes();
    vec![
        ("architecture", json!("Qwen3: RMSNorm, grouped queries, QK-norm, rotary, SwiGLU")),
        ("layers", json!(config.n_layers)),
        ("width", json!(config.d_model)),
        ("query_heads", json!(config.n_heads)),
        ("key_value_heads", json!(config.n_kv_heads)),
        ("head_width", json!(config.head_dim)),
        ("feed_forward_width", json!(config.d_ffn)),
        ("vocabulary", json!(config.vocab_size)),
        ("context", json!(config.context)),
        ("rope_theta", json!(config.rope_theta)),
        ("tied_embeddings", json!(config.tie_embeddings)),
        ("parameters", json!(config.n_parameters())),
        ("train_flop_per_token", json!(config.train_flop_per_token(config.context))),
        ("cache_bytes_per_token", json!(Decoder::cache_bytes_per_token(config))),
        ("training_bytes", json!(training)),
    ]
}

fn file_facts(model: &Path, config: &Config, found: &Inspection) -> Facts {
    let opened = FolderTokenizer::open(model);
    let n_ids = opened.as_ref().ok().map(FolderTokenizer::n_ids);
    let fits = opened.and_then(|tokenizer| check_vocabulary(config, &tokenizer));
    let tokenizer = fits.map_or_else(|failure| failure.message, |()| "fits".to_owned());
    let mut precisions: Vec<&str> = found.tensors.iter().map(|t| t.dtype.as_str()).collect();
    precisions.sort_unstable();
    precisions.dedup();
    vec![
        ("precision", json!(precisions.join(", "))),
        ("files", json!(found.files.len())),
        ("file_bytes", json!(found.files.iter().map(|(_, bytes)| bytes).sum::<u64>())),
        ("tokenizer", json!(tokenizer)),
        ("tokenizer_ids", json!(n_ids)),
    ]
}

fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if name.contains("bytes") => human::bytes(n.as_u64().unwrap_or_default()),
        Value::Number(n) if name == "parameters" || name == "train_flop_per_token" => {
            format!("{} ({n})", human::count(n.as_f64().unwrap_or_default()))
        }
        other => other.to_string(),
    }
}

fn tensors(found: &[&TensorFigures]) -> Table {
    let mut table =
        Table::new(&["tensor", "shape", "type", ">mean", ">rms", ">max", ">not finite"]);
    let figure = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.4}"));
    for tensor in found {
        table.row([
            tensor.name.clone(),
            format!("{:?}", tensor.shape),
            tensor.dtype.clone(),
            figure(tensor.mean),
            figure(tensor.root_mean_square),
            figure(tensor.max),
            tensor.n_not_finite.to_string(),
        ]);
    }
    table
}

fn generate(args: GenerateArgs, printer: Printer) -> Result<ExitStatus> {
    let mut prompt = args.prompt;
    if prompt == "-" {
        prompt.clear();
        std::io::stdin().read_to_string(&mut prompt)?;
    }
    let folder = open(&args.model, args.threads)?;
    let writing = Writing {
        n_texts: args.texts as usize,
        n_tokens_max: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    let device = open_device(&args.device, &folder.writing_work(writing.n_texts), printer)?;
    let computed_on = device_name(device.as_deref());
    let written = folder.write(device, &prompt, &writing)?;
    if printer.is_json() {
        printer.json(&json!({ "device": computed_on, "prompt": prompt, "texts": written }))?;
        return Ok(ExitStatus::Done);
    }
    for (i, text) in written.iter().enumerate() {
        if written.len() > 1 {
            let end = if text.truncated { ", cut off" } else { "" };
            printer.talk(format!(
                "text {} of {}, {} tokens{end}",
                i + 1,
                written.len(),
                text.n_tokens
            ));
        }
        printer.data(format!("{prompt}{}\n", text.text))?;
    }
    Ok(ExitStatus::Done)
}

fn perplexity(args: &PerplexityArgs, printer: Printer) -> Result<ExitStatus> {
    let folder = open(&args.model, args.threads)?;
    let device = open_device(&args.device, &folder.reading_work(), printer)?;
    let computed_on = device_name(device.as_deref());
    let mut reader = folder.reader(device)?;
    let mut rows = Vec::new();
    let (mut nll, mut n_tokens, mut n_bytes) = (0.0, 0, 0);
    for file in &args.files {
        let text = read_text(file)?;
        let scored = folder.score(&mut reader, &text).map_err(|failure| {
            Error::from(engine::task::Failure {
                message: format!("`{}`: {}", file.display(), failure.message),
                ..failure
            })
        })?;
        nll += scored.mean_nll * scored.n_tokens as f64;
        n_tokens += scored.n_tokens;
        n_bytes += scored.n_bytes;
        rows.push((file.display().to_string(), scored));
    }
    let mean = nll / n_tokens as f64;
    let bits_per_byte = nll / std::f64::consts::LN_2 / n_bytes.max(1) as f64;
    if printer.is_json() {
        let files: Vec<Value> =
            rows.iter().map(|(file, scored)| json!({ "file": file, "score": scored })).collect();
        printer.json(&json!({
            "device": computed_on, "n_tokens": n_tokens, "n_bytes": n_bytes, "mean_nll": mean,
            "token_perplexity": mean.exp(), "bits_per_byte": bits_per_byte, "files": files,
        }))?;
        return Ok(ExitStatus::Done);
    }
    let mut table = Table::new(&["file", ">tokens", ">nats/token", ">perplexity", ">bits/byte"]);
    let mut row = |file: String, n: u64, mean: f64, bits: f64| {
        let figures = [mean, mean.exp(), bits].map(|x| format!("{x:.4}"));
        let [mean, perplexity, bits] = figures;
        table.row([file, n.to_string(), mean, perplexity, bits]);
    };
    for (file, scored) in &rows {
        row(file.clone(), scored.n_tokens, scored.mean_nll, scored.bits_per_byte);
    }
    if rows.len() > 1 {
        row("all".to_owned(), n_tokens, mean, bits_per_byte);
    }
    printer.table(&table)?;
    Ok(ExitStatus::Done)
}

fn read_text(file: &Path) -> Result<String> {
    fs::read_to_string(file)
        .map_err(|error| Error::usage(format!("cannot read `{}`: {error}", file.display())))
}

fn convert(args: &ConvertArgs, printer: Printer) -> Result<ExitStatus> {
    let precision = match args.precision {
        PrecisionChoice::F32 => Precision::F32,
        PrecisionChoice::Bf16 => Precision::Bf16,
        PrecisionChoice::F16 => Precision::F16,
    };
    if args.out.join("config.json").exists() {
        let out = args.out.display();
        return Err(
            Error::usage(format!("`{out}` holds a model already")).help("name a new folder")
        );
    }
    hf::convert(&args.model, &args.out, precision).map_err(model_error)?;
    printer.talk(format!("wrote `{}` in {}", args.out.display(), precision.name()));
    if printer.is_json() {
        printer.json(&json!({ "out": args.out, "precision": precision }))?;
    }
    Ok(ExitStatus::Done)
}
