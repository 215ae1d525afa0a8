//! Which instructions: an operation is recorded once, step by step, and each instruction of it is a target.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::trace::{Maps, Place};

/// What becomes of the victim at an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// It is killed.
    Kill,
    /// It stands still while others call with limits. Then it goes on, or is killed.
    Freeze,
    /// It is killed, and so is the next process, after some steps of its own.
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

/// How much is tried.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// At most so many instructions of each operation, spread evenly; all without.
    pub(crate) most: Option<usize>,
    /// For so long, if that is less.
    pub(crate) budget: Option<Duration>,
    pub(crate) seed: u64,
}

/// Where each death is combined with a random second one, a sample is as good as all.
const MOST_DOUBLE: usize = 300;

impl Scale {
    /// What takes longer is tried at fewer instructions.
    pub(crate) fn of(self, mode: Mode) -> Self {
        let most = match mode {
            Mode::Kill => self.most,
            Mode::Freeze => self.most.map(|most| most / 2),
            Mode::Double => Some(self.most.map_or(MOST_DOUBLE, |most| most / 4)),
        };
        Self { most, ..self }
    }

    /// Whether a subject ends before its last target: it took too long, or hung so often that it is known to be wrong.
    pub(crate) fn is_over(self, since: Instant, hangs: usize) -> bool {
        let most_hangs = if self.most.is_some() { 5 } else { 40 };
        hangs >= most_hangs || self.budget.is_some_and(|budget| since.elapsed() > budget)
    }
}

/// Numbers that follow from a seed (D. Knuth's linear congruential generator).
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
    /// From 1.
    pub(crate) pass: u32,
    /// So many instructions were executed before.
    pub(crate) step: usize,
}

/// How often a loop is met beside its first, second and last pass.
const SAMPLED_PASSES: usize = 2;

/// Each distinct instruction of a recording, at its first, second and last pass, and at two seeded ones.
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

/// At most as many as the scale allows: with a fixed stride, from a seeded offset; and mixed, so that any part of them is a
/// sample.
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

/// Without the libraries' instructions at both ends, which belong to the signals that mark the operation.
pub(crate) fn trim<'a>(recording: &'a [u64], maps: &Maps) -> (usize, &'a [u64]) {
    let first = recording.iter().position(|address| maps.is_own(*address)).unwrap_or(0);
    let last = recording.iter().rposition(|address| maps.is_own(*address)).unwrap_or(recording.len());
    (first, &recording[first..=last.min(recording.len() - 1)])
}

/// Something that must not be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Violation {
    pub(crate) step: usize,
    pub(crate) place: Place,
    pub(crate) what: String,
}

/// What one operation in one mode came to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) operation: String,
    pub(crate) mode: String,
    pub(crate) instructions: usize,
    pub(crate) distinct: usize,
    pub(crate) tried: usize,
    pub(crate) missed: usize,
    /// Not tried any more, after too many hangs.
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
