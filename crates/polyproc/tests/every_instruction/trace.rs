//! A process under `ptrace(2)`: run to one instruction, stopped there, killed there.

use std::collections::HashMap;
use std::io;
use std::ptr::without_provenance_mut;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The event in `WaitStatus::PtraceEvent` after a stop by `PTRACE_INTERRUPT` (`PTRACE_EVENT_STOP`).
const EVENT_STOP: i32 = 128;
/// `int3`.
const BREAKPOINT: i64 = 0xCC;
/// `syscall`, little-endian.
const SYSCALL: i64 = 0x050F;
/// Time limit for stops that need no system call to return.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Why a traced process stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// One instruction was executed, or a breakpoint was met.
    Trap,
    /// A signal is about to be delivered.
    Signal(Signal),
    /// `PTRACE_INTERRUPT` stopped it.
    Interrupted,
    /// It did not stop: it runs, or sleeps in a system call.
    Running,
    /// It has ended.
    Gone,
}

/// How `run_to` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// The instruction is the next to be executed.
    Target,
    /// The operation ended first: the process raised the signal that marks its end, or fell asleep.
    End(Stop),
}

/// An instruction by file and offset, independent of the address at which the file is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) offset: u64,
}

/// The address ranges at which a process maps its files.
#[derive(Debug)]
pub(crate) struct Maps(Vec<(String, u64, u64)>);

impl Maps {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let mut files: Vec<(String, u64, u64)> = Vec::new();
        for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
            let mut fields = line.split_whitespace();
            let range = fields.next().and_then(|range| range.split_once('-'));
            let (Some((from, to)), Some(file)) = (range, fields.nth(4)) else { continue };
            let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else { continue };
            match files.iter_mut().find(|(known, ..)| known == file) {
                Some(known) => known.2 = to,
                None => files.push((file.to_owned(), from, to)),
            }
        }
        Ok(Self(files))
    }

    pub(crate) fn place(&self, address: u64) -> Place {
        let found = self.0.iter().find(|(_, from, to)| (*from..*to).contains(&address));
        found.map_or(Place { file: "?".to_owned(), offset: address }, |(file, from, _)| Place {
            file: file.clone(),
            offset: address - from,
        })
    }

    /// Returns whether the address is in the test program itself, and not in a library.
    pub(crate) fn is_own(&self, address: u64) -> bool {
        self.0.first().is_some_and(|(_, from, to)| (*from..*to).contains(&address))
    }
}

/// A process that this thread traces. It dies with this process.
#[derive(Debug)]
pub(crate) struct Tracee {
    pid: Pid,
    is_syscall: HashMap<u64, bool>,
}

