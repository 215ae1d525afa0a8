//! [`Calls`]: the calls of a pool whose handle exists or whose items have not all ended.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use slab::Slab;

use super::ends::{End, Ends};
use super::functions::FunctionId;
use super::key::CallKey;
use super::latch::Parker;
use super::notifications::OnComplete;
use super::settings::{CallSettings, OnLog};
use crate::pool::TaskEnd;

/// Why a call is stopped early.
///
/// Ordered by strength: a call that is stopped twice keeps the stronger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    /// Tasks that a worker has claimed may continue.
    ///
    /// No caller wants the results any more, but side effects of running items should complete.
    GivenUp,
    /// Workers that run its items are killed; the items end with [`TaskEnd::Cancelled`].
    Cancelled,
    /// As cancelled, but the items end with [`TaskEnd::TimedOut`].
    TimedOut,
}

impl Stop {
    /// Returns how the items of a stopped call end.
    pub(super) fn end(self) -> TaskEnd {
        match self {
            Self::GivenUp | Self::Cancelled => TaskEnd::Cancelled,
            Self::TimedOut => TaskEnd::TimedOut,
        }
    }
}

/// A call: its settings, how far it is, and the results that were not taken.
///
/// Lives until it is over and its [`Call`](crate::pool::Call) was dropped.
pub(super) struct CallState {
    key: CallKey,
    settings: CallSettings,
    /// The function that its items are passed to.
    function: FunctionId,
    /// The function is removed with the call.
    has_context: bool,
    /// Results that were not taken yet.
    ends: Ends,
    /// Number of items that were submitted and have not ended.
    left: u64,
    /// All items have been submitted.
    is_sealed: bool,
    /// The [`Call`](crate::pool::Call) was dropped: results are discarded.
    is_abandoned: bool,
    /// Its results must be read as they arrive, even if no thread waits: it is neither awaited nor bulk, or was abandoned.
    is_eager: bool,
    /// Why its items end early; `None` if they do not.
    stop: Option<Stop>,
    /// Woken once at the next result, or when the call is over.
    waker: Option<Waker>,
    /// Run by the callback thread when the call is over.
    on_complete: Vec<OnComplete>,
    /// The time of its entry in the limits.
    pub(super) limit_at: Option<Instant>,
    /// Where its followers sleep. Shared with [`Call`](crate::pool::Call), so that they sleep without the lock.
    parker: Arc<Parker>,
}

/// What a call that is over leaves to do.
pub(super) struct FinishedCall {
    /// Its callbacks.
    pub(super) on_complete: Vec<OnComplete>,
    /// The future that waits for it.
    pub(super) waker: Option<Waker>,
    /// It was eager until now.
    pub(super) was_eager: bool,
    /// The time of its entry in the limits.
    pub(super) limit_at: Option<Instant>,
    /// The call was abandoned: it must be removed.
    pub(super) is_abandoned: bool,
}

impl CallState {
    /// Returns how its tasks run.
    pub(super) fn settings(&self) -> &CallSettings {
        &self.settings
    }

    /// Returns the function that its items are passed to.
    pub(super) fn function(&self) -> FunctionId {
        self.function
    }

    /// Returns why its items end early; `None` if they do not.
    pub(super) fn stop(&self) -> Option<Stop> {
        self.stop
    }

    /// Notes that its items end early. A stronger reason stays. Returns the reason that holds.
    pub(super) fn set_stop(&mut self, stop: Stop) -> Stop {
        *self.stop.insert(self.stop.map_or(stop, |earlier| earlier.max(stop)))
    }

    /// Returns whether no further item will end.
    pub(super) fn is_over(&self) -> bool {
        self.is_sealed && self.left == 0
    }

    /// Returns whether all items but one have ended, and no more will be submitted.
    pub(super) fn is_last_item_left(&self) -> bool {
        self.is_sealed && self.left == 1
    }

