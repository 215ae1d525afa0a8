//! [`ResultRing`]: the memory that a pool shares with one worker: the worker's state, and a ring of bytes that returns its
//! results to the parent. No other process uses it, and there is no lock.
//!
//! | offset | bytes | content | writer |
//! |---|---|---|---|
//! | 0 | 128 | [`WorkerState`] | see there |
//! | 128 | 320 | [`ResultIndex`]: the counts | see there |
//! | 1024 | 256 | the segment's regions | see [`Segment`] |
//! | 4096 | 8192 | a ring of offsets of returned blocks | the parent |
//! | 16384 | 131072 | the ring of records | the worker |
//! | 147456 | | large results | the worker, before the record that refers to them |
//!
//! A record is a word, followed by bytes. The low eight bits of the word are a [`ResultKind`] and flags, the others a number.
//!
//! The parent creates the memory and starts the worker with its descriptor. The worker's main thread is the only writer
//! of records ([`ResultRing`]); the parent reads them under the pool's lock ([`Results`]). Callers: `worker` on one
//! side, `results`, `deaths` and `audit` on the other.
//!
//! A record is committed by the store of the tail. So after a death of the worker at any instruction the ring contains
//! whole records only, and the parent reads them as those of a living worker.
//!
//! The parent copies records before it parses them, and relies on no count that the worker can write except the tail,
//! which it checks. [`parse`] accepts any bytes; a worker that writes invalid ones loses its ring
//! ([`Results::break_off`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::result_index::{RING_LEN, ResultIndex, Returns};
use crate::prim::{AtomicU32, AtomicU64, Ordering};
use crate::robust::EventCount;
use crate::shm::{MemoryError, Segment};
use crate::sys::shared::shared;

const INDEX: u64 = 128;
/// Offset of the segment's table of regions.
const REGION_TABLE: u64 = 1024;
/// Offset of the ring of returned offsets.
const RETURNS: u64 = 4096;
/// Offset of the ring of records.
const RING: u64 = 16384;
/// Offset of the first block of a large result. All bytes before it are reserved when the memory is created.
pub(in crate::pool) const FIRST_BLOCK: u64 = RING + RING_LEN;
/// Length of the first mapping in bytes; blocks beyond it are in further regions.
const FIRST_REGION: u64 = 3 * 65536;
/// Results up to this length in bytes go through the ring, larger ones through a block.
pub(in crate::pool) const INLINE_LEN: usize = 16384;
/// Number of bits of the slot in a [`ResultKind::Begin`].
const SLOT_BITS: u32 = 10;
const _: () = assert!(super::task_table::SLOTS == 1 << SLOT_BITS && super::claim::POSITIONS << SLOT_BITS <= 1 << 56);
/// Length of a record's word in bytes.
pub(in crate::pool) const WORD_LEN: usize = 8;

/// The kind of a record. Except for `Begin`, the record's number is the length of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::pool) enum ResultKind {
    /// The worker begins a task. The number is the task's position, and its slot in the lowest ten bits. The results of the
    /// items follow, one for each, in order.
    Begin = 1,
    /// An item's function returned: its result.
    Returned = 2,
    /// An item's function failed: an error in the encoding of the face.
    Raised = 3,
    /// An item's function panicked: a [`Panic`](crate::process::Panic).
    Panicked = 4,
    /// An item's function could not be called: the reason as text.
    Refused = 5,
}

/// The bytes are in a block; the record has the block's offset in their place.
const IN_BLOCK: u8 = 0x80;
/// The channel holds log records of the task.
pub(in crate::pool) const LOGGED: u8 = 0x40;
/// The channel holds the result's descriptors.
pub(in crate::pool) const WITH_FDS: u8 = 0x20;
const FLAGS: u8 = IN_BLOCK | LOGGED | WITH_FDS;

/// A parsed record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct ResultRecord<'a> {
    /// Which event of a task it reports.
    pub(in crate::pool) kind: ResultKind,
    /// [`LOGGED`], [`WITH_FDS`].
    pub(in crate::pool) flags: u8,
    /// The result, or a number.
    pub(in crate::pool) body: ResultBody<'a>,
}

