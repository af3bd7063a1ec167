//! Objects in S3-compatible buckets as external files: `s3://bucket/prefix/*.jsonl.zst`.
//!
//! Objects are not read when a run is planned: the server's entity tag stands for the content in the
//! key, and every read asks for that tag (`If-Match`), so that a replaced object is an error and
//! never other content under an old key. What names account and server is in the environment
//! (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, …), never in a
//! pattern, and so in no ledger.
//!
//! The protocol is that of `object_store`. Its HTTP client would bring a second TLS stack and some
//! forty crates; requests go through the client that is already here instead.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
};
use serde::{Deserialize, Serialize};
use ureq::http::Request;

use super::content::{ExternalFile, Source};
use super::{Error, matcher, wildcard};

/// How patterns of objects start.
const SCHEME: &str = "s3://";
/// Bytes of a request for content; at most a few such blocks of a file are in memory.
pub(super) const BLOCK_BYTES: u64 = 8 << 20;
/// Blocks kept of an object that is read here and there: one for each column of a Parquet file that
/// is likely to be read.
const N_BLOCKS: usize = 8;
/// Most bytes of an answer. Lists are of a thousand names at most.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Whether a pattern means objects.
pub(super) fn is_url(pattern: &str) -> bool {
    pattern.starts_with(SCHEME)
}

/// A bucket, open.
#[derive(Debug)]
struct Bucket {
    store: AmazonS3,
    name: String,
}

/// What names a version of an object.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Version {
    bucket: String,
    key: String,
    tag: String,
    size_bytes: u64,
}

/// A version of an object.
#[derive(Debug)]
pub(super) struct Object {
    bucket: Arc<Bucket>,
    path: Path,
    tag: String,
    pub(super) size_bytes: u64,
    /// Blocks by index, the latest used last.
    blocks: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
    replaced: AtomicBool,
}

/// Finds the objects that match `pattern`.
///
/// # Errors
/// When the pattern is malformed or matches nothing, or the server refuses.
pub(super) fn list(pattern: &str) -> Result<Vec<ExternalFile>, Error> {
    let malformed =
        |message: &str| Error::Pattern { pattern: pattern.to_owned(), message: message.to_owned() };
    let (bucket, key) = pattern[SCHEME.len()..].split_once('/').unwrap_or_default();
    if bucket.is_empty() || key.is_empty() {
        return Err(malformed("an object is `s3://BUCKET/KEY`"));
    }
    if bucket.contains(['@', ':']) {
        // Without the pattern: messages reach logs.
        let message = "credentials belong into the environment, not into a pattern".to_owned();
        return Err(Error::Pattern { pattern: format!("{SCHEME}…"), message });
    }
    let failed = |error: &object_store::Error| explain(pattern, error);
    let bucket = Arc::new(Bucket::open(bucket).map_err(|error| failed(&error))?);
    let no_match = || Error::NoMatch { pattern: pattern.to_owned(), missing: None };

    let base = wildcard(key).map_or(key, |at| &key[..at]).rfind('/').map_or(0, |slash| slash + 1);
    let (base, rest) = key.split_at(base);
    let parse = |key: &str| Path::parse(key).map_err(|error| malformed(&error.to_string()));
    let found: Vec<ObjectMeta> = if wildcard(rest).is_none() {
        let path = parse(key)?;
        match wait(bucket.store.head(&path)) {
            Ok(found) => vec![found],
            Err(object_store::Error::NotFound { .. }) => return Err(no_match()),
            Err(error) => return Err(failed(&error)),
        }
    } else {
        let prefix = parse(base.trim_end_matches('/'))?;
        let prefix = (!base.is_empty()).then_some(&prefix);
        wait(bucket.store.list(prefix).try_collect()).map_err(|error| failed(&error))?
    };
    let matcher = matcher(pattern, rest)?;
    let mut files = Vec::new();
    for meta in found {
        let name = meta.location.as_ref();
        let relative = name.strip_prefix(base).unwrap_or(name);
        if wildcard(rest).is_none() || matcher.is_match(relative) {
            files.push(bucket.file(&meta, relative)?);
        }
    }
    if files.is_empty() { Err(no_match()) } else { Ok(files) }
}

impl Bucket {
    fn open(name: &str) -> object_store::Result<Self> {
        // A stumbling server is asked again for some seconds here, and for as long as the node's
        // `retry` says by the engine.
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        };
        let retry = RetryConfig { backoff, max_retries: 5, retry_timeout: Duration::from_mins(1) };
        let store = AmazonS3Builder::from_env()
            .with_bucket_name(name)
            .with_http_connector(Http::new())
            .with_retry(retry)
            .build()?;
        Ok(Self { store, name: name.to_owned() })
    }

    fn file(self: &Arc<Self>, meta: &ObjectMeta, relative: &str) -> Result<ExternalFile, Error> {
        let url = format!("{SCHEME}{}/{}", self.name, meta.location);
        let Some(tag) = meta.e_tag.clone() else {
            let message = "the server gives it no entity tag, so a change could not be seen";
            return Err(Error::Object { url, message: message.to_owned(), help: None });
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"sbp object 1\n");
        hasher.update(tag.as_bytes());
        hasher.update(&meta.size.to_le_bytes());
        let object = Object::new(Arc::clone(self), meta.location.clone(), tag, meta.size);
        let digest = hasher.finalize().into();
        let (path, source) = (PathBuf::from(url), Source::Object(Arc::new(object)));
        Ok(ExternalFile::of(path, relative.to_owned(), digest, meta.size, source))
    }
}

