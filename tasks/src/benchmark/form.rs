//! The questions of each benchmark, word for word as lm-evaluation-harness 0.4.13 asks them.
//!
//! # Source
//! `EleutherAI/lm-evaluation-harness`, `lm_eval/tasks/{arc,lambada,mmlu,pile,sciq,triviaqa,webqs,winogrande}`.
//! One departure: an example of `webqs` shows its first answer, where that version stops with an error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// Perplexity of whole texts (`text`).
    Openwebtext2,
    /// The last word of a passage (`text`).
    Lambada,
    /// Four choices by letter (`question`, `choices`, `answer`, `subject`).
    Mmlu,
    /// The same items; perplexity of examples, question and answer as one text, as the paper has it.
    MmluText,
    /// Choices (`question`, `choices`, `answerKey`).
    ArcChallenge,
    /// The same, easier.
    ArcEasy,
    /// Choices (`question`, `correct_answer`, `distractor1` to `distractor3`, `support`).
    Sciq,
    /// Two options in one sentence (`sentence`, `option1`, `option2`, `answer`).
    Winogrande,
    /// Open questions (`question`, `answer.aliases`).
    Triviaqa,
    /// Questions whose answers are compared with the likeliest continuation (`question`, `answers`).
    Webqs,
}

impl Name {
    /// The name in a pipeline.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Openwebtext2 => "openwebtext2",
            Self::Lambada => "lambada",
            Self::Mmlu => "mmlu",
            Self::MmluText => "mmlu_text",
            Self::ArcChallenge => "arc_challenge",
            Self::ArcEasy => "arc_easy",
            Self::Sciq => "sciq",
            Self::Winogrande => "winogrande",
            Self::Triviaqa => "triviaqa",
            Self::Webqs => "webqs",
        }
    }

    /// Examples before each question, as in the paper (arXiv 2509.15248, section A.1).
    pub(super) fn shots(self) -> usize {
        match self {
            Self::Mmlu | Self::MmluText => 5,
            Self::Triviaqa | Self::Webqs => 1,
            _ => 0,
        }
    }

    /// Whether examples are the first ones of the question's subject, rather than drawn.
    pub(super) fn has_fixed_examples(self) -> bool {
        matches!(self, Self::Mmlu | Self::MmluText)
    }
}

/// What is asked of the model about one item.
#[derive(Debug, PartialEq)]
pub(super) enum Form {
    /// The likelihood of each (context, continuation); `choices` are what is chosen from.
    Choices { pairs: Vec<(String, String)>, choices: Vec<String>, gold: Vec<usize> },
    /// The likelihood of one continuation.
    Word { context: String, continuation: String },
    /// The likelihood of a whole text, and of the answer that ends it.
    Text { text: String, answer: Option<(String, String)> },
    /// The likeliest continuation up to a stop.
    Open { prompt: String, answers: Vec<String> },
}

/// Characters that end an open answer.
pub(super) const STOPS: [char; 3] = ['\n', '.', ','];

/// The letters of MMLU's choices.
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// An item as the dataset has it.
pub(super) struct Item<'a>(pub(super) &'a Value);

