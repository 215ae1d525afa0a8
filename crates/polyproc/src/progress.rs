//! How far a call has come.

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How many items have ended.
    pub done: usize,
    /// How many there are, where that is known.
    pub total: Option<usize>,
}

/// Draws a bar on standard error, or a count where the number of items is not known.
#[cfg(feature = "indicatif")]
pub(crate) fn bar() -> impl FnMut(Progress) {
    let bar = indicatif::ProgressBar::no_length();
    let style = indicatif::ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} [{elapsed}, {per_sec}]");
    let known = style.ok(); // the template is a constant
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
