//! Asks a server with the interface of `OpenAI`, and again when it stumbles.

use std::time::Duration;

use engine::digest::Digest;
use engine::task::{CancelToken, Failure};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest pause that a server can ask for.
const PAUSE_MAX: Duration = Duration::from_mins(1);
/// Time between two looks at the cancel token.
const GLANCE: Duration = Duration::from_millis(50);
/// Longest wait for a connection, which nothing can cut short.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Most bytes of an answer.
const BODY_BYTES_MAX: u64 = 4 << 20;

/// A server, and how patiently it is asked.
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    /// What stands behind `Authorization: Bearer`; never shown.
    key: Option<String>,
    attempts_max: u32,
    backoff: Duration,
    cancel: CancelToken,
}

/// What a server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) text: String,
    /// Tokens of question and answer together, as far as the server tells.
    pub(super) tokens: u64,
}

/// Why a request has no answer.
enum Trouble {
    /// Asking again can help; perhaps after a pause that the server names.
    Passing { what: String, pause: Option<Duration> },
    /// Asking again cannot help.
    Lasting(String),
}

/// The part of an answer that matters here.
#[derive(Deserialize)]
struct Reply {
    choices: Vec<ReplyChoice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct ReplyChoice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    total_tokens: u64,
}

impl Client {
    pub(super) fn new(
        base_url: &str,
        key: Option<String>,
        timeout: Duration,
        attempts_max: u32,
        backoff: Duration,
        cancel: CancelToken,
    ) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .timeout_connect(Some(timeout.min(CONNECT_MAX)))
            // A status is an answer here: which ones are worth another try is decided below.
            .http_status_as_error(false)
            .build();
        let url = format!("{}/chat/completions", base_url.trim_end_matches('/'));
        Self { agent: config.into(), url, key, attempts_max, backoff, cancel }
    }

    /// Ends what waits for an answer, and whatever is asked from now on.
    pub(super) fn shutdown(&self) {
        self.agent.clone().shutdown();
    }

    /// The answer to a request.
    ///
    /// # Errors
    /// Cancelled when the run stops; transient when the server stumbled at every attempt; permanent when it refuses.
    pub(super) fn ask(&self, request: &Value) -> Result<Answer, Failure> {
        let body = request.to_string();
        let mut pause = self.backoff;
        for attempt in 1..=self.attempts_max {
            match self.once(&body) {
                Ok(answer) => return Ok(answer),
                Err(_) if self.cancel.is_cancelled() => return Err(Failure::cancelled()),
                Err(Trouble::Lasting(what)) => return Err(self.refused(&what)),
                Err(Trouble::Passing { what, .. }) if attempt == self.attempts_max => {
                    let message = format!("`{}`: {what}, {attempt} times", self.url);
                    return Err(Failure::transient(message));
                }
                Err(Trouble::Passing { pause: asked, .. }) => {
                    self.wait(asked.unwrap_or(pause + jitter(&body, attempt, pause)))?;
                    pause = (2 * pause).min(PAUSE_MAX);
                }
            }
        }
        unreachable!("`check` asks for at least one attempt")
    }

    fn refused(&self, what: &str) -> Failure {
        let failure = Failure::permanent(format!("`{}`: {what}", self.url));
        if what.starts_with("401") || what.starts_with("403") {
            return failure.help("set `api_key_env` to the environment variable with the key");
        }
        failure
    }

    fn once(&self, body: &str) -> Result<Answer, Trouble> {
        let passing = |what: String| Trouble::Passing { what, pause: None };
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body).map_err(|error| match error {
            ureq::Error::BadUri(what) => Trouble::Lasting(what),
            error => passing(error.to_string()),
        })?;
        let status = response.status().as_u16();
        let pause = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(PAUSE_MAX));
        let text = response
            .body_mut()
            .with_config()
            .limit(BODY_BYTES_MAX)
            .read_to_string()
            .map_err(|error| passing(error.to_string()))?;
        // A server may show the key that it was sent; here it would get into messages and files.
        let text = match self.key.as_deref() {
            Some(key) if !key.is_empty() => text.replace(key, "…"),
            _ => text,
        };
        match status {
            200..=299 => {}
            408 | 409 | 429 | 500..=599 => {
                return Err(Trouble::Passing { what: format!("status {status}"), pause });
            }
            _ => return Err(Trouble::Lasting(format!("{status}: {}", excerpt(&text)))),
        }
        let reply: Reply = serde_json::from_str(&text)
            .map_err(|error| passing(format!("no answer but `{}` ({error})", excerpt(&text))))?;
        let tokens = reply.usage.map_or(0, |usage| usage.total_tokens);
        let choice = reply.choices.into_iter().next();
        let message =
            choice.ok_or_else(|| passing("an answer without choices".to_owned()))?.message;
        Ok(Answer { text: message.content.unwrap_or_default(), tokens })
    }

    fn wait(&self, pause: Duration) -> Result<(), Failure> {
        let mut left = pause;
        while !left.is_zero() {
            if self.cancel.is_cancelled() {
                return Err(Failure::cancelled());
            }
            let step = left.min(GLANCE);
            std::thread::sleep(step);
            left -= step;
        }
        Ok(())
    }
}

/// Up to a fourth of the pause, so that requests refused together do not come back together.
fn jitter(body: &str, attempt: u32, pause: Duration) -> Duration {
    let digest = Digest::of(format!("{attempt} {body}").as_bytes());
    pause.mul_f64(f64::from(digest.as_bytes()[0]) / 255.0 / 4.0)
}

/// The start of a server's answer, for a message.
fn excerpt(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}

/// A request for the answer to one question.
pub(super) fn request(
    model: &str,
    question: &str,
    temperature: f64,
    max_tokens: u32,
    seed: u64,
) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
    })
}
