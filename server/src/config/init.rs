//! Runs on: main thread, before any core is started.
//!
//! What the init daemon of this host asks of the process, in its environment: where it wants to be told how the process
//! fares, and how often. Without such variables it wants nothing.
//!
//! **Source**: `sd_notify(3)`, `sd_watchdog_enabled(3)`.

use std::time::Duration;

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Init {
    /// The socket that takes its messages: a path, or `@` and the name of an abstract socket.
    pub socket: Option<String>,
    /// Without a sign of life for so long, it restarts the process.
    pub watchdog: Option<Duration>,
}

impl Init {
    /// Reads the variables of the process `id`. A watchdog that is meant for another process is none.
    pub(super) fn read(variables: &[(String, String)], id: u32) -> Self {
        let variable = |name| {
            let found = variables.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
        };
        let is_meant = variable("WATCHDOG_PID").is_none_or(|meant| meant.parse() == Ok(id));
        let period_us = variable("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|us| *us > 0 && is_meant);
        Self { socket: variable("NOTIFY_SOCKET").map(str::to_owned), watchdog: period_us.map(Duration::from_micros) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_of_systemd_are_read_and_a_watchdog_of_others_is_not() {
        let read = |variables: &[(&str, &str)]| {
            let variables: Vec<_> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let Init { socket, watchdog } = Init::read(&variables, 7);
            (socket, watchdog.map(|period| period.as_micros()))
        };
        assert_eq!(read(&[("NOTIFY_SOCKETS", "/s"), ("NOTIFY_SOCKET", "")]), (None, None));
        assert_eq!(read(&[("NOTIFY_SOCKET", "@s"), ("WATCHDOG_USEC", "2500")]), (Some("@s".into()), Some(2500)));
        assert_eq!(read(&[("WATCHDOG_USEC", "25"), ("WATCHDOG_PID", "7")]).1, Some(25));
        assert_eq!(read(&[("WATCHDOG_USEC", "25"), ("WATCHDOG_PID", "8")]).1, None);
        assert_eq!([read(&[("WATCHDOG_USEC", "0")]).1, read(&[("WATCHDOG_USEC", "x")]).1], [None, None]);
    }
}
