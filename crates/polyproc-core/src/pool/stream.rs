//! [`ResultRing`]: the memory that a pool shares with one worker: what the worker does, and a ring of bytes by which its
//! results come back. The worker writes, the parent reads; nobody else touches it, and there is no lock.
//!
//! | offset | bytes | what | who writes it, when |
//! |---|---|---|---|
//! | 0 | 128 | [`Cell`] | see there |
//! | 384 | 64 | tail: bytes written since the beginning | the worker, once a record is whole: the one store that makes it count |
//! | 128 | 64 | head: bytes read; the parent goes by a copy of its own | the parent |
//! | 192 | 64 | [`EventCount`]: the worker, when the ring is full | see there |
//! | 256 | 64 | returned: blocks given back; the parent goes by a copy of its own | the parent, once the entry is written |
//! | 320 | 64 | taken: of these, how many the worker has taken | the worker |
//! | 1024 | 256 | the segment's regions | see [`Segment`] |
//! | 4096 | 8192 | a ring of offsets of blocks given back | the parent |
//! | 16384 | 131072 | the ring of records | the worker |
//! | 147456 | | large results | the worker, before a record speaks of them |
//!
//! A record is a word and some bytes: eight bits of [`ResultKind`], 56 bits of a number; see there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Count;
use crate::prim::{AtomicU32, AtomicU64, Ordering, fence};
use crate::robust::EventCount;
use crate::shm::{MemoryError, Segment};
use crate::sys::shared::shared;

const REGION_TABLE: u64 = 1024;
const RETURNS: u64 = 4096;
/// So many blocks can be on their way back.
pub(super) const RETURN_SLOTS: usize = 1024;
const RING: u64 = 16384;
/// Length of the ring in bytes.
pub(super) const RING_LEN: u64 = 131_072;
pub(super) const FIRST_BLOCK: u64 = RING + RING_LEN;
const FIRST_REGION: u64 = 3 * 65536;
/// Results up to this length go through the ring, larger ones through a block.
pub(super) const INLINE_LEN: usize = 16384;
/// Bits of the number of a slot in a [`ResultKind::Begin`].
const SLOT_BITS: u32 = 10;
const _: () = assert!(super::board::SLOTS == 1 << SLOT_BITS && super::claim::POSITIONS << SLOT_BITS <= 1 << 56);
/// Length of a record's word.
pub(super) const WORD_LEN: usize = 8;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ResultKind {
    /// The worker begins a task: its position, and the number of its slot in the lowest ten bits. The results of its items
    /// follow, one for each, in order.
    Begin = 1,
    /// An item's function returned: so many bytes of result.
    Returned = 2,
    /// It failed as the face encodes: so many bytes.
    Raised = 3,
    /// It panicked: so many bytes, a [`Panic`](crate::process::Panic).
    Panicked = 4,
    /// It could not be called: so many bytes of text.
    Refused = 5,
}

/// The bytes lie in a block; in their place stands its offset.
const IN_BLOCK: u8 = 0x80;
/// The channel holds what the task logged.
pub(super) const LOGGED: u8 = 0x40;
/// The channel holds the result's descriptors.
pub(super) const WITH_FDS: u8 = 0x20;
const FLAGS: u8 = IN_BLOCK | LOGGED | WITH_FDS;

/// A record as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResultRecord<'a> {
    pub(super) kind: ResultKind,
    /// [`LOGGED`], [`WITH_FDS`].
    pub(super) flags: u8,
    pub(super) body: ResultBody<'a>,
}

/// Slot and position of the task that a [`ResultKind::Begin`] speaks of.
pub(super) fn begun(number: u64) -> (usize, u64) {
    ((number & ((1 << SLOT_BITS) - 1)) as usize, number >> SLOT_BITS)
}

/// Where a record's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResultBody<'a> {
    /// None: the number says it all.
    Number(u64),
    Bytes(&'a [u8]),
    Block {
        offset: u64,
        len: u64,
    },
}

