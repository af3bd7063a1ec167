//! How each genre puts a concept into words.
//!
//! A template is words between single spaces with the slots `{N}` (the name, two words), `{A}` (an
//! attribute) and `{V}` (its value). Every text can be read in one way only: its first sentence names
//! the genre, and inside a genre no sentence is the beginning of another.

use serde::{Deserialize, Serialize};

use super::Style;

/// How documents of one kind are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genre {
    /// What the genre is called.
    pub name: String,
    /// First sentences; each names the concept once.
    pub openings: Vec<String>,
    /// Sentences that state one fact.
    pub facts: Vec<String>,
    /// The sentence that restates facts stated before, as many as it has slots for.
    pub recap: String,
    /// Last sentences; none in brief documents.
    pub closings: Vec<String>,
    /// The sentence without facts, with the slot `{W}` for some words; none in brief documents.
    pub aside: Option<String>,
}

impl Genre {
    fn new(name: &str, openings: &[&str], facts: &[&str], recap: &str) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            name: name.to_owned(),
            openings: owned(openings),
            facts: owned(facts),
            recap: recap.to_owned(),
            closings: Vec::new(),
            aside: None,
        }
    }

    fn rich(mut self, closings: [&str; 2]) -> Self {
        self.closings = closings.map(str::to_owned).to_vec();
        self.aside = Some("meanwhile {W} .".to_owned());
        self
    }

    /// Every template.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        let lists = self.openings.iter().chain(&self.facts).chain(&self.closings);
        lists.chain([&self.recap]).chain(&self.aside).map(String::as_str)
    }
}

/// The genres of a style.
pub(super) fn genres(style: Style) -> Vec<Genre> {
    match style {
        Style::Brief => brief(),
        Style::Rich => rich(),
    }
}

/// Few words, the attribute always before its value, and the name in the opening and the recap only:
/// what a small model needs to learn to copy facts from one document to another.
fn brief() -> Vec<Genre> {
    let facts = ["{A} is {V} .", "with {A} {V} .", "its {A} , {V} ."];
    let catalog =
        Genre::new("catalog", &["{N} :", "item {N} :"], &facts, "once more {N} {A} shows {V} .");
    let facts = ["{A} stays {V} ;", "now {A} reads {V} ;", "their {A} turned {V} ;"];
    let openings = ["seen today {N} ;", "word from {N} ;"];
    let report = Genre::new("report", &openings, &facts, "checked {N} {A} was {V} ;");
    let facts = ["you like {A} {V} !", "the {A} looks {V} !", "here {A} means {V} !"];
    let openings = ["hello {N} !", "thinking of {N} !"];
    let letter = Genre::new("letter", &openings, &facts, "recall {N} {A} makes {V} !");
    vec![catalog, report, letter]
}

/// Longer sentences; about half of the facts name the concept, and some put the value first.
fn rich() -> Vec<Genre> {
    const RECAP: &str = "to repeat , {A} is {V} and {A} is {V} .";
    let openings = ["an entry on {N} .", "{N} in brief .", "what is known of {N} ."];
    let facts = [
        "the {A} of {N} is {V} .",
        "{V} is its {A} .",
        "as {A} , {N} has {V} .",
        "its {A} is {V} .",
    ];
    let almanac = Genre::new("almanac", &openings, &facts, RECAP)
        .rich(["the entry ends here .", "more is in the almanac ."]);
    let openings = [
        "the gazette writes about {N} .",
        "a visitor came back from {N} today .",
        "again {N} fills the gazette .",
    ];
    let facts = [
        "people at {N} told us that the {A} is still {V} .",
        "the {A} there has been {V} , we hear .",
        "{N} holds on to {V} as {A} , witnesses agree .",
        "nobody asked for a new {A} , so {V} remains .",
    ];
    let gazette = Genre::new("gazette", &openings, &facts, RECAP)
        .rich(["the gazette follows this .", "so much for today ."]);
    let openings = [
        "my dear , greetings from {N} .",
        "at last i am in {N} , dear friend .",
        "i am writing to you from {N} .",
    ];
    let facts = [
        "you should see the {A} here , it is {V} .",
        "all of {N} talks about {V} , our {A} .",
        "when i wanted a {A} they gave me {V} .",
        "{V} is the {A} that we found at {N} .",
    ];
    let letter = Genre::new("letter", &openings, &facts, RECAP)
        .rich(["with love from me .", "please write soon ."]);
    vec![almanac, gazette, letter]
}
