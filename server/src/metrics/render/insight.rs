//! Runs on: connection core.
//!
//! Phases, usage, heat: what etcd does not have.

use super::{
    scrape::{SECONDS, Scrape, sum},
    text::{Text, escaped, number},
};
use crate::insight::{hot, text, trace::PHASES};

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    render_phases(of, text);
    render_usage(of, text);
    render_heat(of, text);
}

fn render_phases(of: &Scrape<'_>, text: &mut Text) {
    let name = "orlop_request_phase_seconds_total";
    text.family(name, "counter", "Time that unary requests spent in each phase; read is all of one that only reads.");
    for (position, phase) in PHASES.iter().enumerate() {
        let nanoseconds = sum(of, |counters| &counters.phases[position]);
        text.sample(name, &format!("{{phase=\"{phase}\"}}"), number(nanoseconds as f64 / SECONDS));
    }
    let name = "orlop_slow_requests_total";
    text.family(
        name,
        "counter",
        "Requests longer than --warning-unary-request-duration, by the phase that took longest.",
    );
    for (position, phase) in PHASES.iter().enumerate() {
        text.sample(name, &format!("{{phase=\"{phase}\"}}"), sum(of, |counters| &counters.slow[position]));
    }
}

/// Prefixes that get a series of their own, at most.
const HOT_SHOWN: usize = 10;

fn render_usage(of: &Scrape<'_>, text: &mut Text) {
    type Pick = fn(&engine::Usage) -> u64;
    let families: [(&str, &str, Pick); 3] = [
        ("orlop_prefix_keys", "Live keys by the first parts of their path.", |usage| usage.keys),
        ("orlop_prefix_live_bytes", "Bytes of their newest versions.", |usage| usage.live_bytes),
        ("orlop_prefix_versions", "Versions stored for them, old ones and tombstones included.", |usage| {
            usage.versions
        }),
    ];
    let rows = of.board.usage.load();
    for (name, help, pick) in families.iter().filter(|_| !rows.is_empty()) {
        text.family(name, "gauge", help);
        for row in rows.iter() {
            let (prefix, rest) = (escaped(&text::escaped(&row.prefix)), if row.is_rest { "*" } else { "" });
            text.sample(name, &format!("{{prefix=\"{prefix}{rest}\"}}"), pick(&row.usage));
        }
    }
}

/// Shows keys by rank. Their names would make new series for ever.
fn render_heat(of: &Scrape<'_>, text: &mut Text) {
    let (keys, prefixes) = hot::hottest(&of.board.heat_now(), of.now, HOT_SHOWN);
    if keys.is_empty() && prefixes.is_empty() {
        return;
    }
    let name = "orlop_hot_key_requests_per_second";
    text.family(name, "gauge", "Requests of the most requested keys, by rank; orlop top names them.");
    for (rank, hot) in keys.iter().enumerate() {
        text.sample(name, &format!("{{rank=\"{}\"}}", rank + 1), number(hot.rate));
    }
    let name = "orlop_hot_prefix_requests_per_second";
    text.family(name, "gauge", "Requests of the most requested prefixes.");
    for hot in &prefixes {
        text.sample(name, &format!("{{prefix=\"{}\"}}", escaped(&text::escaped(&hot.item))), number(hot.rate));
    }
}
