//! Programs as children: in a process group of their own, which ends with them, with the attempt
//! that started them, or with this process.

mod watch;

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, prlimit,
};

use serde::{Deserialize, Serialize};

pub(crate) use watch::{Limits, Lines, Stream, Watched, drain, watch};

use crate::task::Failure;

/// How long a program may take to end after it was asked to.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Lines of a program that a failure repeats.
const LAST_LINES: usize = 5;
/// Makes the system, when memory runs out, choose the program and not the run that started it.
pub(crate) const OOM_SCORE: &str = "500";
/// A longer line is cut.
pub(crate) const LINE_MAX: usize = 16 << 10;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its exit code, unless a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Highest resident memory of the program, in bytes.
    pub(crate) peak_memory_bytes: i64,
}

impl Ended {
    pub(crate) fn is_success(self) -> bool {
        self.code == Some(0)
    }

    /// Whether somebody else ended it: an operator, or the system when memory ran out. The same
    /// work may succeed at another time.
    pub(crate) fn is_from_outside(self) -> bool {
        matches!(self.signal, Some(libc::SIGKILL | libc::SIGTERM | libc::SIGHUP | libc::SIGINT))
    }

    /// Adds what may help against this end, for a program that may use `limit` bytes.
    pub(crate) fn advise(self, failure: Failure, limit: Option<u64>) -> Failure {
        let peak_mib = self.peak_memory_bytes >> 20;
        match (self.signal, limit) {
            (Some(libc::SIGKILL | libc::SIGABRT | libc::SIGSEGV), Some(limit)) => {
                failure.help(format!(
                    "it used up to {peak_mib} MiB and may have {} MiB; raise `mem`",
                    limit >> 20
                ))
            }
            (Some(libc::SIGKILL), None) => failure.help(format!(
                "the system kills programs when memory runs out; it used up to {peak_mib} MiB"
            )),
            _ => failure,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "ended with exit code {code}"),
            (None, Some(signal)) => match signal_name(signal) {
                Some(name) => write!(f, "was ended by signal {signal} ({name})"),
                None => write!(f, "was ended by signal {signal}"),
            },
            (None, None) => f.write_str("ended in an unknown way"),
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGXCPU, "SIGXCPU"),
        (libc::SIGXFSZ, "SIGXFSZ"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    names.iter().find(|(number, _)| *number == signal).map(|(_, name)| *name)
}

/// The last lines that a program or a task said.
#[derive(Default)]
pub(crate) struct LastLines(VecDeque<String>);

impl LastLines {
    pub(crate) fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// Ends a message with them, when there are any.
    pub(crate) fn after(&self, message: String) -> String {
        if self.0.is_empty() {
            return message;
        }
        let lines: Vec<&str> = self.0.iter().map(String::as_str).collect();
        format!("{message}; its last lines: {}", lines.join(" | "))
    }
}

/// Waits for the end of a child of this process.
pub(crate) fn wait_for(child: Pid) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: All zeroes is a value of this plain C structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.as_raw_nonzero().get();
    loop {
        // SAFETY: Both pointers are to live values of the types that `wait4` fills.
        let done = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if done == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        peak_memory_bytes: usage.ru_maxrss.saturating_mul(1024),
    })
}

/// Has this process killed when the thread that started it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// A program in a process group of its own.
pub(crate) struct Program {
    child: Child,
    group: Pid,
    is_reaped: bool,
}

impl Program {
    /// Starts `command` with its outputs connected to us. It is killed when the thread that calls
    /// this ends, as a killed process's threads do.
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let parent = std::process::id();
        let tie = move || {
            die_with_parent()?;
            // The parent may have died before the wish was known.
            match rustix::process::getppid() {
                Some(now) if now.as_raw_nonzero().get().unsigned_abs() == parent => Ok(()),
                _ => Err(Errno::SRCH.into()),
            }
        };
        // SAFETY: Between `fork` and `exec` the closure makes two system calls; it neither allocates
        // nor takes a lock.
        unsafe { command.pre_exec(tie) };
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn()?;
        let group = Pid::from_child(&child);
        // Where the system does not let us, its own choice stands.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), OOM_SCORE);
        Ok(Self { child, group, is_reaped: false })
    }

    #[cfg(test)]
    pub(crate) fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Limits the program's address space. What it allocated before counts too.
    pub(crate) fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(self.group), Resource::As, limit)?;
        Ok(())
    }

    /// Asks the whole group to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Gives each line to `line` until the program has ended. When it is cancelled, `ask` is called
    /// once, and its whole group is killed after the grace. Whatever the program left running is
    /// killed.
    pub(crate) fn wait(
        mut self,
        limits: &Limits<'_>,
        ask: impl Fn(&Self),
        mut line: impl FnMut(Stream, &str),
    ) -> io::Result<Ended> {
        let mut out = Lines::new(self.child.stdout.take(), LINE_MAX);
        let mut err = Lines::new(self.child.stderr.take(), LINE_MAX);
        let end = pidfd_open(self.group, PidfdFlags::empty())?;
        watch(&self, &end, &mut out, &mut err, limits, || ask(&self), &mut line)?;
        // A pipe may be held open by what the program left behind.
        self.kill();
        drain(&mut out, &mut err, &mut line)?;
        self.reap()
    }

    fn signal(&self, signal: Signal) {
        // It may be gone already. The group's number is not reused before the child is reaped.
        let _ = kill_process_group(self.group, signal);
    }

    fn reap(&mut self) -> io::Result<Ended> {
        self.is_reaped = true;
        wait_for(self.group)
    }
}

