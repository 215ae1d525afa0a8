//! Put, get and `task_done`.

use polyproc::{GetError, JoinableQueue, OnConsumerDeath, PutError, SharedBytes, SharedBytesMut, TaskDoneError};
use polyproc_core::crash;
use serde::{Deserialize, Serialize};

use super::trial::{LIMIT, Operation, PATIENCE, Said, Situation};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Size {
    /// In a chunk with other items.
    Small,
    /// In a block of its own.
    Block,
    /// With lent bytes, whose descriptor goes through the socket.
    Lent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    Put,
    Get,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum OnDeath {
    Nothing,
    CountAsDone,
    PutBack,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct QueueOperation {
    what: What,
    size: Size,
    on_death: OnDeath,
}

/// All operations on queues.
pub(crate) const QUEUES: [QueueOperation; 11] = {
    use OnDeath::{CountAsDone, Nothing, PutBack};
    const fn of(what: What, size: Size, on_death: OnDeath) -> QueueOperation {
        QueueOperation { what, size, on_death }
    }
    [
        of(What::Put, Size::Small, Nothing),
        of(What::Put, Size::Block, Nothing),
        of(What::Put, Size::Lent, Nothing),
        of(What::Put, Size::Small, PutBack),
        of(What::Get, Size::Small, Nothing),
        of(What::Get, Size::Block, Nothing),
        of(What::Get, Size::Lent, Nothing),
        of(What::Get, Size::Small, PutBack),
        of(What::Done, Size::Small, Nothing),
        of(What::Done, Size::Small, CountAsDone),
        of(What::Done, Size::Small, PutBack),
    ]
};

/// A value whose bytes follow from its number.
#[derive(Serialize, Deserialize)]
pub(crate) struct Item {
    number: u64,
    bytes: serde_bytes::ByteBuf,
    lent: Option<SharedBytes>,
}

const LENT_LEN: usize = 5000;

impl Item {
    fn new(number: u64, size: Size) -> Self {
        let byte = Self::byte(number);
        let lent = (size == Size::Lent).then(|| {
            let mut bytes = SharedBytesMut::new(LENT_LEN).expect("memory");
            bytes.fill(byte);
            bytes.freeze().expect("it can be sealed").into()
        });
        let len = if size == Size::Block { 20_000 } else { 8 };
        Self { number, bytes: vec![byte; len].into(), lent }
    }

    fn byte(number: u64) -> u8 {
        u8::try_from(number % 251).unwrap_or(0)
    }

    fn is_whole(&self) -> bool {
        let is_right = |bytes: &[u8]| bytes.iter().all(|byte| *byte == Self::byte(self.number));
        [8, 20_000].contains(&self.bytes.len())
            && is_right(&self.bytes)
            && self.lent.as_ref().is_none_or(|lent| lent.len() == LENT_LEN && is_right(lent))
    }
}

type Queue = JoinableQueue<Item>;

// The numbers of the items: in the queue before the operation, put by the victim, by the second process, by the checker while
// the victim is stopped, by the checker at the end.
const FIRST: u64 = 1;
const NEXT: u64 = 2;
const SECOND: u64 = 60;
const LIMITED: u64 = 70;
const AFTER: u64 = 100;

pub(crate) struct Checker {
    operation: QueueOperation,
    queue: Queue,
    taken: Vec<u64>,
    limited: Vec<u64>,
}

impl QueueOperation {
    fn death_matters(self) -> bool {
        self.on_death != OnDeath::Nothing
    }
}

impl Operation for QueueOperation {
    type Objects = Queue;
    type Ready = Option<Item>;
    type Checker = Checker;

    fn name(self) -> String {
        let what = match self.what {
            What::Put => "put",
            What::Get => "get",
            What::Done => "task_done",
        };
        let size = match (self.what, self.size) {
            (What::Done, _) => "",
            (_, Size::Small) => " small",
            (_, Size::Block) => " 20 KB",
            (_, Size::Lent) => " lent",
        };
        let kind = match self.on_death {
            OnDeath::Nothing => "",
            OnDeath::CountAsDone => ", count as done",
            OnDeath::PutBack => ", put back",
        };
        format!("{what}{size}{kind}")
    }

    fn objects(self) -> std::io::Result<Queue> {
        let on_death = match self.on_death {
            OnDeath::Nothing => OnConsumerDeath::Nothing,
            OnDeath::CountAsDone => OnConsumerDeath::CountAsDone,
            OnDeath::PutBack => OnConsumerDeath::PutBack,
        };
        JoinableQueue::with_on_consumer_death(0, on_death)
    }

    fn get_ready(self, queue: &Queue) -> Option<Item> {
        queue.put(Item::new(10, self.size)).expect("an open queue");
        assert_eq!(queue.get().expect("one is in it").number, 10);
        queue.task_done().expect("one was taken");
        queue.put(Item::new(FIRST, self.size)).expect("an open queue");
        match self.what {
            What::Put => return Some(Item::new(NEXT, self.size)),
            What::Get => queue.put(Item::new(NEXT, self.size)).expect("an open queue"),
            What::Done => {
                queue.put(Item::new(NEXT, self.size)).expect("an open queue");
                assert_eq!(queue.get().expect("one is in it").number, FIRST);
            }
        }
        None
    }

    fn operate(self, queue: &Queue, item: Option<Item>) {
        match (self.what, item) {
            (What::Put, Some(item)) => queue.put(item).expect("an open queue"),
            (What::Get, _) => _ = queue.get().expect("one is in it"),
            _ => queue.task_done().expect("one was taken"),
        }
    }

    fn recover(self, queue: &Queue) {
        queue.put(Item::new(SECOND, self.size)).expect("an open queue");
        if queue.get().is_ok() && self.death_matters() {
            let _ = queue.task_done();
        }
    }

    fn checker(self, queue: Queue) -> Checker {
        Checker { operation: self, queue, taken: Vec::new(), limited: Vec::new() }
    }

    fn call_with_limits(checker: &mut Checker, said: &mut Said) {
        let queue = &checker.queue;
        let put = said.in_time("put", LIMIT, || queue.put_timeout(Item::new(LIMITED, Size::Small), LIMIT));
        match put {
            Ok(()) => checker.limited.push(LIMITED),
            Err(PutError::Full(_)) => said.seen.push("put timed out".to_owned()),
            Err(error) => said.complain(format!("put: {error}")),
        }
        match said.in_time("get", LIMIT, || queue.get_timeout(LIMIT)) {
            Ok(item) => checker.take(&item, said),
            Err(GetError::Empty) => said.seen.push("get timed out".to_owned()),
            Err(error) => said.complain(format!("get: {error}")),
        }
        // Not all items are done, so this takes its whole limit.
        let _ = said.in_time("join", LIMIT / 10, || checker.queue.join_timeout(LIMIT / 10));
        let _ = said.in_time("len", LIMIT, || checker.queue.len());
    }

    fn check(mut checker: Checker, situation: Situation, said: &mut Said) {
        checker.drain(said);
        checker.compare(situation, said);
        checker.goes_on(said);
        checker.is_done(situation, said);
    }

    fn left_over(self, _: &Queue) -> Option<String> {
        let blocks = crash::blocks_in_use();
        (blocks != 1).then(|| format!("{blocks} blocks are in use, and not the last chunk alone"))
    }
}

impl Checker {
    fn take(&mut self, item: &Item, said: &mut Said) {
        said.check(item.is_whole(), || format!("item {} is torn", item.number));
        self.taken.push(item.number);
    }

    fn drain(&mut self, said: &mut Said) {
        loop {
            match self.queue.try_get() {
                Ok(item) => self.take(&item, said),
                Err(GetError::Empty) => break,
                Err(error) => return said.complain(format!("an item does not come through: {error}")),
            }
        }
        if !self.operation.death_matters() {
            return;
        }
        let mut done = 0;
        for _ in 0..10 {
            while done < self.taken.len() {
                done += 1;
                if let Err(error) = self.queue.task_done() {
                    said.complain(format!("task_done number {done} of {}: {error}", self.taken.len()));
                }
            }
            if self.operation.on_death == OnDeath::CountAsDone || self.queue.join_timeout(std::time::Duration::ZERO) {
                break;
            }
            // The items of a dead consumer are put back.
            match self.queue.get_timeout(PATIENCE) {
                Ok(item) => self.take(&item, said),
                Err(error) => return said.complain(format!("not all is done, but nothing comes back: {error}")),
            }
        }
        let joined = self.queue.join_timeout(PATIENCE);
        said.check(joined, || "join waits, though all is done that was taken".to_owned());
    }

    /// Checks that no acknowledged item is lost, no item arrives twice, and no unknown item arrives.
    fn compare(&self, situation: Situation, said: &mut Said) {
        let Situation { acknowledged, second, .. } = situation;
        let puts_back = self.operation.on_death == OnDeath::PutBack;
        let (mut must, mut may) = match self.operation.what {
            What::Put if acknowledged => (vec![FIRST, NEXT], vec![]),
            What::Put => (vec![FIRST], vec![NEXT]),
            // A dead consumer's item is put back. A victim that continues is killed before `task_done`, so its item is, too.
            What::Get if puts_back => (vec![FIRST, NEXT], vec![]),
            What::Get if acknowledged => (vec![NEXT], vec![]),
            What::Get => (vec![NEXT], vec![FIRST]),
            What::Done if puts_back && !acknowledged => (vec![NEXT], vec![FIRST]),
            What::Done => (vec![NEXT], vec![]),
        };
        must.extend(&self.limited);
        may.extend(second.then_some(SECOND));
        // The checker took an item while the victim was stopped, so the victim may then have taken either of the two.
        if self.operation.what == What::Get && !self.taken.is_empty() && !puts_back && !situation.killed {
            (must, may) = (self.limited.clone(), vec![FIRST, NEXT]);
            let known = self.taken.iter().filter(|number| may.contains(number)).count();
            said.check(known == 1, || format!("of two items the victim took one, and {known} are left"));
        }
        for number in &self.taken {
            let times = self.taken.iter().filter(|other| *other == number).count();
            said.check(times == 1, || format!("item {number} came {times} times"));
            let known = must.contains(number) || may.contains(number);
            said.check(known, || format!("item {number} came, of which nobody knows"));
        }
        let lost: Vec<_> = must.iter().filter(|number| !self.taken.contains(number)).collect();
        // The second process may have taken one.
        said.check(lost.len() <= usize::from(second), || format!("the items {lost:?} are lost"));
        said.happened = match self.operation.what {
            What::Put => Some(self.taken.contains(&NEXT)),
            What::Get if !puts_back => Some(!self.taken.contains(&FIRST)),
            _ => None,
        };
        for number in may.iter().filter(|number| **number <= NEXT) {
            let is = if self.taken.contains(number) { "there" } else { "not there" };
            said.seen.push(format!("item {number} {is}"));
        }
    }

    fn goes_on(&mut self, said: &mut Said) {
        for (number, size) in [(0, Size::Small), (1, Size::Block), (2, self.operation.size), (3, Size::Small)] {
            let number = AFTER + number;
            if let Err(error) = self.queue.put_timeout(Item::new(number, size), PATIENCE) {
                said.complain(format!("put afterwards: {error}"));
            }
            match self.queue.get_timeout(PATIENCE) {
                Ok(item) => {
                    said.check(item.is_whole() && item.number == number, || {
                        format!("item {} came and not {number}", item.number)
                    });
                }
                Err(error) => said.complain(format!("get afterwards: {error}")),
            }
        }
    }

    /// Checks that as many items can be marked as done as were put, and no more.
    fn is_done(&self, situation: Situation, said: &mut Said) {
        let mut times = 0;
        while self.queue.task_done().is_ok() && times < 50 {
            times += 1;
        }
        if self.operation.death_matters() {
            said.check(times == 4, || format!("4 items were taken, task_done worked {times} times"));
        } else if !situation.second {
            // How many of the first two items were put. The victim may have marked one as done.
            let there = usize::from(self.operation.what != What::Put || self.taken.contains(&NEXT)) + 1;
            let put = there + 4 + self.limited.len();
            let (most, least) = match self.operation.what {
                What::Done if situation.acknowledged => (put - 1, put - 1),
                What::Done => (put, put - 1),
                _ => (put, put),
            };
            said.check((least..=most).contains(&times), || {
                format!("task_done worked {times} times, and not between {least} and {most}")
            });
        }
        said.check(self.queue.join_timeout(PATIENCE), || "join waits, though all is done".to_owned());
        let more = self.queue.task_done();
        said.check(matches!(more, Err(TaskDoneError::TooMany)), || format!("one more is done: {more:?}"));
    }
}
