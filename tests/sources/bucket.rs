//! A server that speaks as much of S3 as reading takes: lists in pages, heads, ranges, entity tags.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Names in a page of a list: few, so that tests see more than one.
const PAGE: usize = 2;

/// What a request asked for: `LIST`, `HEAD` or `GET`, and its key or prefix.
pub(super) type Asked = (String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    asked: Vec<Asked>,
    /// Replaces this object when it is first asked for a range.
    swap: Option<(String, Vec<u8>)>,
    /// Requests to answer with 503 first.
    n_stumbles: usize,
}

/// A bucket called `books` on a server of its own.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Bucket {
    pub(super) fn start(key_id: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    // One connection brings many requests.
                    while answer(&mut reader, &stream, &state, key_id).is_some() {}
                });
            }
        });
        Self { endpoint, state }
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8]) {
        self.state.lock().unwrap().objects.insert(key.to_owned(), bytes.to_owned());
    }

    /// Puts `bytes` in place of an object as soon as it is read.
    pub(super) fn swap(&self, key: &str, bytes: &[u8]) {
        self.state.lock().unwrap().swap = Some((key.to_owned(), bytes.to_owned()));
    }

    pub(super) fn stumble(&self, n_requests: usize) {
        self.state.lock().unwrap().n_stumbles = n_requests;
    }

    /// What was asked since this was last called.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

fn tag(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("\"{hash:016x}\"")
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let hex = std::str::from_utf8(&rest[..2]).unwrap();
            bytes.push(u8::from_str_radix(hex, 16).unwrap());
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query = query.replace('+', " ");
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(name, value)| (decoded(name), decoded(value))).collect();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => return Some(Request { method, path: decoded(path), query, headers }),
        };
    }
}

/// Answers one request; `None` when the client has gone.
fn answer(
    reader: &mut BufReader<TcpStream>,
    mut stream: &TcpStream,
    state: &Mutex<State>,
    key_id: &str,
) -> Option<()> {
    let request = read_request(reader)?;
    let mut state = state.lock().unwrap();
    let signed = request.headers.get("authorization");
    let credential = format!("AWS4-HMAC-SHA256 Credential={key_id}/");
    let (status, headers, body) = if state.n_stumbles > 0 {
        state.n_stumbles -= 1;
        ("503 Slow Down", String::new(), Vec::new())
    } else if !signed.is_some_and(|signed| signed.starts_with(&credential)) {
        let key = signed.map_or("", String::as_str);
        let body = format!("<Error><Code>InvalidAccessKeyId</Code><Key>{key}</Key></Error>");
        ("403 Forbidden", String::new(), body.into_bytes())
    } else if let Some(key) = request.path.strip_prefix("/books/") {
        object(&mut state, &request, key)
    } else {
        ("200 OK", String::new(), list(&mut state, &request).into_bytes())
    };
    drop(state);
    // A head tells the length of what a get would bring.
    let length =
        if headers.contains("Content-Length") { String::new() } else { content_length(body.len()) };
    let head = format!("HTTP/1.1 {status}\r\n{headers}{length}\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body).ok()
}

fn content_length(n_bytes: usize) -> String {
    format!("Content-Length: {n_bytes}\r\n")
}

fn object(state: &mut State, request: &Request, key: &str) -> (&'static str, String, Vec<u8>) {
    state.asked.push((request.method.clone(), key.to_owned()));
    if request.method == "GET"
        && let Some((_, bytes)) = state.swap.take_if(|swap| swap.0 == key)
    {
        state.objects.insert(key.to_owned(), bytes);
    }
    let Some(bytes) = state.objects.get(key) else {
        return ("404 Not Found", String::new(), b"<Error><Code>NoSuchKey</Code></Error>".to_vec());
    };
    let tag = tag(bytes);
    let headers = format!("ETag: {tag}\r\nLast-Modified: Sat, 21 Nov 2026 10:00:00 GMT\r\n");
    if request.headers.get("if-match").is_some_and(|wanted| *wanted != tag) {
        return ("412 Precondition Failed", headers, Vec::new());
    }
    if request.method == "HEAD" {
        return ("200 OK", headers + &content_length(bytes.len()), Vec::new());
    }
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let (first, last) = range.and_then(|range| range.split_once('-')).unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let range = format!("Content-Range: bytes {first}-{last}/{}\r\n", bytes.len());
    ("206 Partial Content", headers + &range, bytes[first..=last].to_vec())
}

/// Version 2 of the list, in pages.
fn list(state: &mut State, request: &Request) -> String {
    assert_eq!((request.path.as_str(), request.query["list-type"].as_str()), ("/books", "2"));
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    state.asked.push(("LIST".to_owned(), prefix.clone()));
    let after = request.query.get("continuation-token").cloned().unwrap_or_default();
    let matching = state.objects.iter().filter(|(key, _)| key.starts_with(&prefix));
    let mut rest = matching.filter(|(key, _)| **key > after).peekable();
    let mut xml = String::from("<ListBucketResult>");
    let mut last = String::new();
    for (key, bytes) in rest.by_ref().take(PAGE) {
        let (size, tag) = (bytes.len(), tag(bytes).replace('"', "&quot;"));
        let _ = write!(
            xml,
            "<Contents><Key>{key}</Key><LastModified>2026-11-21T10:00:00.000Z</LastModified>\
             <ETag>{tag}</ETag><Size>{size}</Size></Contents>"
        );
        last.clone_from(key);
    }
    let more = rest.peek().is_some();
    if more {
        let _ = write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>");
    }
    let _ = write!(xml, "<IsTruncated>{more}</IsTruncated></ListBucketResult>");
    xml
}
