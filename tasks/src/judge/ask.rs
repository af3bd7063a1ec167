//! Asks many questions at a time, and never one again whose answer is there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use engine::digest::Digest;
use engine::task::{Context, Failure, Journal};
use serde::{Deserialize, Serialize};

use super::Params;
use super::client::{self, Answer, Client};
use super::prompts::{Measure, Verdict};

/// Times that a question is asked until its answer can be read.
const READINGS_MAX: u64 = 3;
/// Time between two looks at the cancel token while answers are awaited.
const GLANCE: Duration = Duration::from_millis(50);

/// A question about a document.
pub(super) struct Question {
    pub(super) measure: Measure,
    pub(super) text: String,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Judged {
    /// Nothing when no answer could be read.
    pub(super) verdict: Option<Verdict>,
    /// The last answer, as it was.
    pub(super) answer: String,
}

/// A line of the journal: an answer under the digest of its request.
#[derive(Serialize, Deserialize)]
struct Entry {
    request: Digest,
    answer: String,
    tokens: u64,
}

/// What was asked and answered so far, in this attempt and before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Answers.
    pub answers: u64,
    /// Tokens of questions and answers, as far as the server told.
    pub tokens: u64,
}

/// Known answers, and the journal that keeps them.
struct Kept {
    answers: BTreeMap<Digest, Answer>,
    journal: Journal,
    spent: Spent,
    /// Requests that have no answer yet; each may become one.
    in_flight: u64,
}

impl Kept {
    fn open(ctx: &Context) -> Result<Self, Failure> {
        let (lines, journal) = ctx.open_journal()?;
        let (mut answers, mut spent) = (BTreeMap::new(), Spent::default());
        for line in lines {
            let entry: Entry = serde_json::from_str(&line)
                .map_err(|error| Failure::permanent(format!("the journal of answers: {error}")))?;
            spent.answers += 1;
            spent.tokens += entry.tokens;
            answers.insert(entry.request, Answer { text: entry.answer, tokens: entry.tokens });
        }
        if spent.answers > 0 {
            ctx.info(format!("{} answers of an earlier attempt are there", spent.answers));
        }
        Ok(Self { answers, journal, spent, in_flight: 0 })
    }

    /// Ends a request: its answer, if there is one, is kept.
    fn end(&mut self, request: Digest, answer: Option<&Answer>) -> Result<(), Failure> {
        self.in_flight -= 1;
        answer.map_or(Ok(()), |answer| self.keep(request, answer))
    }

    fn keep(&mut self, request: Digest, answer: &Answer) -> Result<(), Failure> {
        let entry = Entry { request, answer: answer.text.clone(), tokens: answer.tokens };
        let line = serde_json::to_string(&entry)
            .map_err(|error| Failure::permanent(format!("an answer: {error}")))?;
        self.journal.append(&line)?;
        self.spent.answers += 1;
        self.spent.tokens += answer.tokens;
        self.answers.insert(request, answer.clone());
        Ok(())
    }

    /// Begins another request, if that is within the budget; [`Kept::end`] ends it.
    fn begin(&mut self, params: &Params) -> Result<(), Failure> {
        let over = |limit: Option<u64>, spent: u64| limit.is_some_and(|limit| spent >= limit);
        let (name, limit, spent) = if over(params.answers_max, self.spent.answers + self.in_flight)
        {
            ("answers_max", params.answers_max, self.spent.answers)
        } else if over(params.tokens_max, self.spent.tokens) {
            ("tokens_max", params.tokens_max, self.spent.tokens)
        } else {
            self.in_flight += 1;
            return Ok(());
        };
        let (limit, in_flight) = (limit.unwrap_or(0), self.in_flight);
        let message =
            format!("`{name}: {limit}` is spent: {spent} so far, {in_flight} answers under way");
        Err(Failure::permanent(message)
            .help(format!("raise `{name}` and run again; the answers so far are kept")))
    }
}

/// The request for a question's `reading`-th answer, and its digest.
fn request(params: &Params, question: &Question, reading: u64) -> (serde_json::Value, Digest) {
    let request = client::request(
        &params.model,
        &question.text,
        params.temperature,
        params.max_tokens,
        params.seed.wrapping_add(reading),
    );
    let digest = Digest::of(request.to_string().as_bytes());
    (request, digest)
}

/// Puts every question to the judge, in any order; what comes back has the questions' order.
///
/// # Errors
/// The first failure; answers that came before it are kept.
pub(super) fn ask_all(
    ctx: &Context,
    params: &Params,
    client: &Client,
    questions: &[Question],
) -> Result<(Vec<Judged>, Spent), Failure> {
    let kept = Mutex::new(Kept::open(ctx)?);
    let next = Mutex::new(0..questions.len());
    let mut judged: Vec<Option<Judged>> = vec![None; questions.len()];
    let mut failure: Option<Failure> = None;
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(params.concurrency as usize);
        for _ in 0..params.concurrency {
            let (sender, next, kept) = (sender.clone(), &next, &kept);
            scope.spawn(move || {
                loop {
                    let index = lock(next).next();
                    let Some(index) = index else { return };
                    let result = one(ctx, params, client, &questions[index], kept);
                    if sender.send((index, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut n_done = 0;
        loop {
            let (index, result) = match receiver.recv_timeout(GLANCE) {
                Ok(one) => one,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    if ctx.check_cancelled().is_err() {
                        client.shutdown();
                    }
                    continue;
                }
            };
            match result {
                Ok(one) => judged[index] = Some(one),
                Err(error) => {
                    failure.get_or_insert(error);
                    // Nothing new is begun; what is under way is still kept.
                    *lock(&next) = 0..0;
                }
            }
            n_done += 1;
            ctx.progress(n_done, questions.len() as u64, "questions");
        }
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    let spent = lock(&kept).spent;
    let judged = judged.into_iter().map(|one| one.expect("every question came back"));
    Ok((judged.collect(), spent))
}

fn one(
    ctx: &Context,
    params: &Params,
    client: &Client,
    question: &Question,
    kept: &Mutex<Kept>,
) -> Result<Judged, Failure> {
    let mut last = String::new();
    for reading in 0..READINGS_MAX {
        let (request, digest) = request(params, question, reading);
        let known = lock(kept).answers.get(&digest).cloned();
        let answer = if let Some(answer) = known {
            answer
        } else {
            ctx.check_cancelled()?;
            lock(kept).begin(params)?;
            let answer = client.ask(&request);
            lock(kept).end(digest, answer.as_ref().ok())?;
            answer?
        };
        if let Some(verdict) = question.measure.read(&answer.text) {
            return Ok(Judged { verdict: Some(verdict), answer: answer.text });
        }
        last = answer.text;
    }
    Ok(Judged { verdict: None, answer: last })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
