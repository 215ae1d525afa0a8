//! The targets: an operation is recorded once, in single steps, and each of its instructions is a target.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::trace::{Maps, Place};

/// The action on the victim at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// The victim is killed.
    Kill,
    /// The victim is stopped while other processes make calls with limits. Then it continues or is killed.
    Freeze,
    /// The victim is killed, and then a second process after some steps of its own.
    Double,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Double => "double",
        }
    }
}

pub(crate) const MODES: [Mode; 3] = [Mode::Kill, Mode::Freeze, Mode::Double];

/// The limits and the seed of a run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// Maximum number of targets of each operation, spread evenly; `None` for all.
    pub(crate) most: Option<usize>,
    /// Maximum time for each operation; `None` for no limit.
    pub(crate) budget: Option<Duration>,
    pub(crate) seed: u64,
}

/// Maximum number of targets in [`Mode::Double`]: each death is combined with a random second one, so a sample suffices.
const MOST_DOUBLE: usize = 300;

impl Scale {
    /// Returns the scale for a mode: modes that take longer try fewer targets.
    pub(crate) fn of(self, mode: Mode) -> Self {
        let most = match mode {
            Mode::Kill => self.most,
            Mode::Freeze => self.most.map(|most| most / 2),
            Mode::Double => Some(self.most.map_or(MOST_DOUBLE, |most| most / 4)),
        };
        Self { most, ..self }
    }

    /// Returns whether to stop before the last target: the time is over, or there were too many hangs.
    pub(crate) fn is_over(self, since: Instant, hangs: usize) -> bool {
        let most_hangs = if self.most.is_some() { 5 } else { 40 };
        hangs >= most_hangs || self.budget.is_some_and(|budget| since.elapsed() > budget)
    }
}

/// Pseudo-random numbers from a seed (D. Knuth's linear congruential generator).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit.max(1)
    }
}

/// An instruction, at one of its passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: u64,
    /// Number of the pass, from 1.
    pub(crate) pass: u32,
    /// Number of instructions executed before it.
    pub(crate) step: usize,
}

/// Number of seeded passes of an instruction, beside its first, second and last.
const SAMPLED_PASSES: usize = 2;

/// Returns each distinct instruction of a recording, at its first, second and last pass, and at two seeded ones.
pub(crate) fn targets(recording: &[u64], scale: Scale) -> Vec<Target> {
    let mut random = Random(scale.seed);
    let mut passes = HashMap::<u64, Vec<usize>>::new();
    for (step, address) in recording.iter().enumerate() {
        passes.entry(*address).or_default().push(step);
    }
    let mut all = BTreeMap::new();
    for (address, steps) in passes {
        let sampled: Vec<usize> = (0..SAMPLED_PASSES).map(|_| random.below(steps.len())).collect();
        for pass in [0, 1.min(steps.len() - 1), steps.len() - 1].into_iter().chain(sampled) {
            let pass_number = u32::try_from(pass + 1).expect("a recording is short");
            all.insert(steps[pass], Target { address, pass: pass_number, step: steps[pass] });
        }
    }
    let all: Vec<Target> = all.into_values().collect();
    spread(&all, scale)
}

/// Returns at most as many targets as the scale allows, taken with a fixed stride from a seeded offset. They are shuffled, so
/// that any prefix is a sample.
fn spread(all: &[Target], scale: Scale) -> Vec<Target> {
    let mut random = Random(scale.seed);
    let offset = random.below(all.len());
    let most = scale.most.unwrap_or(all.len()).min(all.len());
    let mut some: Vec<_> = (0..most).map(|number| all[(offset + number * all.len() / most) % all.len()]).collect();
    for last in (1..some.len()).rev() {
        some.swap(last, random.below(last + 1));
    }
    some
}

/// Removes the libraries' instructions at both ends, which belong to the signals that mark the operation. Returns the number
/// removed at the start, and the rest.
pub(crate) fn trim<'a>(recording: &'a [u64], maps: &Maps) -> (usize, &'a [u64]) {
    let first = recording.iter().position(|address| maps.is_own(*address)).unwrap_or(0);
    let last = recording.iter().rposition(|address| maps.is_own(*address)).unwrap_or(recording.len());
    (first, &recording[first..=last.min(recording.len() - 1)])
}

/// A failed check.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Violation {
    pub(crate) step: usize,
    pub(crate) place: Place,
    pub(crate) what: String,
}

/// The results of one operation in one mode.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) operation: String,
    pub(crate) mode: String,
    pub(crate) instructions: usize,
    pub(crate) distinct: usize,
    pub(crate) tried: usize,
    pub(crate) missed: usize,
    /// Number of targets that were not tried, as the run stopped early.
    pub(crate) left_out: usize,
    pub(crate) seconds: f64,
    /// How often each outcome was seen.
    pub(crate) seen: BTreeMap<String, usize>,
    pub(crate) violations: Vec<Violation>,
}

impl Row {
    pub(crate) fn new(operation: String, mode: Mode) -> Self {
        Self { operation, mode: mode.name().to_owned(), ..Self::default() }
    }

    pub(crate) fn recorded(&mut self, recording: &[u64]) {
        self.instructions = recording.len();
        self.distinct = recording.iter().collect::<std::collections::HashSet<_>>().len();
    }

    pub(crate) fn see(&mut self, outcome: impl Into<String>) {
        *self.seen.entry(outcome.into()).or_default() += 1;
    }

    pub(crate) fn complain(&mut self, step: usize, place: &Place, complaints: impl IntoIterator<Item = String>) {
        self.violations.extend(complaints.into_iter().map(|what| Violation { step, place: place.clone(), what }));
    }
}