impl<'a> Item<'a> {
    fn text(&self, key: &str) -> Result<&'a str, String> {
        let value = self.0.get(key).ok_or_else(|| format!("it has no `{key}`"))?;
        value.as_str().ok_or_else(|| format!("its `{key}` is no text"))
    }

    fn texts(value: Option<&Value>, key: &str) -> Result<Vec<String>, String> {
        let list = value.and_then(Value::as_array);
        let texts = list
            .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_owned)).collect());
        texts.ok_or_else(|| format!("its `{key}` is no list of texts"))
    }

    /// The subject, for examples of the same.
    pub(super) fn subject(&self) -> Result<&'a str, String> {
        self.text("subject")
    }

    fn choices(&self) -> Result<Vec<String>, String> {
        Self::texts(self.0.pointer("/choices/text"), "choices.text")
    }

    fn arc_gold(&self) -> Result<usize, String> {
        let labels = Self::texts(self.0.pointer("/choices/label"), "choices.label")?;
        let key = self.text("answerKey")?;
        let found = labels.iter().position(|label| label == key);
        found.ok_or_else(|| format!("its `answerKey` is `{key}`, which is no label"))
    }

    fn sciq_choices(&self) -> Result<Vec<String>, String> {
        ["distractor1", "distractor2", "distractor3", "correct_answer"]
            .iter()
            .map(|key| self.text(key).map(str::to_owned))
            .collect()
    }

    fn mmlu_question(&self) -> Result<String, String> {
        let choices = Self::texts(self.0.get("choices"), "choices")?;
        let [a, b, c, d] = &choices[..] else {
            return Err(format!("it has {} `choices`, not 4", choices.len()));
        };
        let question = self.text("question")?.trim();
        Ok(format!("{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"))
    }

    fn mmlu_gold(&self) -> Result<usize, String> {
        let answer = self.0.get("answer").and_then(Value::as_u64);
        let gold = answer.and_then(|answer| usize::try_from(answer).ok()).filter(|&gold| gold < 4);
        gold.ok_or_else(|| "its `answer` is no number from 0 to 3".to_owned())
    }

    /// The two beginnings of the sentence and how it goes on.
    fn winogrande(&self) -> Result<([String; 2], &'a str), String> {
        let sentence = self.text("sentence")?;
        let (before, after) =
            sentence.split_once('_').ok_or("its `sentence` has no `_`".to_owned())?;
        let option = |key| Ok::<_, String>(format!("{before}{}", self.text(key)?));
        Ok(([option("option1")?, option("option2")?], after.trim()))
    }

    /// Accepted answers in order, without those that another one begins.
    fn webqs_answers(&self) -> Result<Vec<String>, String> {
        let mut answers = Self::texts(self.0.get("answers"), "answers")?;
        answers.sort_unstable();
        let mut kept: Vec<String> = Vec::new();
        for answer in answers {
            if kept.last().is_none_or(|last| !answer.starts_with(last.as_str())) {
                kept.push(answer);
            }
        }
        if kept.is_empty() { Err("it has no `answers`".to_owned()) } else { Ok(kept) }
    }

    fn aliases(&self) -> Result<Vec<String>, String> {
        let aliases = Self::texts(self.0.pointer("/answer/aliases"), "answer.aliases")?;
        if aliases.is_empty() { Err("it has no `answer.aliases`".to_owned()) } else { Ok(aliases) }
    }

    /// The question as it stands before an answer.
    fn question(&self, name: Name) -> Result<String, String> {
        Ok(match name {
            Name::Openwebtext2 | Name::Lambada | Name::Winogrande => {
                return Err("this benchmark asks no questions".to_owned());
            }
            Name::Mmlu | Name::MmluText => self.mmlu_question()?,
            Name::ArcChallenge | Name::ArcEasy | Name::Webqs => {
                format!("Question: {}\nAnswer:", self.text("question")?)
            }
            Name::Sciq => {
                let support = self.text("support")?.trim_start();
                format!("{support}\nQuestion: {}\nAnswer:", self.text("question")?)
            }
            // The second question mark is lm-evaluation-harness'.
            Name::Triviaqa => format!("Question: {}?\nAnswer:", self.text("question")?),
        })
    }

    /// What an example shows as the answer.
    fn shown_answer(&self, name: Name) -> Result<String, String> {
        Ok(match name {
            Name::Mmlu | Name::MmluText => LETTERS[self.mmlu_gold()?].to_owned(),
            Name::ArcChallenge | Name::ArcEasy => self.choices()?[self.arc_gold()?].clone(),
            Name::Sciq => self.text("correct_answer")?.to_owned(),
            Name::Triviaqa => self.aliases()?.swap_remove(0),
            Name::Webqs => self.webqs_answers()?.swap_remove(0),
            Name::Openwebtext2 | Name::Lambada | Name::Winogrande => self.question(name)?,
        })
    }

    /// The item as an example before others.
    ///
    /// # Errors
    /// What the item lacks.
    pub(super) fn example(&self, name: Name) -> Result<String, String> {
        Ok(format!("{} {}\n\n", self.question(name)?, self.shown_answer(name)?))
    }

    /// What is asked about the item after `examples`.
    ///
    /// # Errors
    /// What the item lacks.
    pub(super) fn form(&self, name: Name, examples: &str) -> Result<Form, String> {
        let prompt = || Ok::<_, String>(format!("{examples}{}", self.question(name)?));
        let among = |choices: Vec<String>, gold: Vec<usize>| {
            let prompt = prompt()?;
            let pairs = choices.iter().map(|choice| (prompt.clone(), format!(" {choice}")));
            Ok(Form::Choices { pairs: pairs.collect(), choices, gold })
        };
        match name {
            Name::Openwebtext2 => {
                Ok(Form::Text { text: self.text("text")?.to_owned(), answer: None })
            }
            Name::Lambada => {
                let text = self.text("text")?;
                let (context, word) =
                    text.rsplit_once(' ').ok_or("its `text` is one word".to_owned())?;
                Ok(Form::Word { context: context.to_owned(), continuation: format!(" {word}") })
            }
            Name::Mmlu => among(LETTERS.map(str::to_owned).to_vec(), vec![self.mmlu_gold()?]),
            Name::MmluText => {
                let (context, letter) = (prompt()?, LETTERS[self.mmlu_gold()?]);
                let text = format!("{context} {letter}");
                Ok(Form::Text { text, answer: Some((context, format!(" {letter}"))) })
            }
            Name::ArcChallenge | Name::ArcEasy => among(self.choices()?, vec![self.arc_gold()?]),
            Name::Sciq => among(self.sciq_choices()?, vec![3]),
            Name::Webqs => {
                let answers = self.webqs_answers()?;
                let gold = (0..answers.len()).collect();
                among(answers, gold)
            }
            Name::Winogrande => {
                let (starts, rest) = self.winogrande()?;
                let gold = match self.text("answer")? {
                    "1" => 0,
                    "2" => 1,
                    other => return Err(format!("its `answer` is `{other}`, not `1` or `2`")),
                };
                let pairs =
                    starts.iter().map(|start| (start.clone(), format!(" {rest}"))).collect();
                Ok(Form::Choices { pairs, choices: starts.to_vec(), gold: vec![gold] })
            }
            Name::Triviaqa => Ok(Form::Open { prompt: prompt()?, answers: self.aliases()? }),
        }
    }
}

/// The sentence before MMLU's examples.
pub(super) fn mmlu_description(subject: &str) -> String {
    let subject = subject.replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
}

/// What a generated answer becomes before it is compared: what precedes the first stop, trimmed.
pub(super) fn cut_answer(text: &str) -> &str {
    text.split(STOPS).next().unwrap_or_default().trim()
}

/// An answer without case and punctuation.
pub(super) fn normalized(answer: &str) -> String {
    answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect()
}
