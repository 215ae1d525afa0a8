//! Trace events of workers arrive in the parent's subscriber, inside the span of the call. Pools trace the starts, ends and
//! deaths of workers.
#![cfg(feature = "tracing")]

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use polyproc::Pool;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

/// An event: level, target, path of the enclosing spans, fields.
type Kept = (Level, String, String, HashMap<String, String>);

struct Keep {
    next: AtomicU64,
    spans: Mutex<HashMap<u64, (&'static Metadata<'static>, Option<u64>)>>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

thread_local! {
    static INSIDE: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn inside() -> Option<u64> {
    INSIDE.with_borrow(|inside| inside.last().copied())
}

#[derive(Default)]
struct Fields(HashMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl Subscriber for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }
    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::DEBUG)
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.spans.lock().expect("not poisoned").insert(id, (span.metadata(), inside()));
        Id::from_u64(id)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans = self.spans.lock().expect("not poisoned");
        let mut path = Vec::new();
        let mut at = inside();
        while let Some((metadata, parent)) = at.and_then(|id| spans.get(&id)) {
            path.insert(0, metadata.name());
            at = *parent;
        }
        let metadata = event.metadata();
        KEPT.lock().expect("not poisoned").push((
            *metadata.level(),
            metadata.target().to_owned(),
            path.join("/"),
            fields.0,
        ));
    }
    fn current_span(&self) -> Current {
        let metadata = |id| Some(self.spans.lock().expect("not poisoned").get(&id)?.0);
        match inside().and_then(|id| Some((id, metadata(id)?))) {
            Some((id, metadata)) => Current::new(Id::from_u64(id), metadata),
            None => Current::none(),
        }
    }
    fn enter(&self, span: &Id) {
        INSIDE.with_borrow_mut(|inside| inside.push(span.into_u64()));
    }
    fn exit(&self, _: &Id) {
        INSIDE.with_borrow_mut(|inside| inside.pop());
    }
}

fn work(x: u64) -> u64 {
    let outer = tracing::info_span!("outer", x);
    let _outer = outer.enter();
    tracing::info!(target: "work", answer = x + 1, "half way");
    tracing::trace!("not at this level");
    tracing::debug_span!("inner").in_scope(|| tracing::debug!(target: "work", "done"));
    x
}

fn kept(target: &str) -> Vec<Kept> {
    let mut kept = KEPT.lock().expect("not poisoned");
    let (wanted, rest) = std::mem::take(&mut *kept).into_iter().partition(|(_, of, _, _)| of == target);
    *kept = rest;
    wanted
}

#[test]
fn events_come_in_order_inside_the_span_of_the_call() -> Result<(), Box<dyn std::error::Error>> {
    tracing::subscriber::set_global_default(Keep { next: AtomicU64::new(1), spans: Mutex::default() })?;
    let pool = Pool::builder().workers(2).forward_traces().build()?;
    for x in 0..20 {
        let mine = tracing::info_span!("mine");
        assert_eq!(mine.in_scope(|| pool.apply(work, x))?, x);
        let events = kept("work");
        let [(Level::INFO, _, in_call, first), (Level::DEBUG, _, in_call_too, second)] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((in_call.as_str(), in_call_too.as_str()), ("mine/call", "mine/call"));
        assert_eq!(
            (first["message"].as_str(), first["fields"].as_str()),
            ("half way", format!("answer={}", x + 1).as_str())
        );
        assert_eq!(
            (first["spans"].as_str(), second["spans"].as_str()),
            (format!("outer{{x={x}}}").as_str(), format!("outer{{x={x}}}:inner").as_str())
        );
        assert_eq!(first["worker"], second["worker"]);
    }
    let lost: Result<(), _> = pool.apply(|()| std::process::abort(), ());
    assert!(lost.is_err());
    pool.close();
    pool.join()?;
    let told = kept("polyproc::traces");
    assert!(told.iter().all(|(_, _, spans, _)| spans == "pool"), "{told:?}");
    let told: Vec<_> = told.into_iter().map(|(level, _, _, fields)| (level, fields["message"].clone())).collect();
    let count = |level, text: &str| told.iter().filter(|(of, message)| *of == level && message == text).count();
    assert!(count(Level::DEBUG, "a worker was started") >= 2, "{told:?}");
    assert_eq!(count(Level::WARN, "a worker has died"), 1, "{told:?}");
    assert_eq!(count(Level::WARN, "an item was lost with its worker"), 1, "{told:?}");
    assert!(count(Level::DEBUG, "a worker has ended") >= 1, "{told:?}");
    Ok(())
}
