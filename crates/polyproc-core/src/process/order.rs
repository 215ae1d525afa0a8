//! The order of a new process: one message over its channel. The parent sends it
//! ([`launch::send_order`](super::launch::send_order)) when it holds the process's pidfd; the child decodes it in
//! [`enter::run`](super::enter::run). A process made by `fork` has no such message.
//!
//! The message has the tag [`TAG`]. Its head, in the encoding of [`wire`](crate::wire):
//!
//! | field | encoding |
//! |---|---|
//! | identity | [`Current::encode`], always with a parent |
//! | changes of the environment | `u32` count; for each the name as bytes, a flag (0: remove it), the value as bytes |
//! | working directory | bytes; empty to stay in the inherited one |
//! | bounds | see [`encode_bounds`] |
//! | leads a group | flag |
//! | function | [`Function::encode`] |
//! | has a parent-death pipe, has a ledger | two flags |
//! | argument | the remaining bytes |
//!
//! The message's descriptors are, in this order:
//!
//! 1. standard input, output and error;
//! 2. the read end of the [`ParentDeathPipe`](crate::sys::parent_death::ParentDeathPipe), for a process that must not outlive
//!    its parent;
//! 3. the program's [ledger](crate::shm::budget), if it has one;
//! 4. the argument's descriptors.
//!
//! Both sides are the same build, so the format has no version. The child trusts its parent, but decoding must not panic on any
//! bytes, which a fuzz target checks.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::Current;
use crate::conn::{Channel, Message};
use crate::function::Function;
use crate::shm::budget;
use crate::sys::bounds::Bounds;
use crate::wire::Payload;
use crate::wire::{Reader, WireError, Writer};

/// The tag of an order, the only message to a process before it runs its function.
pub(crate) const TAG: u8 = 1;

/// Changes to the environment: each variable's new value, or `None` to remove it.
pub(crate) type EnvDelta = Vec<(OsString, Option<OsString>)>;

/// The order of a new process. The parent creates one for each start; the fork server fills in the differences to the zygote.
#[derive(Debug)]
pub(crate) struct StartRequest {
    /// The identity of the new process.
    pub(crate) process: Current,
    /// Changes to the environment that the process has from its zygote; empty for an executed process, which gets its
    /// environment by `execve(2)`.
    pub(crate) env: EnvDelta,
    /// The absolute path of the working directory; `None` to stay in the inherited one.
    pub(crate) current_dir: Option<OsString>,
    /// The bounds that the process does not have already.
    pub(crate) bounds: Bounds,
    /// True if the process leads a group, which ends with it, and leaves `SIGINT` to its parent: a pool's worker.
    pub(crate) leads_group: bool,
    /// The function to run, which the child resolves.
    pub(crate) function: Function,
}

/// The descriptors of an order, without those of the argument. Owned by the child, close-on-exec. Some may have the numbers 0
/// to 2, if the child's standard streams were closed.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) stdio: [OwnedFd; 3],
    /// The read end of the parent-death pipe, for a bound process.
    pub(crate) parent_death: Option<OwnedFd>,
    /// The ledger of the program's memory budget; `None` if the parent has none.
    pub(crate) ledger: Option<OwnedFd>,
}

/// Writes bounds: `u32` umask, or `u32::MAX` for none; `u64` niceness as an unsigned `i32`, or `u64::MAX` for none; limits,
/// then the affinity mask, each as bytes of little-endian `u64` words, three words for each limit.
pub(super) fn encode_bounds(bounds: &Bounds, out: &mut Writer) {
    out.u32(bounds.umask.unwrap_or(u32::MAX));
    out.u64(bounds.nice.map_or(u64::MAX, |nice| u64::from(nice.cast_unsigned())));
    for words in [&bounds.limits.concat(), &bounds.cpus] {
        out.bytes(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    }
}

/// Reads [`encode_bounds`]. Ignores an incomplete last word or limit.
///
/// # Errors
/// [`WireError`] for truncated bytes.
pub(super) fn decode_bounds(from: &mut Reader<'_>) -> Result<Bounds, WireError> {
    let umask = Some(from.u32()?).filter(|umask| *umask != u32::MAX);
    let nice = u32::try_from(from.u64()?).ok().map(u32::cast_signed);
    let mut words = || Ok(from.bytes()?.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>());
    let limits = words()?.as_chunks().0.to_vec();
    Ok(Bounds { umask, nice, limits, cpus: words()? })
}

impl StartRequest {
    /// Sends the order over `channel`, whose peer is the new process. `stdio`, `parent_death` and the descriptors of `input`
    /// are copied into the message by the kernel. Blocks while the peer's buffer is full, which an order alone does not fill,
    /// as a long head is in a memory file.
    ///
    /// # Errors
    /// As [`Channel::send`]; also when the process was killed ([`is_peer_gone`](crate::conn::is_peer_gone)). Nothing was sent
    /// then.
    pub(crate) fn send(
        &self,
        channel: &Channel,
        stdio: &[BorrowedFd<'_>; 3],
        parent_death: Option<BorrowedFd<'_>>,
        input: &Payload,
    ) -> io::Result<()> {
        let mut out = Writer::default();
        self.process.encode(&mut out);
        out.u32(u32::try_from(self.env.len()).map_err(io::Error::other)?);
        for (name, value) in &self.env {
            out.bytes(name.as_bytes());
            out.u8(value.is_some().into());
            out.bytes(value.as_deref().unwrap_or_default().as_bytes());
        }
        out.bytes(self.current_dir.as_deref().unwrap_or_default().as_bytes());
        encode_bounds(&self.bounds, &mut out);
        out.u8(self.leads_group.into());
        self.function.encode(&mut out);
        let ledger = budget::existing_descriptor();
        out.u8(parent_death.is_some().into());
        out.u8(ledger.is_some().into());
        out.rest(&input.bytes);
        let fds: Vec<_> =
            stdio.iter().copied().chain(parent_death).chain(ledger).chain(input.fds.iter().map(AsFd::as_fd)).collect();
        channel.send(TAG, &out.into_bytes(), &fds)
    }

    /// Returns the order, its descriptors, and the argument.
    ///
    /// # Errors
    /// [`WireError`] for another tag, too few descriptors, or malformed bytes. The descriptors are closed then.
    pub(crate) fn decode(message: Message) -> Result<(Self, Inherited, Payload), WireError> {
        if message.tag != TAG {
            return Err(WireError);
        }
        let mut fds = message.payload.fds.into_iter();
        let stdio = [fds.next().ok_or(WireError)?, fds.next().ok_or(WireError)?, fds.next().ok_or(WireError)?];
        let from = &mut Reader::new(&message.payload.bytes);
        let os_string = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let order = Self {
            process: Current::decode(from)?,
            env: from.list(|from| {
                let (name, is_set) = (os_string(from.bytes()?), from.flag()?);
                let value = from.bytes()?;
                Ok((name, is_set.then(|| os_string(value))))
            })?,
            current_dir: Some(os_string(from.bytes()?)).filter(|path| !path.is_empty()),
            bounds: decode_bounds(from)?,
            leads_group: from.flag()?,
            function: Function::decode(from)?,
        };
        let [has_life, has_ledger] = [from.flag()?, from.flag()?];
        let mut next_if = |has| if has { fds.next().map(Some).ok_or(WireError) } else { Ok(None) };
        let (parent_death, ledger) = (next_if(has_life)?, next_if(has_ledger)?);
        let inherited = Inherited { stdio, parent_death, ledger };
        Ok((order, inherited, Payload { bytes: from.rest().to_vec(), fds: fds.collect() }))
    }
}
