//! Progress for a person at a terminal, and a line now and then for a log.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::run::Status;

/// Without a terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress is shown.
pub(crate) struct Show {
    bar: Option<ProgressBar>,
    lines: bool,
    last_line: Option<Instant>,
}

impl Show {
    /// A status line without an end in sight.
    pub fn spinner(wanted: bool) -> Show {
        Self::with(wanted, || {
            ProgressBar::new_spinner().with_style(style("{spinner} {elapsed_precise} {msg}"))
        })
    }

    /// A bar of `length` steps.
    pub fn bar(wanted: bool, length: u64) -> Show {
        Self::with(wanted, || {
            ProgressBar::new(length)
                .with_style(style("{bar:30} {percent}% {elapsed_precise} {msg}"))
        })
    }

    fn with(wanted: bool, bar: impl FnOnce() -> ProgressBar) -> Show {
        let terminal = std::io::stderr().is_terminal();
        Show {
            bar: (wanted && terminal).then(bar),
            lines: wanted && !terminal,
            last_line: None,
        }
    }

    /// Shows how the run stands.
    pub fn status(&mut self, status: &Status) {
        self.message(&status.to_string());
    }

    /// Moves the bar.
    pub fn position(&mut self, position: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
        }
    }

    /// Says something.
    pub fn message(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            bar.tick();
        } else if self.lines
            && self
                .last_line
                .is_none_or(|last| last.elapsed() >= LINE_EVERY)
        {
            self.last_line = Some(Instant::now());
            eprintln!("{text}");
        }
    }

    /// Takes the line away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are ours; a bad one would only look bad.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
