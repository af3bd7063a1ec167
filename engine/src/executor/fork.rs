//! The fork server: a process that a run starts once, and of which each attempt gets a copy.
//!
//! To copy a process that has done nothing yet costs a fraction of starting a program. The server
//! is this very program, has one thread, and only copies itself, waits for its copies and says how
//! they ended. It ends with the thread that started it, and its copies end with it.
//!
//! A request is a message on its standard input, with what the copy talks over beside it. The end of
//! a copy is told over a pipe of its own; one that closes without a word says that the server died.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};

use super::Launcher;
use crate::exec::ATTEMPT;
use crate::process::{Ended, OOM_SCORE, die_with_parent, wait_for};

/// No request is longer: it holds a name and a path.
const REQUEST_MAX: usize = 32 << 10;
/// The conversation, what is printed, and how it ended.
const N_PASSED: usize = 3;
/// Bytes that the server's environment keeps free for the folder of a copy: no path is longer.
const PATH_BYTES_MAX: usize = 4096;

/// What a run wants of its fork server.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Another copy, for an attempt at a node; comes with its [`Ends`].
    Fork { id: u64, node: String, work_dir: PathBuf },
    /// An end for the copy with this number and whatever it started.
    Kill { id: u64 },
}

/// What the end of a copy is told by, as one line; the text says why there is no copy.
pub(super) type Farewell = Result<Ended, String>;

/// The run's side: starts the server when it is first needed, and again when it died.
pub(crate) struct ForkServer {
    launcher: Launcher,
    running: Mutex<Option<Running>>,
    n_forks: AtomicU64,
}

/// A copy, as the run sees it.
pub(super) struct Fork<'a> {
    server: &'a ForkServer,
    id: u64,
    pub(super) conversation: UnixStream,
    /// What it prints, to either of its outputs.
    pub(super) printed: PipeReader,
    /// Gives a [`Farewell`] once it ended, or nothing when the server did.
    pub(super) farewell: PipeReader,
}

impl ForkServer {
    pub(crate) fn new(launcher: Launcher) -> Self {
        Self { launcher, running: Mutex::default(), n_forks: AtomicU64::new(0) }
    }

    /// Makes a copy for an attempt at `node`. `work_dir` marks whatever it starts, so that none of
    /// that outlives the run for long.
    ///
    /// # Errors
    /// When the system has no process or no file number left.
    pub(super) fn fork(&self, node: &str, work_dir: &Path) -> io::Result<Fork<'_>> {
        let (conversation, its_conversation) = UnixStream::pair()?;
        let (printed, its_printed) = io::pipe()?;
        let (farewell, its_farewell) = io::pipe()?;
        let passed = [its_conversation.as_fd(), its_printed.as_fd(), its_farewell.as_fd()];
        let id = self.n_forks.fetch_add(1, Ordering::Relaxed);
        let (node, work_dir) = (node.to_owned(), work_dir.to_owned());
        let request = Request::Fork { id, node, work_dir };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match &*running {
            Some(server) => server.send(&request, &passed, SendFlags::NOSIGNAL),
            None => Err(Errno::PIPE.into()),
        };
        match sent {
            Err(error) if is_gone(&error) => {
                let server = running.insert(Running::start(&self.launcher)?);
                server.send(&request, &passed, SendFlags::NOSIGNAL)?;
            }
            done => done?,
        }
        Ok(Fork { server: self, id, conversation, printed, farewell })
    }
}

impl Fork<'_> {
    /// Kills it and whatever it started, unless it ended.
    pub(super) fn kill(&self) {
        let running = self.server.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*running {
            // Whoever kills asks again until it is dead.
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _ = server.send(&Request::Kill { id: self.id }, &[], flags);
        }
    }
}

/// Whether nobody is at the other end; whatever else goes wrong is no reason to end the others.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A fork server's process; killed when dropped, and its copies with it.
struct Running {
    process: Child,
    socket: OwnedFd,
}

