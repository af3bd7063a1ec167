//! The task kinds of synthetic bootstrapped pretraining.

pub mod bench;
pub mod benchmark;
pub mod check_arms;
pub mod clean;
pub mod compare;
pub mod compare_arms;
pub mod compare_benchmarks;
pub mod corpus;
pub mod cost;
pub mod decode;
pub mod dedup;
pub mod device;
pub mod drop_near_dups;
pub mod drop_repeats;
pub mod embed;
pub mod evaluate;
pub mod evaluate_synthesizer;
pub mod evaluate_world;
pub mod export;
#[cfg(test)]
mod fixture;
pub mod format;
pub mod gate;
pub mod generate_corpus;
pub mod generate_world;
pub mod import_tokenizer;
pub mod judge;
pub mod lm;
pub mod measure_facts;
pub mod measure_overlap;
pub mod measure_quality;
pub mod mix;
pub mod pair;
pub mod pair_true;
pub mod pretrain;
pub mod read_corpus;
pub mod read_items;
pub mod report;
pub mod rows;
pub mod sample;
pub mod select_model;
pub mod select_snapshot;
pub mod shingle;
mod source;
pub mod split;
pub mod stats;
pub mod synthesize;
pub mod tfidf;
pub mod tokenize;
pub mod tokenizer;
pub mod train_tokenizer;
pub mod tune_synthesizer;
mod words;
pub mod world;

use engine::task::Registry;
/// Devices of CUDA's kind: what there is, what it can do, and what it gives.
pub use kernels::cuda;

/// Every task, in pipeline order.
pub fn registry() -> Registry {
    Registry::default()
        .with::<read_corpus::ReadCorpus>()
        .with::<generate_corpus::GenerateCorpus>()
        .with::<generate_world::GenerateWorld>()
        .with::<clean::Clean>()
        .with::<dedup::Dedup>()
        .with::<train_tokenizer::TrainTokenizer>()
        .with::<import_tokenizer::ImportTokenizer>()
        .with::<split::Split>()
        .with::<tokenize::Tokenize>()
        .with::<sample::Sample>()
        .with::<mix::Mix>()
        .with::<pretrain::Pretrain>()
        .with::<select_snapshot::SelectSnapshot>()
        .with::<embed::Embed>()
        .with::<pair::Pair>()
        .with::<pair_true::PairTrue>()
        .with::<drop_near_dups::DropNearDups>()
        .with::<tune_synthesizer::TuneSynthesizer>()
        .with::<evaluate_synthesizer::EvaluateSynthesizer>()
        .with::<measure_quality::MeasureQuality>()
        .with::<judge::Judge>()
        .with::<gate::Gate>()
        .with::<select_model::SelectModel>()
        .with::<synthesize::Synthesize>()
        .with::<drop_repeats::DropRepeats>()
        .with::<measure_facts::MeasureFacts>()
        .with::<check_arms::CheckArms>()
        .with::<evaluate::Evaluate>()
        .with::<evaluate_world::EvaluateWorld>()
        .with::<read_items::ReadItems>()
        .with::<benchmark::Benchmark>()
        .with::<compare::Compare>()
        .with::<compare_benchmarks::CompareBenchmarks>()
        .with::<compare_arms::CompareArms>()
        .with::<measure_overlap::MeasureOverlap>()
        .with::<export::Export>()
        .with::<report::Report>()
        .with::<engine::exec::Exec>()
}