impl Tracee {
    /// Traces a process, which continues to run.
    pub(crate) fn seize(pid: u32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed());
        ptrace::seize(pid, Options::PTRACE_O_EXITKILL)?;
        Ok(Self { pid, is_syscall: HashMap::new() })
    }

    /// Traces a process that sleeps, and stops it.
    pub(crate) fn stop(pid: u32) -> io::Result<Self> {
        let tracee = Self::seize(pid)?;
        ptrace::interrupt(tracee.pid)?;
        match tracee.wait(AT_ONCE) {
            Stop::Interrupted => Ok(tracee),
            other => Err(io::Error::other(format!("a process did not stop: {other:?}"))),
        }
    }

    /// Waits for the next stop. Does not reap the process, which its parent does.
    pub(crate) fn wait(&self, limit: Duration) -> Stop {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let since = Instant::now();
        for round in 0u32.. {
            match waitid(Id::Pid(self.pid), flags) {
                Ok(WaitStatus::StillAlive) if since.elapsed() > limit => return Stop::Running,
                Ok(WaitStatus::StillAlive) if round < 50 => std::thread::yield_now(),
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_micros(30)),
                Ok(status) => return Self::understand(status),
                Err(Errno::EINTR) => {}
                Err(_) => return Stop::Gone,
            }
        }
        Stop::Running
    }

    /// As `wait`, for a stop that is certain to come: blocks instead of polling.
    fn wait_asleep(&self) -> Stop {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(self.pid), flags) {
                Ok(status) => return Self::understand(status),
                Err(Errno::EINTR) => {}
                Err(_) => return Stop::Gone,
            }
        }
    }

    fn understand(status: WaitStatus) -> Stop {
        match status {
            WaitStatus::PtraceEvent(_, _, EVENT_STOP) => Stop::Interrupted,
            WaitStatus::PtraceEvent(_, Signal::SIGTRAP, _) => Stop::Trap,
            WaitStatus::PtraceEvent(_, signal, _) | WaitStatus::Stopped(_, signal) => Stop::Signal(signal),
            _ => Stop::Gone,
        }
    }

    /// Returns the address of the next instruction.
    pub(crate) fn at(&self) -> io::Result<u64> {
        Ok(ptrace::getregs(self.pid)?.rip)
    }

    /// Returns the number of the system call that the next instruction makes, if it makes one.
    pub(crate) fn system_call(&mut self) -> io::Result<Option<u64>> {
        let registers = ptrace::getregs(self.pid)?;
        Ok(self.is_syscall(registers.rip)?.then_some(registers.rax))
    }

    fn is_syscall(&mut self, address: u64) -> io::Result<bool> {
        if let Some(known) = self.is_syscall.get(&address) {
            return Ok(*known);
        }
        let is = self.peek(address)? & 0xFFFF == SYSCALL;
        self.is_syscall.insert(address, is);
        Ok(is)
    }

    fn peek(&self, address: u64) -> io::Result<i64> {
        Ok(ptrace::read(self.pid, without_provenance_mut(usize::try_from(address).map_err(io::Error::other)?))?)
    }

    fn poke(&self, address: u64, word: i64) -> io::Result<()> {
        let address = without_provenance_mut(usize::try_from(address).map_err(io::Error::other)?);
        Ok(ptrace::write(self.pid, address, word)?)
    }

    /// Executes one instruction; waits at most `limit` for a system call.
    pub(crate) fn step(&mut self, limit: Duration) -> io::Result<Stop> {
        let at = self.at()?;
        let may_block = self.is_syscall(at)?;
        ptrace::step(self.pid, None)?;
        Ok(if may_block { self.wait(limit) } else { self.wait_asleep() })
    }

    /// Runs until the next stop, for at most `limit`.
    pub(crate) fn resume(&self, limit: Duration) -> io::Result<Stop> {
        ptrace::cont(self.pid, None)?;
        Ok(self.wait(limit))
    }

    /// Runs until the `pass`th execution of `address`, counted from now, and stops before that instruction. Uses a breakpoint
    /// instead of single steps: it is faster, and a kill there leaves the same state.
    pub(crate) fn run_to(&mut self, address: u64, pass: u32, limit: Duration) -> io::Result<Reached> {
        let mut left = pass - u32::from(self.at()? == address);
        let word = self.peek(address)?;
        let armed = (word & !0xFF) | BREAKPOINT;
        while left > 0 {
            if self.at()? == address {
                let stop = self.step(limit)?;
                if stop != Stop::Trap {
                    return Ok(Reached::End(stop));
                }
            }
            if self.at()? == address {
                left -= 1; // an instruction with a repeat prefix
                continue;
            }
            self.poke(address, armed)?;
            let stop = self.resume(limit)?;
            let stop = if stop == Stop::Running { self.halt()? } else { stop };
            if stop == Stop::Gone {
                return Ok(Reached::End(stop));
            }
            self.poke(address, word)?;
            if stop != Stop::Trap {
                return Ok(Reached::End(stop));
            }
            let mut registers = ptrace::getregs(self.pid)?;
            registers.rip = address;
            ptrace::setregs(self.pid, registers)?;
            left -= 1;
        }
        Ok(Reached::Target)
    }

    /// Stops a process that runs or sleeps.
    pub(crate) fn halt(&self) -> io::Result<Stop> {
        ptrace::interrupt(self.pid)?;
        Ok(self.wait(AT_ONCE))
    }

    /// Detaches from the process, which continues to run.
    pub(crate) fn release(self) {
        let _ = ptrace::detach(self.pid, None); // it may have been killed
    }

    /// Kills the process where it stopped, and waits until it is dead.
    pub(crate) fn kill(self) {
        let _ = kill(self.pid, Signal::SIGKILL); // it may be dead already
        while !matches!(self.wait(AT_ONCE), Stop::Gone) {}
    }
}