impl Running {
    fn start(launcher: &Launcher) -> io::Result<Self> {
        let (socket, its) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = launcher.command()?;
        command.env(ATTEMPT, " ".repeat(PATH_BYTES_MAX));
        // What the terminal says to the run is not said to its attempts.
        command.process_group(0).stdin(Stdio::from(its)).stdout(Stdio::null());
        Ok(Self { process: command.spawn()?, socket })
    }

    fn send(
        &self,
        request: &Request,
        passed: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        if bytes.len() > REQUEST_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(N_PASSED))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !passed.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(passed)) {
            return Err(Errno::NOBUFS.into());
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut beside, flags)?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whose turn it is after [`serve`] returned.
pub(super) enum Role {
    /// The server's: the run is over.
    Server,
    /// A copy's, which talks to the run over this.
    Copy(UnixStream),
}

/// A copy, as the server sees it.
struct Served {
    id: u64,
    process: Pid,
    /// Can be read once it ended.
    end: OwnedFd,
    farewell: PipeWriter,
}

/// Serves the run at the other end of standard input until that is gone; in a copy, returns at once.
///
/// # Errors
/// `NotConnected` when standard input is no connection to a run, and when that cannot be heard.
pub(super) fn serve() -> io::Result<Role> {
    let run = take_stdin()?;
    // Where the run was gone before that, its end of the connection is closed.
    die_with_parent()?;
    // The copies inherit it. Where the system does not let us, its own choice stands.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let server = rustix::process::getpid();
    let mut copies: Vec<Served> = Vec::new();
    let mut bytes = vec![0; REQUEST_MAX];
    loop {
        let (is_called, ended) = wait(&run, &copies)?;
        for place in ended.into_iter().rev() {
            say_farewell(copies.swap_remove(place));
        }
        if !is_called {
            continue;
        }
        let (request, passed) = match hear(&run, &mut bytes) {
            Ok(Some(heard)) => heard,
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match request {
            Request::Fork { id, node, work_dir } => {
                let [conversation, printed, farewell] = <[OwnedFd; N_PASSED]>::try_from(passed)
                    .map_err(|passed| {
                        io::Error::other(format!("{} of {N_PASSED} ends came", passed.len()))
                    })?;
                let mut farewell = PipeWriter::from(farewell);
                match fork() {
                    Ok(Some((process, end))) => {
                        copies.push(Served { id, process, end, farewell });
                    }
                    Ok(None) => {
                        become_copy(server, &node, &work_dir, &printed)?;
                        return Ok(Role::Copy(UnixStream::from(conversation)));
                    }
                    Err(error) => say(&mut farewell, &Err(error.to_string())),
                }
            }
            Request::Kill { id } => {
                if let Some(copy) = copies.iter().find(|copy| copy.id == id) {
                    kill_group(copy.process);
                }
            }
        }
    }
    for copy in &copies {
        kill_group(copy.process);
    }
    Ok(Role::Server)
}

/// The connection on standard input, which then is empty: neither a task nor a program that it
/// starts shall read it.
fn take_stdin() -> io::Result<OwnedFd> {
    let run = io::stdin().as_fd().try_clone_to_owned()?;
    if !matches!(sockopt::socket_type(&run), Ok(SocketType::SEQPACKET)) {
        let message = "`sbp run` starts this command for its attempts; it has no use by hand";
        return Err(io::Error::new(io::ErrorKind::NotConnected, message));
    }
    put(&File::open("/dev/null")?.into(), 0)?;
    Ok(run)
}

/// Makes `number` stand for what `file` stands for.
fn put(file: &OwnedFd, number: i32) -> io::Result<()> {
    // SAFETY: The number is one of the standard three, which are owned by nobody but the table.
    if unsafe { libc::dup2(file.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Waits until the run says something or a copy ended, and gives the places of those in order.
fn wait(run: &OwnedFd, copies: &[Served]) -> io::Result<(bool, Vec<usize>)> {
    let ends = copies.iter().map(|copy| &copy.end);
    let all = ends.chain([run]).map(|fd| PollFd::new(fd, PollFlags::IN));
    let mut all: Vec<PollFd<'_>> = all.collect();
    match poll(&mut all, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let ended = (0..copies.len()).filter(|place| is_ready(&all[*place])).collect();
    Ok((is_ready(&all[copies.len()]), ended))
}

/// The next request and what came beside it; `None` when the run is gone.
fn hear(run: &OwnedFd, bytes: &mut [u8]) -> io::Result<Option<(Request, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(N_PASSED))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let message =
        recvmsg(run, &mut [IoSliceMut::new(bytes)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::other("a request did not arrive whole"));
    }
    let mut passed = Vec::with_capacity(N_PASSED);
    for part in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = part {
            passed.extend(files);
        }
    }
    Ok(Some((serde_json::from_slice(&bytes[..message.bytes])?, passed)))
}

/// Copies this process: gives the copy and what tells its end, and `None` in the copy itself.
fn fork() -> io::Result<Option<(Pid, OwnedFd)>> {
    // SAFETY: No other thread does anything in this process, so that the copy finds every lock free.
    let process = unsafe { libc::fork() };
    if process < 0 {
        return Err(io::Error::last_os_error());
    }
    let Some(process) = Pid::from_raw(process) else { return Ok(None) };
    // Done on both sides, the group is there whoever is first.
    let _ = rustix::process::setpgid(Some(process), None);
    match pidfd_open(process, PidfdFlags::empty()) {
        Ok(end) => Ok(Some((process, end))),
        Err(error) => {
            kill_group(process);
            let _ = wait_for(process);
            Err(error.into())
        }
    }
}

/// What a copy does first.
fn become_copy(server: Pid, node: &str, work_dir: &Path, printed: &OwnedFd) -> io::Result<()> {
    die_with_parent()?;
    // The server may have died before the wish was known.
    if rustix::process::getppid() != Some(server) {
        return Err(Errno::SRCH.into());
    }
    let _ = rustix::process::setpgid(None, None);
    put(printed, 1)?;
    put(printed, 2)?;
    mark(work_dir)?;
    // The list of processes shows its beginning.
    if let Ok(name) = CString::new(node) {
        let _ = rustix::thread::set_name(&name);
    }
    Ok(())
}

/// Writes the attempt's folder into the environment, in place of the blanks that the run put there:
/// only so do others see it too, who look for what a run left behind.
fn mark(work_dir: &Path) -> io::Result<()> {
    let dir = work_dir.as_os_str().as_encoded_bytes();
    let name = CString::new(ATTEMPT)?;
    // SAFETY: No other thread changes the environment meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() || dir.len() > PATH_BYTES_MAX {
        return Err(Errno::NAMETOOLONG.into());
    }
    // SAFETY: The value is as long as the run made it, and lies where the system put the environment
    // of a process, which may write there.
    let value = unsafe { std::slice::from_raw_parts_mut(value.cast::<u8>(), PATH_BYTES_MAX) };
    value.fill(0);
    value[..dir.len()].copy_from_slice(dir);
    Ok(())
}

/// Ends what a copy that ended left behind, and says how it ended.
fn say_farewell(mut copy: Served) {
    // Its number, and that of its group, is not used again before it is waited for.
    kill_group(copy.process);
    let ended = wait_for(copy.process).map_err(|error| error.to_string());
    say(&mut copy.farewell, &ended);
}

fn say(to: &mut PipeWriter, farewell: &Farewell) {
    // A few bytes fit into any pipe. That nobody may hear them any more is no trouble.
    let _ = serde_json::to_vec(farewell).map(|line| to.write_all(&line));
}

fn kill_group(process: Pid) {
    // All of it may be gone already.
    let _ = kill_process_group(process, Signal::KILL);
}
