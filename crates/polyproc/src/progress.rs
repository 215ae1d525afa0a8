//! The progress of a call.

/// The progress of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The number of items that have ended.
    pub done: usize,
    /// The number of items of the call, if known.
    pub total: Option<usize>,
}

/// Returns a callback that draws a bar on standard error, or a count if the number of items is unknown.
#[cfg(feature = "indicatif")]
pub(crate) fn bar() -> impl FnMut(Progress) {
    let bar = indicatif::ProgressBar::no_length();
    let style = indicatif::ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} [{elapsed}, {per_sec}]");
    let known = style.ok(); // always `Some`: the template is a constant
    move |progress: Progress| {
        if let (Some(total), None, Some(style)) = (progress.total, bar.length(), &known) {
            bar.set_length(total as u64);
            bar.set_style(style.clone());
        }
        bar.set_position(progress.done as u64);
        if progress.total == Some(progress.done) {
            bar.finish();
        }
    }
}
