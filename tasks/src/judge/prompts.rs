//! What the judge is asked, in our words, and how its answers are read.
//!
//! # Source
//! The questions, answer formats and polarity are those of arXiv 2509.15248, appendix B: for copying,
//! repetition and errors of fact an affirmed answer is bad, for relevance it is good.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that a judge is asked about a document.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Whether a sentence or pattern occurs more than three times.
    Repetition,
    /// Whether its facts can be checked, and hold.
    Factuality,
    /// Whether it is about what its seed is about.
    Relevance,
    /// Whether it is a near copy of its seed.
    Copying,
    /// What it has in common with its seed, and how it was made from it.
    Concepts,
}

impl Measure {
    /// The name in params and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Repetition => "repetition",
            Self::Factuality => "factuality",
            Self::Relevance => "relevance",
            Self::Copying => "copying",
            Self::Concepts => "concepts",
        }
    }

    /// Whether it takes the document's seed.
    pub(super) fn needs_seed(self) -> bool {
        matches!(self, Self::Relevance | Self::Copying | Self::Concepts)
    }

    /// The question, with `{document}` and, where it takes the seed, `{seed}` to fill in.
    pub(super) fn prompt(self) -> &'static str {
        match self {
            Self::Repetition => REPETITION,
            Self::Factuality => FACTUALITY,
            Self::Relevance => RELEVANCE,
            Self::Copying => COPYING,
            Self::Concepts => CONCEPTS,
        }
    }

    /// Reads an answer; nothing when it is not in the format asked for.
    pub(super) fn read(self, answer: &str) -> Option<Verdict> {
        match self {
            Self::Factuality => factuality(answer),
            Self::Concepts => concepts(answer),
            Self::Repetition | Self::Relevance | Self::Copying => last_word(answer),
        }
    }
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    /// `Yes` or `No` in the last line.
    Answer {
        /// Whether it is `Yes`.
        yes: bool,
    },
    /// Whether the facts can be checked, and hold.
    Facts {
        /// What the judge found.
        finding: Finding,
    },
    /// What the documents have in common.
    Concept(Concept),
}

/// What the judge found about a document's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Opinions, or things that nobody can check.
    Undefined,
    /// Nothing wrong.
    NoError,
    /// Something wrong.
    Error,
}

/// What a document and its seed have in common (the paper's tables 3 to 6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concept {
    /// The seed in a few words.
    pub seed_summary: String,
    /// What both are about.
    pub concept: String,
    /// The document in a few words.
    pub document_summary: String,
    /// Field of the concept, such as `health`.
    pub domain: String,
    /// Kind of concept, such as `method`.
    pub category: String,
    /// How the document relates to the seed, such as `causal`.
    pub relation: String,
}

fn last_word(answer: &str) -> Option<Verdict> {
    let last = answer.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    match last.to_ascii_lowercase().as_str() {
        "yes" => Some(Verdict::Answer { yes: true }),
        "no" => Some(Verdict::Answer { yes: false }),
        _ => None,
    }
}

/// The first of three marks. They are no XML: one has a blank in its name.
fn factuality(answer: &str) -> Option<Verdict> {
    let marks = [
        ("<not well defined></not well defined>", Finding::Undefined),
        ("<well defined>True</well defined>", Finding::NoError),
        ("<well defined>False</well defined>", Finding::Error),
    ];
    let found = marks.iter().filter_map(|(mark, finding)| Some((answer.find(mark)?, *finding)));
    found.min_by_key(|(at, _)| *at).map(|(_, finding)| Verdict::Facts { finding })
}

fn concepts(answer: &str) -> Option<Verdict> {
    let tag = |name: &str| -> Option<String> {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        (!text.is_empty()).then_some(text)
    };
    Some(Verdict::Concept(Concept {
        seed_summary: tag("seed_summary")?,
        concept: tag("concept")?,
        document_summary: tag("document_summary")?,
        domain: tag("domain")?.to_lowercase(),
        category: tag("category")?.to_lowercase(),
        relation: tag("relation")?.to_lowercase(),
    }))
}

const REPETITION: &str = "\
Does the text below have a repetition problem? It has one when a sentence or a pattern of text comes back \
more than three times: the same line over and over, or sentence after sentence of one build with a word \
changed, such as a list that never gets anywhere. Headings, code and ordinary lists are no problem.

## Text
{document}