/// Takes the first records off `bytes` that are plain results, at most `most` of them, as they stand; and their number.
pub(super) fn take_results<'a>(bytes: &mut &'a [u8], most: u32) -> (&'a [u8], u32) {
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

/// Takes the first result off what [`take_results`] gave.
pub(super) fn next_result<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let word = bytes.split_off(..WORD_LEN)?;
    let len = usize::try_from(u64::from_le_bytes(word.try_into().ok()?) >> 8).ok()?;
    bytes.split_off(..len)
}

/// Takes the first record off `bytes`.
pub(super) fn parse<'a>(bytes: &mut &'a [u8]) -> Result<ResultRecord<'a>, MemoryError> {
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
    /// What a worker does.
    ///
    /// | offset | bytes | field | who writes it, when |
    /// |---|---|---|---|
    /// | 0 | 8 | current: [`IDLE`], or the position and item that it runs, or [`DOOMED`] | the worker, from idle and back; the parent, to end it |
    /// | 8 | 8 | started: when it began the item, where items are limited; nanoseconds of the monotonic clock | the worker |
    /// | 16 | 8 | since: when it became idle or busy | the worker |
    /// | 24 | 8 | busy: nanoseconds that it was busy before that | the worker |
    /// | 32 | 8 | items: how many it has run | the worker |
    /// | 40 | 8 | bytes_in: of arguments | the worker |
    /// | 48 | 8 | bytes_out: of results | the worker |
    /// | 56 | 8 | ready: when it began to take tasks | the worker |
    /// | 64 | 4 | phase: see [`WorkerPhase`] | the worker |
    /// | 68 | 4 | retire: not 0 when it is to end | the parent |
    /// | 72 | 8 | sent: descriptors of results that it sent | the worker |
    /// | 80 | 8 | received: of these, those that the parent has no more | the parent |
    pub(super) struct Cell {
        pub(super) current: AtomicU64,
        pub(super) started: AtomicU64,
        pub(super) since: AtomicU64,
        pub(super) busy: AtomicU64,
        pub(super) items: AtomicU64,
        pub(super) bytes_in: AtomicU64,
        pub(super) bytes_out: AtomicU64,
        pub(super) ready: AtomicU64,
        pub(super) phase: AtomicU32,
        pub(super) retire: AtomicU32,
        pub(super) sent: AtomicU64,
        pub(super) received: AtomicU64,
    }
}
const _: () = assert!(size_of::<Cell>() == 128);

/// It runs no task.
pub(super) const IDLE: u64 = 0;
/// The parent is about to kill it: it begins and ends nothing any more.
pub(super) const DOOMED: u64 = 1;

/// The parent wants the items behind the one that runs: the worker is to leave the task then.
const CUT: u64 = 1 << 19;

/// That an item of the task of a position runs.
pub(super) fn running(position: u64, item: u32) -> u64 {
    position << 20 | u64::from(item.min(MOST_STEPS) + 2)
}

/// Tasks whose worker says which item it runs have fewer items than this.
pub(super) const MOST_STEPS: u32 = (1 << 19) - 3;

/// The position in what [`running`] gave.
pub(super) fn running_position(current: u64) -> Option<u64> {
    (current > DOOMED).then_some(current >> 20)
}

/// The item in what [`running`] gave.
pub(super) fn running_item(current: u64) -> u32 {
    ((current & (CUT - 1)) as u32).saturating_sub(2)
}

/// What [`running`] gave, cut.
pub(super) fn cut(current: u64) -> u64 {
    current | CUT
}

/// Whether the parent has cut it.
pub(super) fn is_cut(current: u64) -> bool {
    current > DOOMED && current & CUT != 0
}

/// What a worker is about; 0 while it is being set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum WorkerPhase {
    Initialising = 1,
    Idle = 2,
    Busy = 3,
}

shared! {
    struct Returns { offsets: [AtomicU64; RETURN_SLOTS], }
}

/// See the module.
#[derive(Debug)]
pub(super) struct ResultRing {
    segment: Segment,
    /// The worker's own count of what it wrote, which goes to the shared one.
    written: AtomicU64,
}

