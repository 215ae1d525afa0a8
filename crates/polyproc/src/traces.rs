//! Passes the trace events of workers to the parent's subscriber, and traces the events of pools.
//!
//! A worker's subscriber writes each event as text, with the spans around it. The parent emits an event of the same level,
//! target and name, inside a span `call`. That span is inside the span in which the call was made, and lasts as long as the
//! call. Events of pools are inside a span `pool`. An event has the fields `message`, `worker` (a process id), `fields` and
//! `spans`, as the names of a worker's fields are unknown when the parent is compiled.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use polyproc_core::error_chain;
use polyproc_core::pool::{self as core, OnEvent, PoolEvent};
use serde::{Deserialize, Serialize};
use tracing::field::{Field, FieldSet, Value, Visit};
use tracing::level_filters::LevelFilter;
use tracing::metadata::{Kind, Metadata};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Callsite, Event, Level, Span};

/// An event's place in a worker's code, which identifies its callsite in the parent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Place {
    /// The level, from 1 (error) to 5 (trace).
    level: u8,
    target: String,
    name: String,
    module: Option<String>,
    file: Option<String>,
    line: Option<u32>,
}

/// An event, as sent to the parent.
#[derive(Debug, Serialize, Deserialize)]
struct Travelling {
    place: Place,
    message: String,
    fields: String,
    spans: String,
}

const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

fn number(level: Level) -> u8 {
    LEVELS.iter().zip(1..).find(|(other, _)| **other == level).map_or(0, |(_, number)| number)
}

/// Returns the most verbose level that this process's subscriber receives, from 1 (error) to 5 (trace); 0 for none.
pub(crate) fn level() -> u8 {
    LevelFilter::current().into_level().map_or(0, number)
}

/// The fields of an event or span, as text.
#[derive(Debug, Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, "{}{name}={value:?}", if self.fields.is_empty() { "" } else { " " }),
        };
    }
}

/// A worker's subscriber, which sends every event to the parent.
struct Forward {
    most: Level,
    next: AtomicU64,
    spans: Mutex<HashMap<u64, (String, usize)>>,
}

