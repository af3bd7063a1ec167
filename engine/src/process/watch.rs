//! Watches a process until it ends: hears its lines, passes the wish to stop on, and kills it when
//! its time is over.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::task::CancelToken;

/// How long a process may take to end once nothing more is expected of it.
const DONE_GRACE: Duration = Duration::from_secs(5);
/// How soon a stop is seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the last lines of a process that ended may take to arrive.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A process that can be killed.
pub(crate) trait Watched {
    /// Kills it and whatever it started, unless that is gone already.
    fn kill(&self);
}

/// When a process that runs must end.
pub(crate) struct Limits<'a> {
    /// Ends it politely when cancelled, at once when the attempt is given up.
    pub(crate) cancel: &'a CancelToken,
    /// From the polite request to the kill.
    pub(crate) grace: Duration,
    /// Whether nothing more is expected of it than to end.
    pub(crate) is_done: &'a Cell<bool>,
}

/// Which of a process's two streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// Gives each line to `line` until `end` says that the process has ended. When it is cancelled,
/// `ask` is called once, and after the grace it is killed.
pub(crate) fn watch<O: Read + AsFd, E: Read + AsFd>(
    process: &impl Watched,
    end: &impl AsFd,
    out: &mut Lines<O>,
    err: &mut Lines<E>,
    limits: &Limits<'_>,
    ask: impl Fn(),
    line: &mut dyn FnMut(Stream, &str),
) -> io::Result<()> {
    let mut last_moment: Option<Instant> = None;
    loop {
        if last_moment.is_none() && limits.is_done.get() {
            last_moment = Some(Instant::now() + DONE_GRACE);
        } else if last_moment.is_none() && limits.cancel.is_cancelled() {
            last_moment = Some(Instant::now() + limits.grace);
            ask();
        }
        if limits.cancel.is_abandoned() || last_moment.is_some_and(|at| Instant::now() >= at) {
            process.kill();
        }
        if hear(out, err, Some(end.as_fd()), line)? {
            return Ok(());
        }
    }
}

/// Gives the lines that a process which has ended left in its streams. They may be held open by
/// what it left behind, which is not waited for.
pub(crate) fn drain<O: Read + AsFd, E: Read + AsFd>(
    out: &mut Lines<O>,
    err: &mut Lines<E>,
    line: &mut dyn FnMut(Stream, &str),
) -> io::Result<()> {
    let until = Instant::now() + DRAIN_MAX;
    while (out.is_open() || err.is_open()) && Instant::now() < until {
        hear(out, err, None, line)?;
    }
    out.end(&mut |text| line(Stream::Out, text));
    err.end(&mut |text| line(Stream::Err, text));
    Ok(())
}

/// Waits a moment for something to hear, and says whether the process has ended.
fn hear<O: Read + AsFd, E: Read + AsFd>(
    out: &mut Lines<O>,
    err: &mut Lines<E>,
    end: Option<BorrowedFd<'_>>,
    line: &mut dyn FnMut(Stream, &str),
) -> io::Result<bool> {
    let (out_ready, err_ready, ended) = ready(out, err, end)?;
    if out_ready {
        out.read(&mut |text| line(Stream::Out, text))?;
    }
    if err_ready {
        err.read(&mut |text| line(Stream::Err, text))?;
    }
    Ok(ended)
}

/// Which of the streams can be read, and whether the process has ended.
fn ready<O: Read + AsFd, E: Read + AsFd>(
    out: &Lines<O>,
    err: &Lines<E>,
    end: Option<BorrowedFd<'_>>,
) -> io::Result<(bool, bool, bool)> {
    let mut places = [None; 3];
    let mut fds = Vec::with_capacity(3);
    let streams = [out.source.as_ref().map(AsFd::as_fd), err.source.as_ref().map(AsFd::as_fd), end];
    for (place, stream) in places.iter_mut().zip(streams) {
        if let Some(fd) = stream {
            *place = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
    }
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK_EVERY.subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |place: Option<usize>| place.is_some_and(|i| !fds[i].revents().is_empty());
    Ok((is_ready(places[0]), is_ready(places[1]), is_ready(places[2])))
}

/// Cuts a stream into lines.
pub(crate) struct Lines<S> {
    source: Option<S>,
    partial: Vec<u8>,
    bytes_max: usize,
}

impl<S: Read> Lines<S> {
    /// Of a longer line than `bytes_max` the rest is left out.
    pub(crate) fn new(source: Option<S>, bytes_max: usize) -> Self {
        Self { source, partial: Vec::new(), bytes_max }
    }

    fn is_open(&self) -> bool {
        self.source.is_some()
    }

    /// Reads what is there; must not be called when that would block.
    fn read(&mut self, line: &mut dyn FnMut(&str)) -> io::Result<()> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let mut buffer = [0; 1 << 14];
        let n = match source.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            // A connection whose other end went away with something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        if n == 0 {
            self.source = None;
            return Ok(());
        }
        for byte in &buffer[..n] {
            match byte {
                b'\n' => self.end(line),
                _ if self.partial.len() < self.bytes_max => self.partial.push(*byte),
                _ => {}
            }
        }
        Ok(())
    }

    fn end(&mut self, line: &mut dyn FnMut(&str)) {
        if !self.partial.is_empty() {
            line(String::from_utf8_lossy(&self.partial).trim_end_matches('\r'));
            self.partial.clear();
        }
    }
}
