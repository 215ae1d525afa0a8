//! Forwards the log and trace records of workers to the parent. The first byte of a record is its kind.

use std::sync::Arc;

use polyproc_core::pool::OnLog;

/// Which kinds of records a pool forwards.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forwarded {
    pub(crate) logs: bool,
    pub(crate) traces: bool,
}

impl Forwarded {
    pub(crate) fn any(self) -> bool {
        self.logs || self.traces
    }

    /// Returns the levels of logs and of traces, for [`install`]; 0 for a kind that is not forwarded.
    pub(crate) fn levels(self) -> [u8; 2] {
        [if self.logs { log_level() } else { 0 }, if self.traces { trace_level() } else { 0 }]
    }
}

fn log_level() -> u8 {
    #[cfg(feature = "log")]
    return crate::logging::level();
    #[cfg(not(feature = "log"))]
    return 0;
}

fn trace_level() -> u8 {
    #[cfg(feature = "tracing")]
    return crate::traces::level();
    #[cfg(not(feature = "tracing"))]
    return 0;
}

/// With the feature `log` or `tracing`: logs, once, that processes start more slowly as the system refuses the fork server.
pub(crate) fn report_refused_forkserver() {
    #[cfg(any(feature = "log", feature = "tracing"))]
    {
        static REPORTED: std::sync::Once = std::sync::Once::new();
        const TEXT: &str = "the system does not let the fork server create processes (clone3 and clone are refused, or /proc \
                            is not mounted): each process executes the program instead, which is slower";
        if polyproc_core::process::is_forkserver_refused() {
            REPORTED.call_once(|| {
                #[cfg(feature = "log")]
                log::warn!("{TEXT}");
                #[cfg(feature = "tracing")]
                tracing::warn!("{TEXT}");
            });
        }
    }
}

/// In a worker: sends log and trace records to the parent from now on.
pub(crate) fn install([logs, traces]: [u8; 2]) {
    #[cfg(feature = "log")]
    if logs > 0 {
        crate::logging::install(logs);
    }
    #[cfg(feature = "tracing")]
    if traces > 0 {
        crate::traces::install(traces);
    }
    let _ = (logs, traces); // unused without the features
}

/// In the parent: returns the function that receives the records of workers. It emits traces inside the current span.
pub(crate) fn on_log() -> OnLog {
    #[cfg(feature = "tracing")]
    let span = tracing::Span::current();
    Arc::new(move |pid, bytes| match bytes.split_first() {
        #[cfg(feature = "log")]
        Some((&crate::logging::LOG, record)) => crate::logging::receive(record),
        #[cfg(feature = "tracing")]
        Some((&crate::traces::TRACE, record)) => crate::traces::receive(pid, record, Some(&span)),
        _ => _ = pid,
    })
}