/// Returns slot and position of the task from the number of a [`ResultKind::Begin`].
///
/// Both are unchecked: a faulty worker may have written any number.
pub(in crate::pool) fn begun(number: u64) -> (usize, u64) {
    ((number & ((1 << SLOT_BITS) - 1)) as usize, number >> SLOT_BITS)
}

/// Where a record's bytes are.
///
/// Unchecked, apart from the length of [`ResultBody::Bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum ResultBody<'a> {
    /// A number, and no bytes.
    Number(u64),
    /// In the record: at most [`INLINE_LEN`] from a correct worker.
    Bytes(&'a [u8]),
    /// In the worker's file. Copying checks that the range exists.
    Block {
        /// File offset of the first byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// Splits the plain results at the front of `bytes` off, at most `most` of them. Returns their records and how many they are.
///
/// A plain result is a [`ResultKind::Returned`] without flags: its bytes are in the record, and nothing of it is in the
/// channel. Stops at the first other, incomplete or malformed record, which is left for [`parse`].
pub(in crate::pool) fn take_results<'a>(bytes: &mut &'a [u8], most: u32) -> (&'a [u8], u32) {
    let (mut len, mut count) = (0usize, 0);
    while count < most
        && let Some((word, _)) = bytes.get(len..).and_then(<[u8]>::split_first_chunk)
        && let word = u64::from_le_bytes(*word)
        && word & 0xff == ResultKind::Returned as u64
        && let Some(end) = usize::try_from(word >> 8).ok().and_then(|body| len.checked_add(WORD_LEN)?.checked_add(body))
        && end <= bytes.len()
    {
        len = end;
        count += 1;
    }
    (bytes.split_off(..len).unwrap_or_default(), count)
}

/// Splits the first result off the records from [`take_results`].
///
/// `None` if none is left.
pub(in crate::pool) fn next_result<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let word = bytes.split_off(..WORD_LEN)?;
    let len = usize::try_from(u64::from_le_bytes(word.try_into().ok()?) >> 8).ok()?;
    bytes.split_off(..len)
}