impl Object {
    /// What names it.
    pub(super) fn version(&self) -> Version {
        let (bucket, key) = (self.bucket.name.clone(), self.path.to_string());
        Version { bucket, key, tag: self.tag.clone(), size_bytes: self.size_bytes }
    }

    /// The object that is named.
    ///
    /// # Errors
    /// When account and server are not in the environment as they should be.
    pub(super) fn of(version: Version) -> Result<Self, String> {
        let Version { bucket, key, tag, size_bytes } = version;
        let open = Bucket::open(&bucket).map_err(|error| scrubbed(&error))?;
        let path = Path::parse(key).map_err(|error| error.to_string())?;
        Ok(Self::new(Arc::new(open), path, tag, size_bytes))
    }

    fn new(bucket: Arc<Bucket>, path: Path, tag: String, size_bytes: u64) -> Self {
        let (blocks, replaced) = (Mutex::default(), AtomicBool::default());
        Self { bucket, path, tag, size_bytes, blocks, replaced }
    }

    /// Whether the server had another version when it was last asked.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Notes that another process found another version.
    pub(super) fn note_replaced(&self) {
        self.replaced.store(true, Ordering::Relaxed);
    }

    /// Block `index`, kept for the next that asks.
    pub(super) fn block(&self, index: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = blocks.iter().position(|(held, _)| *held == index);
        let entry = match known {
            Some(at) => blocks.remove(at),
            None => (index, Arc::new(self.fetch(index)?)),
        };
        if blocks.len() == N_BLOCKS {
            blocks.remove(0);
        }
        let block = Arc::clone(&entry.1);
        blocks.push(entry);
        Ok(block)
    }

    /// Asks for block `index`.
    pub(super) fn fetch(&self, index: u64) -> io::Result<Vec<u8>> {
        let range = index * BLOCK_BYTES..((index + 1) * BLOCK_BYTES).min(self.size_bytes);
        let n_bytes = range.end - range.start;
        let options = GetOptions::new().with_if_match(Some(self.tag.as_str()));
        let options = options.with_range(Some(range));
        let got =
            wait(async { self.bucket.store.get_opts(&self.path, options).await?.bytes().await });
        match got {
            Ok(bytes) if bytes.len() as u64 == n_bytes => Ok(bytes.into()),
            Ok(bytes) => {
                let message = format!("{} bytes came instead of {n_bytes}", bytes.len());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
            Err(object_store::Error::Precondition { .. }) => {
                self.note_replaced();
                let message = "it was replaced after the run was planned; run it again";
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
            Err(error) => {
                use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
                let kind = match error {
                    NotFound { .. } => io::ErrorKind::NotFound,
                    PermissionDenied { .. } | Unauthenticated { .. } => {
                        io::ErrorKind::PermissionDenied
                    }
                    // Which the engine may try again later.
                    _ => io::ErrorKind::TimedOut,
                };
                Err(io::Error::new(kind, scrubbed(&error)))
            }
        }
    }
}

/// What a server's refusal means for whoever wrote the pattern.
fn explain(url: &str, error: &object_store::Error) -> Error {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    let help = match error {
        PermissionDenied { .. } | Unauthenticated { .. } => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to an account that may list and read \
             the bucket, or AWS_SKIP_SIGNATURE=true for a public one"
        }
        _ => {
            "account and server come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and \
             AWS_ENDPOINT_URL"
        }
    };
    Error::Object { url: url.to_owned(), message: scrubbed(error), help: Some(help) }
}

/// What went wrong, without credentials: servers repeat key ids, and messages reach the ledger.
fn scrubbed(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        if let Ok(secret) = std::env::var(name)
            && !secret.is_empty()
        {
            text = text.replace(&secret, "…");
        }
    }
    text
}

/// Waits for a future of `object_store` on a thread of its own, because the caller's may belong to
/// an event loop.
fn wait<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let work = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("an event loop without input or output needs nothing of the system")
            .block_on(future)
    };
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The HTTP client, as `object_store` asks for one. A request holds its thread until it is answered:
/// nothing else waits on that thread.
#[derive(Clone, Debug)]
struct Http(ureq::Agent);

impl Http {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Signed for one host, a request is wrong at any other.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_mins(1)))
            .timeout_recv_body(Some(Duration::from_mins(2)))
            .build();
        Self(config.into())
    }

    fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let failed = |error: ureq::Error| {
            let kind = match &error {
                ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
                ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => HttpErrorKind::Connect,
                ureq::Error::Io(_) => HttpErrorKind::Interrupted,
                _ => HttpErrorKind::Unknown,
            };
            HttpError::new(kind, error)
        };
        let response = match body.as_bytes().filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => self.0.run(Request::from_parts(parts, bytes.as_ref())),
            None => self.0.run(Request::from_parts(parts, ())),
        };
        let (parts, mut body) = response.map_err(failed)?.into_parts();
        let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec().map_err(failed)?;
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }
}

impl HttpConnector for Http {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Http {
    fn call<'s, 'f>(
        &'s self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.send(request) })
    }
}