    /// Returns whether there are results to take.
    pub(super) fn has_ends(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Returns whether its results are read even if no thread waits.
    pub(super) fn is_eager(&self) -> bool {
        self.is_eager
    }

    /// Returns where its followers sleep.
    pub(super) fn parker(&self) -> &Arc<Parker> {
        &self.parker
    }

    /// Counts items as submitted.
    pub(super) fn add_items(&mut self, count: u64) {
        self.left += count;
    }

    /// Adds how the item with this index ended.
    pub(super) fn push(&mut self, index: u64, end: End) {
        self.ends.push(index, end);
    }

    /// Adds `count` plain results, as [`take_results`](crate::pool::shared::result_ring::take_results) returns them.
    pub(super) fn push_returned(&mut self, index: u64, count: u32, results: &[u8]) {
        self.ends.push_returned(index, count, results);
    }

    /// Counts items as ended, whose ends were pushed. Drops them if the call was abandoned. Returns the future to wake.
    pub(super) fn count_ended(&mut self, count: u64) -> Option<Waker> {
        self.left -= count;
        if self.is_abandoned {
            self.ends = Ends::default();
        }
        self.waker.take()
    }

    /// Notes that all items have been submitted.
    pub(super) fn seal(&mut self) {
        self.is_sealed = true;
    }

    /// Notes that the handle was dropped: nothing more is submitted, and results are discarded. Returns whether its results
    /// must be read as they arrive from now on.
    pub(super) fn abandon(&mut self) -> bool {
        self.is_abandoned = true;
        self.is_sealed = true;
        !std::mem::replace(&mut self.is_eager, true)
    }

    /// Moves the results that have arrived to `ends`, which must be empty. Returns the number of items that have not ended.
    pub(super) fn take(&mut self, ends: &mut Ends) -> u64 {
        std::mem::swap(&mut self.ends, ends);
        self.left
    }

    /// Returns whether there are results to take or the call is over. If not, `waker` is woken when that changes.
    pub(super) fn poll(&mut self, waker: &Waker) -> bool {
        let is_ready = self.is_over() || self.has_ends();
        self.waker = (!is_ready).then(|| waker.clone());
        is_ready
    }

    /// Adds a callback. Returns it if the call is over.
    pub(super) fn then(&mut self, then: OnComplete) -> Option<OnComplete> {
        if self.is_over() {
            return Some(then);
        }
        self.on_complete.push(then);
        None
    }

    /// If the call is over, takes what that leaves to do. Its results can still be taken.
    pub(super) fn finish(&mut self) -> Option<FinishedCall> {
        self.is_over().then(|| FinishedCall {
            on_complete: std::mem::take(&mut self.on_complete),
            waker: self.waker.take(),
            was_eager: std::mem::take(&mut self.is_eager),
            limit_at: self.limit_at.take(),
            is_abandoned: self.is_abandoned,
        })
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Calls {
    states: Slab<CallState>,
    /// The serial of the last call.
    serial: u64,
}

impl Calls {
    /// Adds a call, and returns its key, which refers to it until the call is over and was abandoned or taken.
    pub(super) fn open(
        &mut self,
        function: FunctionId,
        has_context: bool,
        settings: CallSettings,
        parker: Arc<Parker>,
    ) -> CallKey {
        self.serial += 1;
        let key = CallKey { at: self.states.vacant_key(), serial: self.serial };
        let is_eager = !settings.is_bulk && !settings.is_awaited;
        self.states.insert(CallState {
            key,
            settings,
            function,
            has_context,
            ends: Ends::default(),
            left: 0,
            is_sealed: false,
            is_abandoned: false,
            is_eager,
            stop: None,
            waker: None,
            on_complete: Vec::new(),
            limit_at: None,
            parker,
        });
        key
    }

    /// Returns a call; `None` if it was removed.
    pub(super) fn get(&self, call: CallKey) -> Option<&CallState> {
        self.states.get(call.at).filter(|state| state.key == call)
    }

    /// Returns a call; `None` if it was removed.
    pub(super) fn get_mut(&mut self, call: CallKey) -> Option<&mut CallState> {
        self.states.get_mut(call.at).filter(|state| state.key == call)
    }

    /// Removes a call that is over. Returns its function, if that goes with it, and its callback, whose drop may run user code.
    pub(super) fn remove(&mut self, call: CallKey) -> Option<(Option<FunctionId>, Option<OnLog>)> {
        self.get(call)?;
        let state = self.states.try_remove(call.at)?;
        Some((state.has_context.then_some(state.function), state.settings.on_log))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(settings: CallSettings) -> (Calls, CallKey) {
        let mut calls = Calls::default();
        let call = calls.open(FunctionId(1), true, settings, Arc::default());
        (calls, call)
    }

    #[test]
    fn a_call_is_over_when_it_is_sealed_and_its_items_have_ended() {
        let (mut calls, call) = open(CallSettings::default());
        let state = calls.get_mut(call).expect("open");
        assert!(state.is_eager() && !state.is_over() && state.finish().is_none());
        state.add_items(2);
        assert!(state.then(Box::new(|| ())).is_none(), "it is kept");
        state.push(0, End::Failed(Box::new(TaskEnd::Cancelled)));
        assert!(state.count_ended(1).is_none() && state.has_ends());
        state.seal();
        assert!(!state.is_over());
        state.push(1, End::Failed(Box::new(TaskEnd::Cancelled)));
        state.count_ended(1);
        let finished = state.finish().expect("it is over");
        assert!(finished.on_complete.len() == 1 && finished.was_eager && !finished.is_abandoned);
        assert!(state.then(Box::new(|| ())).is_some(), "it runs at once");
        let mut ends = Ends::default();
        assert_eq!(state.take(&mut ends), 0);
        let mut count = 0;
        ends.drain(|_, _| count += 1);
        assert_eq!(count, 2);
        assert!(matches!(calls.remove(call), Some((Some(FunctionId(1)), None))));
        let next = calls.open(FunctionId(1), false, CallSettings::default(), Arc::default());
        assert!(calls.get(call).is_none() && calls.get(next).is_some() && calls.remove(call).is_none());
    }

    #[test]
    fn results_of_an_abandoned_call_are_dropped() {
        let (mut calls, call) = open(CallSettings { is_awaited: true, ..CallSettings::default() });
        let state = calls.get_mut(call).expect("open");
        state.add_items(1);
        assert!(!state.is_eager() && state.abandon(), "from now on its results are read as they arrive");
        assert!(!state.abandon());
        state.push(0, End::Failed(Box::new(TaskEnd::Cancelled)));
        state.count_ended(1);
        assert!(!state.has_ends());
        assert!(state.finish().is_some_and(|finished| finished.is_abandoned && finished.was_eager));
    }

    #[test]
    fn the_stronger_reason_to_stop_stays() {
        let (mut calls, call) = open(CallSettings::default());
        let state = calls.get_mut(call).expect("open");
        assert_eq!(state.set_stop(Stop::Cancelled), Stop::Cancelled);
        assert_eq!(state.set_stop(Stop::GivenUp), Stop::Cancelled);
        assert_eq!(state.set_stop(Stop::TimedOut), Stop::TimedOut);
        assert!(matches!(state.stop().map(Stop::end), Some(TaskEnd::TimedOut)));
    }

    #[test]
    fn a_future_is_woken_at_the_next_result() {
        let (mut calls, call) = open(CallSettings::default());
        let state = calls.get_mut(call).expect("open");
        state.add_items(2);
        assert!(!state.poll(Waker::noop()));
        state.push(0, End::Failed(Box::new(TaskEnd::Cancelled)));
        assert!(state.count_ended(1).is_some(), "once");
        assert!(state.poll(Waker::noop()), "a result has arrived");
        state.push(1, End::Failed(Box::new(TaskEnd::Cancelled)));
        assert!(state.count_ended(1).is_none());
    }
}
