//! Makes a closed world with known probabilities, text about it, and the truth that results are
//! measured against.
//!
//! The outputs are independent draws, and no text is in two of them: training documents, documents to
//! choose checkpoints by, held-out documents, and a pool of further documents about the same concepts
//! for the oracle. `world` says what each training and held-out document is about, asks questions, and
//! gives exact probabilities. Every word is a token of `tokenizer`.
//!
//! Beside `generate_corpus`, which makes ordinary text for trying out a pipeline, this is for
//! measuring whether a method does what it claims.

mod draws;
#[cfg(test)]
mod tests;

use std::path::Path;

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use serde_json::{Map, Value, json};

use crate::corpus::{CorpusWriter, Document, write_json};
use crate::tokenizer::{FILE as TOKENIZER_FILE, SPECIALS};
use crate::world::{Spec, Truth, World};
use draws::{Drawn, Draws};

/// Makes a closed world and text about it.
pub struct GenerateWorld;

impl Task for GenerateWorld {
    const KIND: &'static str = "generate_world";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str =
        "makes a closed world with exact probabilities, text about it, and the truth";
    // Logarithms come from the platform's math library.
    const DETERMINISM: Determinism = Determinism::BitwisePerDevice;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] = &[
        Port::one("train", "corpus", "the documents to learn from"),
        Port::one("validation", "corpus", "new documents like them, to choose checkpoints by"),
        Port::one("heldout", "corpus", "new documents of each kind, to measure on"),
        Port::one("pool", "corpus", "many more documents about the same concepts"),
        Port::one("tokenizer", "tokenizer", "one token a word"),
        Port::one("world", "world", "concepts, questions, and exact probabilities"),
    ];
    type Params = Spec;

    fn check(params: &Spec) -> Result<(), ParamError> {
        params.check()
    }

    fn run(ctx: &mut Context, params: &Spec, _: &Inputs) -> Result<Outputs, Failure> {
        let world = World::new(params);
        let mut draws = Draws::new(&world);
        let train = draws.train()?;
        let validation = draws.validation()?;
        let heldout = draws.heldout()?;
        let pairs = draws.pairs(&train)?;
        let questions = draws.questions();
        ctx.check_cancelled()?;
        let pool = draws.pool()?;

        let mut outputs = Outputs::default();
        for (name, texts) in
            [("train", &train), ("validation", &validation), ("heldout", &heldout), ("pool", &pool)]
        {
            write_corpus(&ctx.out(name)?, &world, texts)?;
            outputs = outputs.metric(format!("n_{name}"), texts.len() as f64);
        }
        write_tokenizer(&ctx.out("tokenizer")?, &world)?;
        let truth = Truth {
            documents: train.iter().map(Drawn::document_row).collect(),
            heldout: draws.heldout_rows(&heldout),
            questions,
            pairs,
            world: world.clone(),
        };
        truth.save(&ctx.out("world")?)?;
        Ok(outputs
            .metric("n_concepts", world.told().len() as f64)
            .metric("n_words", world.lexicon().len() as f64)
            .metric("n_questions", truth.questions.len() as f64))
    }
}

fn write_corpus(dir: &Path, world: &World, texts: &[Drawn]) -> Result<(), Failure> {
    let mut writer = CorpusWriter::create(dir)?;
    for text in texts {
        let mut meta = Map::new();
        meta.insert("concept".to_owned(), text.concept.into());
        meta.insert("genre".to_owned(), world.genres[text.genre].name.clone().into());
        if let Some(kind) = text.kind {
            meta.insert("kind".to_owned(), kind.name().into());
        }
        writer.push(&Document { id: text.id, text: text.text.clone(), meta })?;
    }
    writer.finish()?;
    Ok(())
}

/// Writes a Hugging Face tokenizer whose tokens are the special ones and the world's words. It has no
/// token for unknown words, so that any other word is an error.
fn write_tokenizer(dir: &Path, world: &World) -> Result<(), Failure> {
    let lexicon = world.lexicon();
    let ids = SPECIALS.iter().copied().chain(lexicon.keys().copied()).zip(0_u64..);
    let vocabulary: Map<String, Value> =
        ids.map(|(word, id)| (word.to_owned(), id.into())).collect();
    let special = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<|unknown|>" },
    });
    Ok(write_json(&dir.join(TOKENIZER_FILE), &tokenizer)?)
}