impl ResultRing {
    pub(super) fn new() -> io::Result<Self> {
        let segment = Segment::create(c"polyproc-worker", FIRST_REGION, REGION_TABLE, RETURNS)?;
        segment.reserve(0, FIRST_BLOCK)?;
        Ok(Self { segment, written: AtomicU64::new(0) })
    }

    pub(super) fn open(memfd: OwnedFd) -> io::Result<Self> {
        let segment = Segment::open(memfd, FIRST_REGION, REGION_TABLE, RETURNS)?.counted();
        Ok(Self { segment, written: AtomicU64::new(0) })
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(super) fn cell(&self) -> &Cell {
        self.segment.fixed(0)
    }

    fn count(&self, offset: u64) -> &AtomicU64 {
        &self.segment.fixed::<Count>(offset).count
    }

    fn tail(&self) -> &AtomicU64 {
        self.count(384)
    }

    fn head(&self) -> &AtomicU64 {
        self.count(128)
    }

    pub(super) fn space(&self) -> &EventCount {
        self.segment.fixed(192)
    }

    /// Bytes that the parent has not read, as the worker sees it.
    pub(super) fn unread(&self) -> u64 {
        self.tail().load(Ordering::Acquire).wrapping_sub(self.head().load(Ordering::Acquire))
    }

    fn at(position: u64) -> (u64, u64) {
        let at = position % RING_LEN;
        (RING + at, RING_LEN - at)
    }

    fn copy_in(&self, position: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (at, room) = Self::at(position);
        let (first, second) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        self.segment.copy_in(at, first)?;
        if second.is_empty() { Ok(()) } else { self.segment.copy_in(RING, second) }
    }

    /// Writes a record, if there is room: eight bytes for the word, and no more than [`INLINE_LEN`] others.
    fn write(&self, flags: u8, number: u64, record: &mut [u8]) -> Result<bool, MemoryError> {
        let tail = self.written.load(Ordering::Relaxed);
        let len = record.len() as u64;
        if tail.wrapping_sub(self.head().load(Ordering::Acquire)).saturating_add(len) > RING_LEN {
            return Ok(false);
        }
        let word = record.first_chunk_mut().ok_or(MemoryError::Corrupt)?;
        *word = (number << 8 | u64::from(flags)).to_le_bytes();
        self.copy_in(tail, record)?;
        self.written.store(tail.wrapping_add(len), Ordering::Relaxed);
        self.tail().store(tail.wrapping_add(len), Ordering::Release); // pairs with the load in `read`
        Ok(true)
    }

    /// The worker begins a task. False when there is no room.
    pub(super) fn write_begin(&self, slot: u32, position: u64) -> Result<bool, MemoryError> {
        self.write(ResultKind::Begin as u8, position << SLOT_BITS | u64::from(slot), &mut [0; WORD_LEN])
    }

    /// How an item ended: the bytes behind the first [`WORD_LEN`] of `record`. False when there is no room.
    pub(super) fn write_end(&self, kind: ResultKind, flags: u8, record: &mut [u8]) -> Result<bool, MemoryError> {
        self.write(kind as u8 | flags, (record.len() - WORD_LEN) as u64, record)
    }

    /// The same, with the bytes in a block.
    pub(super) fn write_end_in_block(
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

    #[expect(clippy::cast_possible_truncation, reason = "a remainder")]
    fn return_slot(at: u64) -> usize {
        (at % RETURN_SLOTS as u64) as usize
    }

    fn returns(&self) -> &Returns {
        self.segment.fixed(RETURNS)
    }

    /// Whether a block came back that the worker has not taken yet.
    pub(super) fn has_returned(&self) -> bool {
        self.count(256).load(Ordering::Acquire) != self.count(320).load(Ordering::Relaxed)
    }

    /// The worker takes the next block that came back.
    pub(super) fn take_back(&self) -> Option<u64> {
        let (returned, taken) = (self.count(256), self.count(320));
        let at = taken.load(Ordering::Relaxed);
        if at == returned.load(Ordering::Acquire) {
            return None;
        }
        let offset = self.returns().offsets[Self::return_slot(at)].load(Ordering::Relaxed);
        taken.store(at.wrapping_add(1), Ordering::Release);
        Some(offset)
    }
}

impl AsFd for ResultRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.segment.as_fd()
    }
}