/// Splits the first record off `bytes`.
///
/// `bytes` are private memory. An offset follows the word if the bytes are in a block.
///
/// # Errors
/// [`MemoryError::Corrupt`] if there is no such kind or the record is incomplete. Then `bytes` may have been shortened.
pub(in crate::pool) fn parse<'a>(bytes: &mut &'a [u8]) -> Result<ResultRecord<'a>, MemoryError> {
    let word = bytes.split_off(..8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
    let word = word.ok_or(MemoryError::Corrupt)?;
    let [flags, ..] = word.to_le_bytes();
    let number = word >> 8;
    let kind = [ResultKind::Begin, ResultKind::Returned, ResultKind::Raised, ResultKind::Panicked, ResultKind::Refused]
        .into_iter()
        .find(|kind| *kind as u8 == flags & !FLAGS);
    let kind = kind.ok_or(MemoryError::Corrupt)?;
    let body = if kind == ResultKind::Begin {
        ResultBody::Number(number)
    } else if flags & IN_BLOCK != 0 {
        let offset = bytes.split_off(..8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
        ResultBody::Block { offset: offset.ok_or(MemoryError::Corrupt)?, len: number }
    } else {
        let len = usize::try_from(number).map_err(|_| MemoryError::Corrupt)?;
        ResultBody::Bytes(bytes.split_off(..len).ok_or(MemoryError::Corrupt)?)
    };
    Ok(ResultRecord { kind, flags: flags & (LOGGED | WITH_FDS), body })
}

shared! {
    /// The state of a worker. Times are nanoseconds of the monotonic clock.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 8 | current: [`IDLE`], the running item ([`running`]), or [`REVOKED`] | the worker; the parent, to cut or kill |
    /// | 8 | 8 | started: when it began the item, if items are limited | the worker |
    /// | 16 | 8 | since: when it became idle or busy | the worker |
    /// | 24 | 8 | busy: nanoseconds that it was busy before `since` | the worker |
    /// | 32 | 8 | items: number of items that it has run | the worker |
    /// | 40 | 8 | bytes_in: bytes of arguments | the worker |
    /// | 48 | 8 | bytes_out: bytes of results | the worker |
    /// | 56 | 8 | ready: when it began to claim tasks | the worker |
    /// | 64 | 4 | phase: see [`WorkerPhase`] | the worker |
    /// | 68 | 4 | retire: not 0 if it must exit | the parent |
    /// | 72 | 8 | sent: number of result descriptors that it sent | the worker |
    /// | 80 | 8 | received: number of sent descriptors that the parent no longer holds | the parent |
    pub(in crate::pool) struct WorkerState {
        pub(in crate::pool) current: AtomicU64,
        pub(in crate::pool) started: AtomicU64,
        pub(in crate::pool) since: AtomicU64,
        pub(in crate::pool) busy: AtomicU64,
        pub(in crate::pool) items: AtomicU64,
        pub(in crate::pool) bytes_in: AtomicU64,
        pub(in crate::pool) bytes_out: AtomicU64,
        pub(in crate::pool) ready: AtomicU64,
        pub(in crate::pool) phase: AtomicU32,
        pub(in crate::pool) retire: AtomicU32,
        pub(in crate::pool) sent: AtomicU64,
        pub(in crate::pool) received: AtomicU64,
    }
}
const _: () = assert!(size_of::<WorkerState>() == 128);

/// The worker runs no task.
pub(in crate::pool) const IDLE: u64 = 0;
/// The parent has marked the worker for killing: it begins and ends no item any more.
///
/// Final: neither side changes the word any more.
pub(in crate::pool) const REVOKED: u64 = 1;

/// The parent has taken the items after the running one: the worker must leave the task after it.
///
/// Set by the parent, reset by the worker when it stores its next word.
const CUT: u64 = 1 << 19;

/// Returns the word for a running item of the task at `position`.
///
/// Layout: 44 bits of position, the flag [`CUT`], then `item` + 2 in 19 bits, so that no word of a running item equals
/// [`IDLE`] or [`REVOKED`]. `item` counts from the first item of the order. From [`MOST_STEPS`] on all items have the
/// same word.
pub(in crate::pool) fn running(position: u64, item: u32) -> u64 {
    position << 20 | u64::from(item.min(MOST_STEPS) + 2)
}

/// Tasks whose worker reports which item it runs have fewer items than this.
pub(in crate::pool) const MOST_STEPS: u32 = (1 << 19) - 3;

/// Returns the position in a word of [`running`]; `None` for [`IDLE`] and [`REVOKED`].
pub(in crate::pool) fn running_position(current: u64) -> Option<u64> {
    (current > REVOKED).then_some(current >> 20)
}

/// Returns the item in a word of [`running`].
pub(in crate::pool) fn running_item(current: u64) -> u32 {
    ((current & (CUT - 1)) as u32).saturating_sub(2)
}

/// Returns a word of [`running`] with the task cut.
pub(in crate::pool) fn cut(current: u64) -> u64 {
    current | CUT
}

/// Returns whether the parent has cut the task.
pub(in crate::pool) fn is_cut(current: u64) -> bool {
    current > REVOKED && current & CUT != 0
}

/// The phase of a worker's life; 0 while it is being set up.
///
/// Written by the worker, read by the parent for statistics, retirement and the cause of an early death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(in crate::pool) enum WorkerPhase {
    /// The pool's memory is mapped; the initializer runs, or is about to.
    Initialising = 1,
    /// Sleeps without a task. A worker that polls counts as busy.
    Idle = 2,
    /// Runs a task, or looks for one.
    Busy = 3,
}

/// The memory as one process has mapped it: the worker, which writes records, or the parent inside [`Results`].
#[derive(Debug)]
pub(in crate::pool) struct ResultRing {
    /// The memory file, and its mapping for reading and writing.
    segment: Segment,
    /// The worker's private count of bytes written, copied to the shared tail.
    written: AtomicU64,
}

impl ResultRing {
    /// Creates the memory of a new worker, in the parent. The first [`FIRST_BLOCK`] bytes are reserved, so that writing
    /// them cannot fail.
    ///
    /// # Errors
    /// The process has no descriptor, or the system no memory.
    pub(in crate::pool) fn new() -> io::Result<Self> {
        let segment = Segment::create(c"polyproc-worker", FIRST_REGION, REGION_TABLE, RETURNS)?;
        segment.reserve(0, FIRST_BLOCK)?;
        Ok(Self { segment, written: AtomicU64::new(0) })
    }