Give your reasons first. Then write one more line that holds a single word and nothing else, no full stop \
either: Yes when the text has a repetition problem, No when it has none.";

const FACTUALITY: &str = "\
Judge the facts of the document below.

First decide whether they can be judged at all. They cannot when the document is mostly opinion or feeling, \
or when it is about persons, places or things that are private, unknown or made up, so that nobody could \
look them up. They can when it speaks of known persons, events, places, works or matters of general \
knowledge.

Answer with exactly one of these three marks:
<not well defined></not well defined> when the facts cannot be judged;
<well defined>True</well defined> when they can, and nothing in the document is wrong;
<well defined>False</well defined> when they can, and something in the document is wrong.

## Document
{document}";

const RELEVANCE: &str = "\
Do the two texts below belong together? They do when they are about the same subject, event, person, place \
or thing. They do not when their subjects have nothing to do with each other.

## Text 1
{seed}

## Text 2
{document}

Give your reasons first. Then write one more line that holds a single word and nothing else, no full stop \
either: Yes when they belong together, No when they do not.";

const COPYING: &str = "\
Is one of the two texts below a near copy of the other? A near copy has the same words in the same order, \
apart from blanks, line breaks and punctuation. Texts about one subject in different words, or in another \
style, are no copies.

## Text 1
{seed}

## Text 2
{document}

Give your reasons first. Then write one more line that holds a single word and nothing else, no full stop \
either: Yes when one is a near copy of the other, No when neither is.";

const CONCEPTS: &str = "\
The second document below was written from the first one: somebody took a concept out of the first, and \
wrote the second about that concept. Find out which concept it was, and how the second document was made \
of it. Say of the second document above all where it differs from the first.

## First document
{seed}

## Second document
{document}

Answer in this form, each part in at most ten words; domain, category and relation in one or two words:
<seed_summary>what the first document is</seed_summary>
<concept>the concept</concept>
<document_summary>what the second document makes of it</document_summary>
<domain>the field of the concept, such as culture, health, technology, politics</domain>
<category>what kind of concept it is, such as method, event, comparison, analysis, phenomenon</category>
<relation>how the second stands to the first, such as scope, perspective, function, cause, contrast</relation>";

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Measure; 5] = [
        Measure::Repetition,
        Measure::Factuality,
        Measure::Relevance,
        Measure::Copying,
        Measure::Concepts,
    ];

    #[test]
    fn prompts_have_the_places_to_fill() {
        for measure in ALL {
            assert!(measure.prompt().contains("{document}"), "{}", measure.name());
            assert_eq!(measure.prompt().contains("{seed}"), measure.needs_seed());
        }
    }

    #[test]
    fn yes_and_no_stand_alone_in_the_last_line() {
        let read = |answer: &str| Measure::Relevance.read(answer);
        assert_eq!(read("They share a subject.\nYes"), Some(Verdict::Answer { yes: true }));
        assert_eq!(read("Both are about tea.\n\n no \n\n"), Some(Verdict::Answer { yes: false }));
        for wrong in ["Yes.", "", "\n", "Yes, they do", "Yes\nI think", "maybe"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_mark_counts() {
        let read = |answer: &str| Measure::Factuality.read(answer);
        let facts = |finding| Some(Verdict::Facts { finding });
        assert_eq!(read("<well defined>True</well defined>"), facts(Finding::NoError));
        assert_eq!(
            read(
                "So: <well defined>False</well defined> rather than <not well defined></not well defined>"
            ),
            facts(Finding::Error)
        );
        assert_eq!(read("<not well defined></not well defined>"), facts(Finding::Undefined));
        assert_eq!(read("<well defined>true</well defined>"), None);
    }

    #[test]
    fn concepts_have_six_parts() {
        let answer =
            "<seed_summary>coffee shops</seed_summary>\n<concept> coffee +  San Diego </concept>
            <document_summary>coffee culture</document_summary><domain>Culture</domain>
            <category>Comparison</category><relation>Scope</relation>";
        let Some(Verdict::Concept(found)) = Measure::Concepts.read(answer) else { panic!() };
        assert_eq!(found.concept, "coffee + San Diego");
        assert_eq!((found.domain.as_str(), found.relation.as_str()), ("culture", "scope"));
        assert_eq!(Measure::Concepts.read(&answer.replace("<domain>", "")), None);
    }
}
