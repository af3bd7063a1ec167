//! The fast path against the `tokenizers` crate.

use std::sync::LazyLock;

use engine::task::testbed::Bench;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::bench::text::Texts;
use crate::corpus::tests::write_texts;
use crate::train_tokenizer::TrainTokenizer;

const TEXTS: [&str; 5] = [
    "It's the kind of thing they'd say: we'll see what it's like, don't we?",
    "fn main() {\n    let x = vec![1, 22, 333];\n    println!(\"{x:?}\");\n}\n\n\n",
    "日本語のテキストと한국어 텍스트, and a naïve café — “quoted” …",
    "🦀🦀🦀 👩‍👩‍👧‍👦 \u{a0}\u{2003} x\u{200d}y 12345 ½ Ⅷ ٣٤",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbb =====-----=====",
];

static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let made = Texts::new(3);
    let texts: Vec<String> = (0..60)
        .map(|i| format!("{} {}", TEXTS[i % TEXTS.len()], made.mixed(i as u64, 2000)))
        .collect();
    write_texts(&dir.path().join("corpus"), texts.iter().map(String::as_str));
    let bench = Bench::new(dir.path()).input("corpus", &dir.path().join("corpus"));
    bench.run::<TrainTokenizer>(&json!({"vocab_size": 900})).unwrap();
    Tokenizer::open(&bench.out("tokenizer")).unwrap()
});

fn check(text: &str) {
    let fast = TRAINED.encode(text).unwrap();
    assert_eq!(fast, TRAINED.encode_by_definition(text).unwrap(), "{text:?}");
    assert_eq!(TRAINED.decode(&fast).unwrap(), text);
}

#[test]
fn ids_are_those_of_the_crate() {
    assert!(TRAINED.is_fast());
    // Twice: the second time through the cache.
    for text in TEXTS.into_iter().chain(TEXTS).chain(["", " ", "\n", "<|eos|>", "a<|sep|>b"]) {
        check(text);
    }
    // Words longer than the cache and the scan take.
    for n in [20, 30, 200, 5000] {
        check(&"日本語テキスト".repeat(n));
        check(&"ab".repeat(n));
        check(&" \n".repeat(n));
    }
}

proptest! {
    #[test]
    fn any_text_has_the_ids_of_the_crate(text in any::<String>()) {
        check(&text);
    }

    #[test]
    fn words_of_the_sample_have_the_ids_of_the_crate(
        pieces in proptest::collection::vec(0_usize..1000, 0..30)
    ) {
        let words: Vec<&str> = TEXTS.iter().flat_map(|text| text.split_inclusive(' ')).collect();
        let text: String = pieces.iter().map(|&piece| words[piece % words.len()]).collect();
        check(&text);
    }

    #[test]
    fn any_bytes_survive(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let encoder = TRAINED.encoder.as_ref().unwrap();
        let mut ids = Vec::new();
        encoder.encode(&bytes, &mut ids);
        prop_assert_eq!(encoder.decode(&ids), bytes);
    }
}
