//! [`Workers`]: the workers of a pool by place, and the places in which a worker must be started.

use std::collections::{HashMap, VecDeque};

use super::scheduler::{Action, Place};
use super::worker_handle::WorkerHandle;
use crate::pool::shared::claim::WORKERS;

/// See the module.
///
/// A place is empty while no worker runs there. The number of places grows with the wanted number of workers, and never
/// shrinks, so that a [`Place`] stays valid.
#[derive(Debug, Default)]
pub(super) struct Workers {
    places: Vec<Option<WorkerHandle>>,
    /// The place of each worker, by the poller's key of its descriptors.
    by_key: HashMap<u64, usize>,
    /// The place of each worker, by the number by which it claims tasks.
    by_number: HashMap<u32, usize>,
    /// The last number that was given out. A pool may start more workers in its life than there are numbers, so they are
    /// reused.
    last_number: u32,
    /// The last key that was given out. The first is 1.
    last_key: u64,
    /// Places in which workers must be started.
    to_start: VecDeque<Place>,
    /// Actions for workers that are being started, carried out when they have started.
    ///
    /// Only [`Action::Retire`] and [`Action::Kill`].
    on_arrival: HashMap<Place, Action>,
}

impl Workers {
    /// Creates `count` places, in each of which a worker must be started.
    pub(super) fn new(count: usize) -> Self {
        let places = (0..count).map(|_| None).collect();
        Self { places, to_start: (0..count).map(Place).collect(), ..Self::default() }
    }

    /// Adds empty places, up to `count`.
    pub(super) fn grow(&mut self, count: usize) {
        if self.places.len() < count {
            self.places.resize_with(count, || None);
        }
    }

    /// Returns the number of places.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// Returns the worker at a place.
    pub(super) fn get(&self, at: usize) -> Option<&WorkerHandle> {
        self.places.get(at)?.as_ref()
    }

    /// Returns the worker at a place.
    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut WorkerHandle> {
        self.places.get_mut(at)?.as_mut()
    }

    /// Returns all workers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &WorkerHandle> {
        self.places.iter().flatten()
    }

    /// Returns all workers.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut WorkerHandle> {
        self.places.iter_mut().flatten()
    }

    /// Returns the place of the worker whose descriptors have this key in the poller; `None` if it was reaped meanwhile.
    pub(super) fn with_key(&self, key: u64) -> Option<usize> {
        self.by_key.get(&key).copied()
    }

    /// Returns the place of the worker that claims tasks by this number, which may come from shared memory.
    pub(super) fn with_number(&self, number: u32) -> Option<usize> {
        self.by_number.get(&number).copied()
    }

    /// Notes that a worker must be started at a place.
    pub(super) fn want(&mut self, place: Place) {
        self.to_start.push_back(place);
    }

    /// Returns whether a worker must be started.
    pub(super) fn is_any_wanted(&self) -> bool {
        !self.to_start.is_empty()
    }

    /// Returns the next place in which a worker must be started, with the number and the key for it. No living worker has
    /// the number.
    pub(super) fn next_to_start(&mut self) -> Option<(Place, u32, u64)> {
        let place = self.to_start.pop_front()?;
        // Bounded: a pool has fewer workers than there are numbers.
        for _ in 0..WORKERS {
            self.last_number = (self.last_number + 1) % WORKERS;
            if !self.by_number.contains_key(&self.last_number) {
                break;
            }
        }
        self.last_key += 1;
        Some((place, self.last_number, self.last_key))
    }

    /// Notes an action for the worker that is being started at a place. A later action replaces an earlier one.
    pub(super) fn set_on_arrival(&mut self, place: Place, action: Action) {
        self.on_arrival.insert(place, action);
    }

    /// Removes and returns the action for the worker that was being started at a place.
    pub(super) fn take_on_arrival(&mut self, place: Place) -> Option<Action> {
        self.on_arrival.remove(&place)
    }

    /// Puts a worker that was started in its place, which is empty.
    pub(super) fn add(&mut self, place: Place, worker: WorkerHandle) {
        if let Some(at) = self.places.get_mut(place.0) {
            self.by_key.insert(worker.key, place.0);
            self.by_number.insert(worker.number, place.0);
            *at = Some(worker);
        }
    }

    /// Removes a worker that has ended from its place.
    pub(super) fn remove(&mut self, at: usize) -> Option<WorkerHandle> {
        let worker = self.places.get_mut(at)?.take()?;
        self.by_key.remove(&worker.key);
        self.by_number.remove(&worker.number);
        Some(worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_number_and_a_key_of_its_own() {
        let mut workers = Workers::new(2);
        assert_eq!(
            (workers.next_to_start(), workers.next_to_start()),
            (Some((Place(0), 1, 1)), Some((Place(1), 2, 2)))
        );
        assert!(!workers.is_any_wanted() && workers.next_to_start().is_none());
        workers.want(Place(1));
        assert_eq!(workers.next_to_start(), Some((Place(1), 3, 3)));
    }

    #[test]
    fn a_number_is_not_given_out_again_while_a_worker_has_it() {
        let mut workers = Workers::new(1);
        workers.by_number.insert(7, 0);
        for _ in 0..2 * WORKERS {
            workers.want(Place(0));
            assert_ne!(workers.next_to_start().map(|(_, number, _)| number), Some(7));
        }
    }

    #[test]
    fn the_last_action_for_a_worker_that_starts_counts() {
        let mut workers = Workers::new(1);
        workers.set_on_arrival(Place(0), Action::Retire(Place(0)));
        workers.set_on_arrival(Place(0), Action::Kill(Place(0)));
        assert_eq!(workers.take_on_arrival(Place(0)), Some(Action::Kill(Place(0))));
        assert_eq!(workers.take_on_arrival(Place(0)), None);
    }
}
