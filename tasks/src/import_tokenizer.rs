//! Takes over a Hugging Face `tokenizer.json`, made elsewhere.
//!
//! Every tokenizer here has the special tokens of [`crate::tokenizer`] with ids 0 to 3. A file that has
//! them is taken as it is; in any other, its own ids move up by four to make room. Text keeps its
//! tokens: id `i` of the file is id `i + 4` here. What the file adds around a text (its post-processor)
//! is left out, since sequences are framed by this program.

use engine::task::{Context, Determinism, Failure, Inputs, Outputs, ParamError, Port, Task};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::tokenizer::{FILE, SPECIALS, Tokenizer};

/// See the module.
pub struct ImportTokenizer;

/// Params of `import_tokenizer`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The `tokenizer.json`. Its content is part of the node's key, its path is not.
    pub path: String,
}

impl Task for ImportTokenizer {
    const KIND: &'static str = "import_tokenizer";
    const REVISION: u32 = 1;
    const SUMMARY: &'static str = "takes over a Hugging Face tokenizer.json";
    const DETERMINISM: Determinism = Determinism::Bitwise;
    const INPUTS: &'static [Port] = &[];
    const OUTPUTS: &'static [Port] =
        &[Port::one("tokenizer", "tokenizer", "the tokenizer, with our special tokens")];
    const UNKEYED: &'static [&'static str] = &["path"];
    type Params = Params;

    fn check(params: &Params) -> Result<(), ParamError> {
        if params.path.is_empty() {
            return Err(ParamError::new("path", "the path is empty"));
        }
        Ok(())
    }

    fn external(params: &Params) -> Vec<String> {
        vec![params.path.clone()]
    }

    fn run(ctx: &mut Context, params: &Params, _: &Inputs) -> Result<Outputs, Failure> {
        let [file] = ctx.external() else {
            let n = ctx.external().len();
            let message = format!("`{}` names {n} files; one is needed", params.path);
            return Err(Failure::permanent(message));
        };
        let path = file.path.display();
        let bytes = std::fs::read(&file.path)
            .map_err(|error| Failure::io(format!("cannot read `{path}`"), &error))?;
        let mut json: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::permanent(format!("`{path}` is not JSON: {error}")))?;
        let shift = take_over(&mut json)
            .map_err(|what| Failure::permanent(format!("`{path}` cannot be taken over: {what}")))?;
        let dir = ctx.out("tokenizer")?;
        let mut text = serde_json::to_string_pretty(&json)
            .map_err(|error| Failure::permanent(format!("cannot write the tokenizer: {error}")))?;
        text.push('\n');
        std::fs::write(dir.join(FILE), text)
            .map_err(|error| Failure::io(format!("cannot write `{}`", dir.display()), &error))?;
        let tokenizer = Tokenizer::open(&dir)?;
        if !tokenizer.is_fast() {
            ctx.info("the tokenizer is not plain byte-level BPE: it encodes at the crate's speed");
        }
        Ok(Outputs::default()
            .metric("vocab_size", f64::from(tokenizer.vocab_size()))
            .metric("ids_shifted_by", shift as f64))
    }
}