thread_local! {
    /// The spans that this thread has entered, the outermost first.
    static INSIDE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

impl Forward {
    fn spans<T>(&self, run: impl FnOnce(&mut HashMap<u64, (String, usize)>) -> T) -> T {
        run(&mut self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most.into())
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut text = Text::default();
        span.record(&mut text);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let text = match text.fields.is_empty() {
            true => span.metadata().name().to_owned(),
            false => format!("{}{{{}}}", span.metadata().name(), text.fields),
        };
        self.spans(|spans| spans.insert(id, (text, 1)));
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut text = Text::default();
        values.record(&mut text);
        self.spans(|spans| {
            if let Some((name, _)) = spans.get_mut(&span.into_u64()) {
                let _ = write!(name, "{{{}}}", text.fields);
            }
        });
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let inside = INSIDE.with_borrow(Clone::clone);
        let names =
            self.spans(|spans| inside.iter().filter_map(|id| Some(spans.get(id)?.0.clone())).collect::<Vec<_>>());
        let metadata = event.metadata();
        let place = Place {
            level: number(*metadata.level()),
            target: metadata.target().to_owned(),
            name: metadata.name().to_owned(),
            module: metadata.module_path().map(str::to_owned),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
        };
        let travelling = Travelling { place, message: text.message, fields: text.fields, spans: names.join(":") };
        if let Ok(bytes) = postcard::to_extend(&travelling, vec![TRACE]) {
            // Fails when the parent has exited: no process can receive the event.
            let _ = core::log(&bytes);
        }
    }

    fn enter(&self, span: &Id) {
        INSIDE.with_borrow_mut(|inside| inside.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        INSIDE.with_borrow_mut(|inside| {
            if let Some(at) = inside.iter().rposition(|id| *id == span.into_u64()) {
                inside.remove(at);
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.spans(|spans| {
            if let Some((_, count)) = spans.get_mut(&id.into_u64()) {
                *count += 1;
            }
        });
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        self.spans(|spans| {
            let Some((_, count)) = spans.get_mut(&id.into_u64()) else { return false };
            *count -= 1;
            *count == 0 && spans.remove(&id.into_u64()).is_some()
        })
    }
}

/// The first byte of a record.
pub(crate) const TRACE: u8 = 1;

/// In a worker: sends events to the parent from now on, unless the program has set a subscriber already.
pub(crate) fn install(level: u8) {
    if let Some(most) = level.checked_sub(1).and_then(|at| LEVELS.get(usize::from(at))) {
        let forward = Forward { most: *most, next: AtomicU64::new(1), spans: Mutex::default() };
        let _ = tracing::subscriber::set_global_default(forward);
    }
}

/// The parent's callsite for one place in workers' code. It is never freed, as a macro's callsite is static.
struct Replayed {
    metadata: OnceLock<Metadata<'static>>,
}

impl Callsite for Replayed {
    fn set_interest(&self, _: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        self.metadata.get().expect("set before anybody gets to know it")
    }
}

static FIELDS: [&str; 4] = ["message", "worker", "fields", "spans"];

fn callsite(place: &Place) -> Option<&'static Metadata<'static>> {
    static KNOWN: Mutex<Option<HashMap<Place, &'static Metadata<'static>>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(metadata) = known.get(place) {
        return Some(metadata);
    }
    let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let level = *LEVELS.get(usize::from(place.level.checked_sub(1)?))?;
    let callsite: &'static Replayed = Box::leak(Box::new(Replayed { metadata: OnceLock::new() }));
    let fields = FieldSet::new(&FIELDS, tracing::callsite::Identifier(callsite));
    let metadata = callsite.metadata.get_or_init(|| {
        Metadata::new(
            leak(&place.name),
            leak(&place.target),
            level,
            place.file.as_deref().map(leak),
            place.line,
            place.module.as_deref().map(leak),
            fields,
            Kind::EVENT,
        )
    });
    known.insert(place.clone(), metadata);
    Some(metadata)
}

/// In the parent: emits a worker's event, inside `span`.
pub(crate) fn receive(pid: u32, bytes: &[u8], span: Option<&Span>) {
    let Ok(Travelling { place, message, fields, spans }) = postcard::from_bytes(bytes) else { return };
    let Some(metadata) = callsite(&place) else { return };
    let set = metadata.fields();
    let [a, b, c, d] = FIELDS.map(|name| set.field(name));
    let (Some(a), Some(b), Some(c), Some(d)) = (a, b, c, d) else { return };
    let message = format_args!("{message}").to_string();
    let values: [(&Field, Option<&dyn Value>); 4] =
        [(&a, Some(&message.as_str())), (&b, Some(&pid)), (&c, Some(&fields.as_str())), (&d, Some(&spans.as_str()))];
    let emit = || {
        tracing::dispatcher::get_default(|dispatch| {
            if dispatch.enabled(metadata) {
                dispatch.event(&Event::new(metadata, &set.value_set(&values)));
            }
        });
    };
    match span {
        Some(span) => span.in_scope(emit),
        None => emit(),
    }
}

/// Returns a function that traces the events of a pool inside the current span, then calls `more`.
pub(crate) fn on_event(more: Option<OnEvent>) -> OnEvent {
    let span = Span::current();
    Arc::new(move |event| {
        span.in_scope(|| match event {
            PoolEvent::WorkerStarted { pid } => tracing::debug!(worker = pid, "a worker was started"),
            PoolEvent::WorkerReady { pid } => tracing::debug!(worker = pid, "a worker takes tasks"),
            PoolEvent::WorkerEnded { pid, ended } if ended.status.exit_code() == Some(0) => {
                tracing::debug!(worker = pid, "a worker has ended");
            }
            PoolEvent::WorkerEnded { pid, ended } => {
                tracing::warn!(worker = pid, how = %ended.status, "a worker has died");
            }
            PoolEvent::WorkerNotStarted { error } => {
                tracing::error!(error = %error_chain(error), "a worker could not be started");
            }
            PoolEvent::ItemRetried { index, attempts } => {
                tracing::warn!(index, attempts, "an item was lost with its worker, and is tried again");
            }
            PoolEvent::ItemLost { index } => tracing::warn!(index, "an item was lost with its worker"),
            _ => {}
        });
        if let Some(more) = &more {
            more(event);
        }
    })
}