/// The parent's end of a [`ResultRing`]. What the worker may overwrite is read once and checked; the parent's own counts are kept in
/// its private memory, so a worker that writes nonsense ends its own stream and nothing else.
#[derive(Debug)]
pub(super) struct Results {
    stream: Arc<ResultRing>,
    head: u64,
    returned: u64,
    is_broken: bool,
}

/// Descriptors of results that are in this process's table until this is dropped.
#[derive(Debug)]
pub(super) struct ReceivedBlocks {
    stream: Arc<ResultRing>,
    count: u64,
}

impl Drop for ReceivedBlocks {
    fn drop(&mut self) {
        self.stream.cell().received.fetch_add(self.count, Ordering::Relaxed);
    }
}

impl From<ResultRing> for Results {
    fn from(stream: ResultRing) -> Self {
        Self { stream: Arc::new(stream), head: 0, returned: 0, is_broken: false }
    }
}

impl Results {
    pub(super) fn cell(&self) -> &Cell {
        self.stream.cell()
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.stream.segment
    }

    /// So many descriptors came.
    pub(super) fn received(&self, count: usize) -> ReceivedBlocks {
        ReceivedBlocks { stream: Arc::clone(&self.stream), count: count as u64 }
    }

    /// Whether there are bytes to be read; never again once the stream is broken.
    pub(super) fn is_anything_unread(&self) -> bool {
        !self.is_broken && self.stream.tail().load(Ordering::Acquire) != self.head
    }

    /// The counts that the worker sees are the parent's.
    pub(super) fn repair_counts(&self) {
        self.stream.head().store(self.head, Ordering::Release);
        self.stream.count(256).store(self.returned, Ordering::Release);
        self.stream.space().wake_generation();
    }

    /// The worker wrote nonsense: nothing more is read.
    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Takes all records there are, into `out`, which it empties first.
    ///
    /// # Errors
    /// [`MemoryError::Corrupt`] when the worker counts more bytes than the ring holds.
    pub(super) fn read(&mut self, out: &mut Vec<u8>) -> Result<(), MemoryError> {
        out.clear();
        if self.is_broken {
            return Ok(());
        }
        let stream = &self.stream;
        let tail = stream.tail().load(Ordering::Acquire); // pairs with the Release in `write`
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
            stream.head().store(tail, Ordering::Release); // pairs with the load in `unread`
            // The worker sets its bit, then looks at the head: one of the two sees the other.
            fence(Ordering::SeqCst);
            stream.space().wake_all();
        }
        Ok(())
    }

    /// Gives a block back. False when too many are on their way.
    pub(super) fn give_back(&mut self, offset: u64) -> bool {
        let (returned, taken) = (self.stream.count(256), self.stream.count(320));
        if self.returned.wrapping_sub(taken.load(Ordering::Acquire)) >= RETURN_SLOTS as u64 {
            return false;
        }
        let slot = ResultRing::return_slot(self.returned);
        self.stream.returns().offsets[slot].store(offset, Ordering::Relaxed);
        self.returned = self.returned.wrapping_add(1);
        returned.store(self.returned, Ordering::Release); // pairs with the load in `take_back`
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Both ends.
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
        stream.tail().store(u64::MAX, Ordering::Release);
        stream.head().store(u64::MAX - 5, Ordering::Release);
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
        assert!(running(0, 0) > DOOMED);
        assert_eq!((running_item(running(5, 7)), running_item(cut(running(5, 7)))), (7, 7));
        assert!(is_cut(cut(running(5, 7))) && !is_cut(running(5, MOST_STEPS)) && !is_cut(DOOMED));
        assert_eq!(running_position(IDLE), None);
    }
}
