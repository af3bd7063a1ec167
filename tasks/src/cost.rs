//! What tasks call the things they predict, and how fast machines are said to do them.
//!
//! A task's own prediction stands in its module; here are the names that they share, the facts of a
//! model, and the stated rates of [`rates`]. Nothing here decides a result.

use std::collections::BTreeMap;

use engine::cost::Rates;
use engine::task::{FILE_BYTES, Facts};

use crate::lm::{Config, Preset};

/// Facts of artifacts.
pub(crate) mod fact {
    /// Documents of a corpus, of tokens, of vectors.
    pub(crate) const DOCUMENTS: &str = "documents";
    /// Bytes of text.
    pub(crate) const TEXT_BYTES: &str = "text_bytes";
    /// Tokens of a stream that shows each document once, special tokens included.
    pub(crate) const TOKENS: &str = "tokens";
    /// Ids of a tokenizer.
    pub(crate) const VOCABULARY: &str = "vocabulary";
    /// Tokens of a schedule that are synthetic.
    pub(crate) const SYNTHETIC_TOKENS: &str = "synthetic_tokens";
    /// Components of a vector.
    pub(crate) const DIMENSIONS: &str = "dimensions";
    /// Pairs of documents, at most.
    pub(crate) const PAIRS: &str = "pairs";
    /// Parameters of a model.
    pub(crate) const PARAMETERS: &str = "parameters";
    /// Longest sequence of a model.
    pub(crate) const CONTEXT: &str = "context";
    /// Floating-point operations of a forward pass for one token, attention left out.
    pub(crate) const TOKEN_FLOP: &str = "token_flop";
    /// The same of attention, for each token of the row.
    pub(crate) const ATTENTION_FLOP: &str = "attention_flop";
}

/// Units of work, and figures that tables show. A unit's name is also that of the metric under which
/// a finished task reports the amount, which is how rates are measured.
pub mod unit {
    /// Operations of training, forward and backward.
    pub const TRAIN_FLOP: &str = "train_flop";
    /// Operations of scoring.
    pub const FORWARD_FLOP: &str = "forward_flop";
    /// Operations of the products behind each generated token, prompts left out.
    pub const DECODE_FLOP: &str = "decode_flop";
    /// Multiply-adds of the pair search, counted as two.
    pub const INT8_OP: &str = "int8_op";
    /// Bytes of text read.
    pub const TEXT_BYTES: &str = "text_bytes";
}

/// Figures that tables show.
pub(crate) mod figure {
    /// Optimizer steps.
    pub(crate) const STEPS: &str = "steps";
    /// Tokens trained on, generated or scored.
    pub(crate) const TOKENS: &str = "tokens";
    /// Floating-point operations of all kinds.
    pub(crate) const FLOP: &str = "flop";
    /// Times that real text is shown.
    pub(crate) const REPETITIONS: &str = "real_repetitions";
    /// Documents.
    pub(crate) const DOCUMENTS: &str = "documents";
    /// Bytes of a checkpoint.
    pub(crate) const CHECKPOINT_BYTES: &str = "checkpoint_bytes";
}

/// Bytes of a weight, a gradient or a moment.
const F32_BYTES: f64 = 4.0;

/// Facts of a model of this shape.
pub(crate) fn model(config: &Config) -> Facts {
    let whole = config.train_flop_per_token(1);
    let attention = config.train_flop_per_token(2) - whole;
    let parameters = config.n_parameters() as f64;
    Facts::default()
        .with(fact::PARAMETERS, parameters)
        .with(fact::VOCABULARY, config.vocab_size as f64)
        .with(fact::CONTEXT, config.context as f64)
        // A training step costs three forward passes.
        .with(fact::TOKEN_FLOP, (whole - attention) / 3.0)
        .with(fact::ATTENTION_FLOP, attention / 3.0)
        .with(FILE_BYTES, F32_BYTES * parameters)
}

/// Operations of a forward pass over `tokens` tokens in rows of `row` tokens.
pub(crate) fn forward_flop(model: &Facts, tokens: f64, row: f64) -> Option<f64> {
    let per_token = model.get(fact::TOKEN_FLOP)? + row * model.get(fact::ATTENTION_FLOP)?;
    Some(tokens * per_token)
}

/// Tokens that training on these documents attends over, each in its own: those of a mean document, as
/// far as a row holds them.
pub(crate) fn row(documents: &Facts, context: f64) -> f64 {
    let mean = documents.get(fact::TOKENS).zip(documents.get(fact::DOCUMENTS)).map(|(t, d)| t / d);
    mean.map_or(context, |mean| mean.min(context))
}

/// Operations to train on `tokens` tokens in rows of `row` tokens: three forward passes.
pub(crate) fn train_flop(model: &Facts, tokens: f64, row: f64) -> Option<f64> {
    forward_flop(model, tokens, row).map(|flop| 3.0 * flop)
}