    /// Maps the memory in the worker. From here on its blocks count as in flight, on the worker's account.
    ///
    /// # Errors
    /// The memory cannot be mapped.
    pub(in crate::pool) fn open(memfd: OwnedFd) -> io::Result<Self> {
        let segment = Segment::open(memfd, FIRST_REGION, REGION_TABLE, RETURNS)?.counted();
        Ok(Self { segment, written: AtomicU64::new(0) })
    }

    /// Returns the memory file, in which the worker allocates blocks.
    pub(in crate::pool) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Returns the state of the worker, which both processes may write.
    pub(in crate::pool) fn state(&self) -> &WorkerState {
        self.segment.fixed(0)
    }

    fn index(&self) -> &ResultIndex {
        self.segment.fixed(INDEX)
    }

    /// Where the worker waits while the ring is full.
    pub(in crate::pool) fn space(&self) -> &EventCount {
        &self.index().space
    }

    /// Returns the number of bytes that the parent has not read, from the shared counts.
    pub(in crate::pool) fn unread(&self) -> u64 {
        self.index().unread()
    }

    /// Returns the file offset of a byte of the ring, and the number of bytes from there to the ring's end.
    fn at(position: u64) -> (u64, u64) {
        let at = position % RING_LEN;
        (RING + at, RING_LEN - at)
    }

    /// Copies bytes to the ring, in two parts if they pass its end. Only the bytes between tail and head may be
    /// overwritten.
    fn copy_in(&self, position: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (at, room) = Self::at(position);
        let (first, second) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        self.segment.copy_in(at, first)?;
        if second.is_empty() { Ok(()) } else { self.segment.copy_in(RING, second) }
    }

    /// Writes a record: space of eight bytes for the word, then up to [`INLINE_LEN`] bytes. Returns false if there is no room.
    ///
    /// `number` must be below 2^56. Only the worker's main thread may call it. A death before the commit leaves no
    /// trace.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if `record` is shorter than its word.
    fn write(&self, flags: u8, number: u64, record: &mut [u8]) -> Result<bool, MemoryError> {
        let tail = self.written.load(Ordering::Relaxed);
        let len = record.len() as u64;
        if !self.index().has_room(tail, len) {
            return Ok(false);
        }
        let word = record.first_chunk_mut().ok_or(MemoryError::Corrupt)?;
        *word = (number << 8 | u64::from(flags)).to_le_bytes();
        self.copy_in(tail, record)?;
        self.written.store(tail.wrapping_add(len), Ordering::Relaxed);
        self.index().commit(tail.wrapping_add(len));
        Ok(true)
    }

    /// Writes that the worker begins a task. Returns false if there is no room.
    ///
    /// After it, the worker answers exactly the items of this task, in order.
    pub(in crate::pool) fn write_begin(&self, slot: u32, position: u64) -> Result<bool, MemoryError> {
        self.write(ResultKind::Begin as u8, position << SLOT_BITS | u64::from(slot), &mut [0; WORD_LEN])
    }

    /// Writes how an item ended: the bytes after the first [`WORD_LEN`] of `record`. Returns false if there is no room.
    ///
    /// `record` begins with [`WORD_LEN`] bytes that are overwritten, so that the bytes of a result are copied once.
    pub(in crate::pool) fn write_end(
        &self,
        kind: ResultKind,
        flags: u8,
        record: &mut [u8],
    ) -> Result<bool, MemoryError> {
        self.write(kind as u8 | flags, (record.len() - WORD_LEN) as u64, record)
    }

    /// As [`ResultRing::write_end`], with the bytes in a block.
    ///
    /// The block is written before, and stays allocated until the parent returns `offset`.
    pub(in crate::pool) fn write_end_in_block(
        &self,
        kind: ResultKind,
        flags: u8,
        offset: u64,
        len: u64,
    ) -> Result<bool, MemoryError> {
        let mut record = [0; 2 * WORD_LEN];
        record[WORD_LEN..].copy_from_slice(&offset.to_le_bytes());
        self.write(kind as u8 | IN_BLOCK | flags, len, &mut record)
    }

    fn returns(&self) -> &Returns {
        self.segment.fixed(RETURNS)
    }

    /// Returns whether there are returned blocks that the worker has not taken.
    pub(in crate::pool) fn has_returned(&self) -> bool {
        self.index().has_returned()
    }