/// Gives a tokenizer our special tokens; returns by how much its own ids moved.
fn take_over(json: &mut Value) -> Result<u64, String> {
    for key in ["post_processor", "truncation", "padding"] {
        json[key] = Value::Null;
    }
    let added = json["added_tokens"].as_array().cloned().unwrap_or_default();
    let has_ours = SPECIALS.iter().enumerate().all(|(id, special)| {
        added.iter().any(|token| token["content"] == *special && token["id"] == id)
    });
    if has_ours {
        return Ok(0);
    }
    let vocab = json["model"]["vocab"]
        .as_object()
        .ok_or("its model has no vocabulary by token, as BPE and WordPiece have")?;
    let taken = |token: &str| {
        vocab.contains_key(token) || added.iter().any(|added| added["content"] == token)
    };
    if let Some(special) = SPECIALS.iter().find(|special| taken(special)) {
        return Err(format!("it has a token `{special}` with another id"));
    }
    let shift = SPECIALS.len() as u64;
    let moved = |id: &Value| {
        id.as_u64().map(|id| json!(id + shift)).ok_or_else(|| format!("it has an id {id}"))
    };
    let mut new_vocab = serde_json::Map::new();
    let mut new_added = Vec::new();
    for (id, special) in SPECIALS.iter().enumerate() {
        new_vocab.insert((*special).to_owned(), json!(id));
        new_added.push(json!({
            "id": id, "content": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    for (token, id) in vocab {
        new_vocab.insert(token.clone(), moved(id)?);
    }
    for mut token in added {
        token["id"] = moved(&token["id"])?;
        new_added.push(token);
    }
    json["model"]["vocab"] = Value::Object(new_vocab);
    json["added_tokens"] = Value::Array(new_added);
    Ok(shift)
}

#[cfg(test)]
mod tests {
    use engine::task::testbed::Bench;

    use super::*;
    use crate::corpus::tests::write_texts;
    use crate::train_tokenizer::TrainTokenizer;

    /// A trained tokenizer as others would have written it: without our special tokens, its ids from 0.
    fn foreign(dir: &std::path::Path) -> (Tokenizer, Value) {
        let texts = ["to be or not to be, that's the question", "naïve 日本 🦀 fn main() { }"];
        write_texts(&dir.join("corpus"), texts);
        let bench = Bench::new(dir).input("corpus", &dir.join("corpus"));
        bench.run::<TrainTokenizer>(&json!({"vocab_size": 262})).unwrap();
        let ours = Tokenizer::open(&bench.out("tokenizer")).unwrap();
        let bytes = std::fs::read(bench.out("tokenizer").join(FILE)).unwrap();
        let mut json: Value = serde_json::from_slice(&bytes).unwrap();
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|token, _| !SPECIALS.contains(&token.as_str()));
        for id in vocab.values_mut() {
            *id = json!(id.as_u64().unwrap() - 4);
        }
        vocab.insert("<|endoftext|>".to_owned(), json!(258));
        json["added_tokens"] = json!([{
            "id": 258, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        }]);
        (ours, json)
    }

    fn import(dir: &std::path::Path, json: &Value) -> Result<Tokenizer, Failure> {
        let path = dir.join("foreign.json");
        std::fs::write(&path, json.to_string()).unwrap();
        std::fs::create_dir_all(dir.join("import")).unwrap();
        let bench = Bench::new(&dir.join("import")).external(&path, "foreign.json");
        bench.run::<ImportTokenizer>(&json!({"path": "foreign.json"}))?;
        Tokenizer::open(&bench.out("tokenizer"))
    }

    #[test]
    fn text_keeps_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, json) = foreign(dir.path());
        let imported = import(dir.path(), &json).unwrap();
        assert!(imported.is_fast());
        assert_eq!(imported.vocab_size(), 263);
        for text in ["to be <|endoftext|> that's", "naïve 日本 🦀", "\n\n x  y", ""] {
            let ids = imported.encode(text).unwrap();
            assert_eq!(ids, ours.encode(text).unwrap());
            assert_eq!(ids, imported.encode_by_definition(text).unwrap());
            assert_eq!(imported.decode(&ids).unwrap(), text);
        }
    }

    #[test]
    fn what_cannot_be_taken_over_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut json) = foreign(dir.path());
        json["model"]["vocab"]["<|sep|>"] = json!(259);
        let error = import(dir.path(), &json).err().unwrap();
        assert!(error.message.contains("a token `<|sep|>` with another id"), "{error}");
        // Ids with a gap, near and far.
        for id in [300, u64::from(u32::MAX) - 4] {
            let (_, mut json) = foreign(dir.path());
            json["model"]["vocab"]["beyond"] = json!(id);
            let error = import(dir.path(), &json).err().unwrap();
            let wanted = format!("has 264 tokens, but ids up to {}: renumber", id + 4);
            assert!(error.message.contains(&wanted), "{error}");
        }
        let error = import(dir.path(), &json!({"model": {}})).err().unwrap();
        assert!(error.message.contains("no vocabulary by token"), "{error}");
    }

    /// One of ours comes back as it is.
    #[test]
    fn our_own_are_not_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, _) = foreign(dir.path());
        let bytes = std::fs::read(dir.path().join("out/tokenizer").join(FILE)).unwrap();
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let imported = import(dir.path(), &json).unwrap();
        assert_eq!(imported.vocab_size(), ours.vocab_size());
        assert_eq!(imported.encode("to be").unwrap(), ours.encode("to be").unwrap());
    }
}