/// Bytes of a checkpoint: parameters and two moments.
pub(crate) fn checkpoint_bytes(model: &Facts) -> Option<f64> {
    model.get(fact::PARAMETERS).map(|n| 3.0 * F32_BYTES * n)
}

/// Bytes of token ids on disk.
pub(crate) fn ids_bytes(tokens: Option<f64>, vocabulary: Option<f64>) -> Option<f64> {
    let width = if vocabulary? > f64::from(1_u32 << 16) { 4.0 } else { 2.0 };
    Some(tokens? * width)
}

/// Rates that somebody states: the name, where they come from, and the rates.
pub struct Stated {
    /// The rates.
    pub rates: Rates,
    /// Whose, and under which assumptions.
    pub source: &'static str,
}

/// Tokens that the paper's baseline trains on, and the TPU v5p hours it took (section 3.1).
const PAPER_TRAIN: (f64, f64) = (200e9, 11e3);
/// Tokens of the paper's pool after its length filter, and its documents (section 3.1). That a document
/// attends to itself alone is our assumption: the paper does not say.
const PAPER_POOL: (f64, f64) = (482e9, 582e6);
/// Tokens a second that one B200 generates (section A.2).
const PAPER_GENERATED_PER_S: f64 = 8.3e3;

/// Dense bf16 and int8 peaks of one H200 (NVIDIA H200 data sheet, half of the figures with sparsity).
const H200_BF16_PEAK: f64 = 989e12;
const H200_INT8_PEAK: f64 = 1979e12;
/// Share of a peak that well-kept training reaches; an assumption.
const TRAIN_SHARE: f64 = 0.4;
/// Share of a peak that a fused search reaches; an assumption.
const SEARCH_SHARE: f64 = 0.5;
/// Tokens a second that one H200 generates with the 3 B model; an assumption between the paper's rate
/// and what the memory's bandwidth allows.
const H200_GENERATED_PER_S: f64 = 10e3;
/// Bytes of text that one core cleans or tokenizes in a second; an assumption.
const CORE_TEXT_BYTES_PER_S: f64 = 10e6;

/// Stated rates, by device.
pub fn rates() -> Vec<Stated> {
    let paper_model = model(&Preset::B3.config());
    let token_flop = paper_model.get(fact::TOKEN_FLOP).unwrap_or(f64::NAN);
    let paper_flop = train_flop(&paper_model, PAPER_TRAIN.0, PAPER_POOL.0 / PAPER_POOL.1);
    let stated = |name: &str, source, rates: &[(&str, f64)]| {
        let by_unit = rates.iter().map(|(unit, rate)| ((*unit).to_owned(), *rate)).collect();
        Stated { rates: Rates { name: name.to_owned(), by_unit, by_task: BTreeMap::new() }, source }
    };
    let paper_train = paper_flop.unwrap_or(f64::NAN) / (PAPER_TRAIN.1 * 3600.0);
    vec![
        stated(
            "paper",
            "arXiv 2509.15248: training at 11K v5p-hours for 200B tokens, 8.3K tokens/s generated on a B200",
            &[
                (unit::TRAIN_FLOP, paper_train),
                (unit::DECODE_FLOP, PAPER_GENERATED_PER_S * token_flop),
            ],
        ),
        stated(
            "h200",
            "assumed: 40 % of 989 TFLOP/s bf16 to train and score, 50 % of 1979 TOPS int8 to search, \
             10K tokens/s generated with 3B",
            &[
                (unit::TRAIN_FLOP, TRAIN_SHARE * H200_BF16_PEAK),
                (unit::FORWARD_FLOP, TRAIN_SHARE * H200_BF16_PEAK),
                (unit::DECODE_FLOP, H200_GENERATED_PER_S * token_flop),
                (unit::INT8_OP, SEARCH_SHARE * H200_INT8_PEAK),
            ],
        ),
        stated(
            "core",
            "assumed: a CPU core cleans or tokenizes 10 MB/s of text",
            &[(unit::TEXT_BYTES, CORE_TEXT_BYTES_PER_S), (FILE_BYTES, CORE_TEXT_BYTES_PER_S)],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Training's utilization that the paper's hours imply on a v5p with its 459 TFLOP/s.
    #[test]
    fn papers_hours_imply_their_utilization() {
        let stated = &rates()[0].rates.by_unit;
        let share = stated[unit::TRAIN_FLOP] / 459e12;
        assert!((share - 0.185).abs() < 1e-3, "{share}");
    }

    /// A forward pass is a third of a training step, however it is taken apart.
    #[test]
    fn forward_passes_add_up() {
        let config = Preset::B3.config();
        let forward = forward_flop(&model(&config), 10.0, 4096.0).unwrap();
        let expected = 10.0 * config.train_flop_per_token(4096) / 3.0;
        assert!((forward / expected - 1.0).abs() < 1e-12);
    }
}