    /// Takes the next returned block. Returns its offset.
    pub(in crate::pool) fn take_back(&self) -> Option<u64> {
        self.index().take_back(self.returns())
    }
}

impl AsFd for ResultRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

/// The parent's end of a [`ResultRing`]. Data that the worker may overwrite is read once and checked; the parent's counts are
/// in private memory. So a worker that writes invalid data breaks its own stream only.
///
/// Owned by the worker's `WorkerHandle`, and used under the pool's lock. The memory outlives the worker: results that
/// were written before its death are read after it.
#[derive(Debug)]
pub(in crate::pool) struct Results {
    stream: Arc<ResultRing>,
    /// Number of bytes read so far. Authoritative; the shared one is a copy.
    head: u64,
    /// Number of blocks returned so far. Authoritative.
    returned: u64,
    /// Invalid data was found: nothing more is read.
    is_broken: bool,
}

/// Result descriptors that this process holds until this is dropped.
///
/// Travels with the result that has the descriptors, outside the pool's lock. Its drop lets the worker send further
/// ones ([`may_lend`](crate::pool::may_lend)).
#[derive(Debug)]
pub(in crate::pool) struct ReceivedBlocks {
    stream: Arc<ResultRing>,
    count: u64,
}

impl Drop for ReceivedBlocks {
    fn drop(&mut self) {
        self.stream.state().received.fetch_add(self.count, Ordering::Relaxed);
    }
}

impl From<ResultRing> for Results {
    fn from(stream: ResultRing) -> Self {
        Self { stream: Arc::new(stream), head: 0, returned: 0, is_broken: false }
    }
}

impl Results {
    /// Returns the state of the worker. The worker may change it at any time.
    pub(in crate::pool) fn state(&self) -> &WorkerState {
        self.stream.state()
    }

    /// Returns the worker's file, in which large results are.
    pub(in crate::pool) fn segment(&self) -> &Segment {
        &self.stream.segment
    }

    /// Returns a guard for `count` descriptors that this process has received.
    pub(in crate::pool) fn received(&self, count: usize) -> ReceivedBlocks {
        ReceivedBlocks { stream: Arc::clone(&self.stream), count: count as u64 }
    }

    /// Returns whether there are unread bytes. Always false once the stream is broken.
    pub(in crate::pool) fn is_anything_unread(&self) -> bool {
        !self.is_broken && self.stream.index().written() != self.head
    }

    /// Restores the shared counts from the parent's own, and wakes the worker.
    ///
    /// For the audit: a worker that has overwritten its own counts may wait for room that exists.
    pub(in crate::pool) fn repair_counts(&self) {
        self.stream.index().repair(self.head, self.returned);
    }