impl Watched for Program {
    fn kill(&self) {
        self.signal(Signal::KILL);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill();
            let _ = self.reap();
        }
    }
}

/// Kills whatever still runs for the attempts whose work folders these are: what they left behind
/// when their own process was killed. They are known by the folder in their environment. Waits a
/// moment for their ends, so that none makes a folder anew that is removed next.
pub(crate) fn kill_leftovers(variable: &str, dirs: &[std::path::PathBuf]) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let mut killed = Vec::new();
    let wanted: Vec<Vec<u8>> = dirs
        .iter()
        .map(|dir| [variable.as_bytes(), b"=", dir.as_os_str().as_encoded_bytes()].concat())
        .collect();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let is_ours = |entry: &[u8]| wanted.iter().any(|wanted| entry == wanted.as_slice());
        if environment.split(|byte| *byte == 0).any(is_ours) {
            killed.extend(pidfd_open(pid, PidfdFlags::empty()));
            // It may end by itself at this moment.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    for process in killed {
        let mut end = [PollFd::new(&process, PollFlags::IN)];
        let _ = poll(&mut end, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Instant;

    use super::*;
    use crate::task::CancelToken;

    fn wait(
        program: Program,
        cancel: &CancelToken,
        grace: Duration,
        hear: impl FnMut(Stream, &str),
    ) -> Ended {
        let limits = Limits { cancel, grace, is_done: &Cell::new(false) };
        program.wait(&limits, Program::terminate, hear).unwrap()
    }

    fn run(script: &str) -> (Ended, Vec<String>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        let mut lines = Vec::new();
        let program = Program::start(command).unwrap();
        let hear = |_, line: &str| lines.push(line.to_owned());
        let ended = wait(program, &CancelToken::default(), GRACE, hear);
        (ended, lines)
    }

    #[test]
    fn ends_are_told_apart() {
        let check = |script: &str, expected: &str| {
            let (ended, lines) = run(script);
            assert_eq!((ended.to_string().as_str(), lines.len()), (expected, 1), "{script}");
            assert!(ended.peak_memory_bytes > 0);
        };
        check("echo one; exit 0", "ended with exit code 0");
        check("printf two >&2; exit 3", "ended with exit code 3");
        check("echo three; kill -SEGV $$", "was ended by signal 11 (SIGSEGV)");
    }

    #[test]
    fn the_whole_group_ends() {
        let cancel = CancelToken::default();
        // Neither the shell nor its children heed the polite request.
        let script = "trap '' TERM; sleep 60 & echo $!; wait; wait; sleep 60";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null());
        let mut lines = Vec::new();
        let hear = |_, line: &str| {
            lines.push(line.to_owned());
            cancel.cancel();
        };
        let grace = Duration::from_millis(300);
        let ended = wait(Program::start(command).unwrap(), &cancel, grace, hear);
        assert_eq!(ended.signal, Some(libc::SIGKILL));
        let is_alive = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        // A signal that ends a process takes a moment to do so.
        let ends = |pid: &str| {
            let until = Instant::now() + Duration::from_secs(20);
            while is_alive(pid) {
                assert!(Instant::now() < until, "{pid} lives on");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        assert!(!lines.is_empty());
        for pid in &lines {
            ends(pid);
        }
        // What a program leaves behind when it ends by itself does not outlive it either.
        let (_, lines) = run("sleep 60 >/dev/null 2>&1 & echo $!");
        ends(&lines[0]);
    }

    #[test]
    fn memory_has_a_limit() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read go; exec head -c 1G /dev/zero | tail -c 900M >/dev/null"]);
        command.stdin(Stdio::piped());
        let mut program = Program::start(command).unwrap();
        program.limit_memory(200 << 20).unwrap();
        drop(program.take_stdin());
        let ended = wait(program, &CancelToken::default(), GRACE, |_, _| {});
        assert!(!ended.is_success(), "{ended}");
    }
}
