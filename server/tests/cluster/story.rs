//! What happened in a run, for a person who reads it: the faults, and the last of everything else.

use std::{collections::VecDeque, fmt, time::Duration};

use consensus::{Message, MessageKind};

/// Lines that are kept of what is no fault.
const LINES_MAX: usize = 40;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Story {
    /// Whether anybody will read it. Otherwise nothing is kept.
    pub(crate) is_told: bool,
    /// The time in the world.
    pub(crate) now: Duration,
    told: u64,
    faults: Vec<(u64, String)>,
    lines: VecDeque<(u64, String)>,
}

impl Story {
    /// Adds a line that is kept for good.
    pub(crate) fn fault(&mut self, now: Duration, text: &str) {
        self.told += 1;
        self.faults.push((self.told, line(now, text)));
    }

    /// Adds a line, if it is read.
    pub(crate) fn tell(&mut self, now: Duration, text: impl FnOnce() -> String) {
        if self.is_told {
            self.told += 1;
            self.lines.push_back((self.told, line(now, &text())));
            if self.lines.len() > LINES_MAX {
                self.lines.pop_front();
            }
        }
    }
}

fn line(now: Duration, text: &str) -> String {
    format!("{:>10.4} s  {text}", now.as_secs_f64())
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<_> = self.faults.iter().chain(&self.lines).collect();
        lines.sort();
        lines.into_iter().try_for_each(|(_, line)| writeln!(f, "{line}"))
    }
}

/// A message in one line; nothing for heartbeats, and for answers that only accept.
pub(crate) fn shown(message: &Message) -> Option<String> {
    use std::fmt::Write as _;
    let is_dull = match message.kind {
        MessageKind::Heartbeat | MessageKind::HeartbeatResponse => true,
        MessageKind::AppendResponse => !message.reject,
        _ => false,
    };
    if is_dull {
        return None;
    }
    let Message { kind, from, to, term, log_term, index, entries, commit, reject, .. } = message;
    let mut text = format!("m{from} -> m{to}: {kind:?} term {term}");
    let behind = (*index > 0).then(|| format!(", behind entry {index} of term {log_term}"));
    text.extend(behind);
    if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
        let written = write!(text, ", entries {}..={} of term {}", first.index, last.index, last.term);
        written.expect("a string takes all");
    }
    text.extend((*commit > 0).then(|| format!(", commit {commit}")));
    text.push_str(if *reject { ", refused" } else { "" });
    Some(text)
}