    /// Ends the stream after invalid data: nothing more is read.
    pub(in crate::pool) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Reads all records into `out`, which is cleared first.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] if the tail is further ahead than the length of the ring.
    pub(in crate::pool) fn read(&mut self, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        out.clear();
        if self.is_broken {
            return Ok(());
        }
        let stream = &self.stream;
        let tail = stream.index().written();
        let len = tail.wrapping_sub(self.head);
        if len > RING_LEN {
            return Err(MemoryError::Corrupt);
        }
        let (at, room) = ResultRing::at(self.head);
        stream.segment.copy_out(at, len.min(room), out)?;
        if len > room {
            stream.segment.copy_out(RING, len - room, out)?;
        }
        if len > 0 {
            self.head = tail;
            stream.index().free(tail);
        }
        Ok(())
    }

    /// Returns a block to the worker. Returns false if the ring of offsets is full.
    ///
    /// The caller has copied the block. If it is refused, the caller keeps the offset and tries again later.
    pub(in crate::pool) fn give_back(&mut self, offset: u64) -> bool {
        self.stream.index().give_back(self.stream.returns(), &mut self.returned, offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::result_index::RETURN_SLOTS;
    use super::*;

    /// Returns both ends of a ring.
    fn pair() -> (ResultRing, Results) {
        let stream = ResultRing::new().expect("memory");
        let other = stream.as_fd().try_clone_to_owned().expect("a descriptor");
        (ResultRing::open(other).expect("memory"), Results::from(stream))
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            while parse(&mut rest).is_ok() {}
            prop_assert!(rest.len() <= bytes.len());
        }
    }

    #[test]
    fn records_come_back_whole_also_where_the_ring_wraps() {
        let (stream, mut results) = pair();
        let mut bytes = Vec::new();
        for round in 0..100_u64 {
            let mut body: Vec<u8> =
                (0..=255).cycle().take(4000 + usize::try_from(round).expect("small") * 17).collect();
            assert!(stream.write_begin(9, 1 << 43).expect("memory"));
            assert!(stream.write_end(ResultKind::Returned, LOGGED, &mut body).expect("memory"));
            assert!(stream.write_end_in_block(ResultKind::Raised, 0, 77, 88).expect("memory"));
            results.read(&mut bytes).expect("good records");
            let mut rest = &bytes[..];
            let begin = parse(&mut rest).expect("whole");
            assert_eq!((begin.kind, begin.body), (ResultKind::Begin, ResultBody::Number(1 << 53 | 9)));
            let end = parse(&mut rest).expect("whole");
            assert_eq!(
                (end.kind, end.flags, end.body),
                (ResultKind::Returned, LOGGED, ResultBody::Bytes(&body[WORD_LEN..]))
            );
            let block = parse(&mut rest).expect("whole");
            assert_eq!((block.kind, block.body), (ResultKind::Raised, ResultBody::Block { offset: 77, len: 88 }));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn plain_results_are_taken_together() {
        let (stream, mut results) = pair();
        for n in 0..5u8 {
            assert!(stream.write_end(ResultKind::Returned, 0, &mut [n; WORD_LEN + 3]).expect("memory"));
        }
        assert!(stream.write_end(ResultKind::Raised, 0, &mut [9; WORD_LEN]).expect("memory"));
        let mut bytes = Vec::new();
        results.read(&mut bytes).expect("good records");
        let mut rest = &bytes[..];
        assert_eq!(take_results(&mut rest, 2).1, 2);
        let (mut taken, count) = take_results(&mut rest, 100);
        assert_eq!(count, 3);
        for n in 2..5u8 {
            assert_eq!(next_result(&mut taken), Some(&[n; 3][..]));
        }
        assert_eq!((next_result(&mut taken), take_results(&mut rest, 100).1), (None, 0));
        assert_eq!(parse(&mut rest).map(|record| record.kind).ok(), Some(ResultKind::Raised));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_blocks_come_back() {
        let (stream, mut results) = pair();
        while stream.write_end(ResultKind::Returned, 0, &mut [0; INLINE_LEN]).expect("memory") {}
        assert!(stream.unread() > RING_LEN - 2 * INLINE_LEN as u64);
        results.read(&mut Vec::new()).expect("good records");
        assert!(stream.write_end(ResultKind::Returned, 0, &mut [0; INLINE_LEN]).expect("memory"));
        for n in 0..RETURN_SLOTS as u64 {
            assert!(results.give_back(n));
        }
        assert!(!results.give_back(5));
        assert_eq!((stream.take_back(), stream.take_back()), (Some(0), Some(1)));
        assert!(results.give_back(5));
    }

    #[test]
    fn a_count_that_is_nonsense_breaks_the_stream_once_and_for_good() {
        let (stream, mut results) = pair();
        assert!(stream.write_begin(1, 2).expect("memory"));
        stream.index().commit(u64::MAX);
        stream.index().repair(u64::MAX - 5, 0);
        let mut bytes = vec![1];
        assert!(results.is_anything_unread());
        assert!(matches!(results.read(&mut bytes), Err(MemoryError::Corrupt)));
        results.break_off();
        assert!(!results.is_anything_unread());
        assert!(results.read(&mut bytes).is_ok() && bytes.is_empty());
    }

    #[test]
    fn what_runs_is_told_apart() {
        assert_eq!(running_position(running(5, 0)), Some(5));
        assert_ne!(running(5, 0), running(5, 1));
        assert!(running(0, 0) > REVOKED);
        assert_eq!((running_item(running(5, 7)), running_item(cut(running(5, 7)))), (7, 7));
        assert!(is_cut(cut(running(5, 7))) && !is_cut(running(5, MOST_STEPS)) && !is_cut(REVOKED));
        assert_eq!(running_position(IDLE), None);
    }
}
