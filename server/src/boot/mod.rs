//! Runs on: main thread, core 0.
//!
//! From a configuration to a serving member, and from SIGTERM to a clean end.
//!
//! - `process`: the limits of the process; `options`: the knobs as settings for each part
//! - `bootstrap`: who a member without data is; `join`: the same in a cluster that runs; `running`: what such a cluster
//!   says about itself
//! - `open`: the data directory, who the member is, its log; `import`: taking over the data directory of a stopped
//!   etcd, once; `repair`: building a damaged store anew; `compare`: with what other members hold
//! - `ports`: what is bound; `secure`: TLS; `notify`: what the init daemon is told
//! - `threads`: the cores; `drain`: the end; `error`: why a member does not start, or stops
//!
//! Order: bind, lock and open the store, find out who the member is, open the log, apply the entries that the store
//! does not have yet. The member serves once it has published itself; nothing is answered before that. Bootstrap
//! settings count only for a directory without data, because the store holds the identity of a member.

use std::{pin::pin, process::ExitCode, rc::Rc, sync::Arc, thread, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::spawn_local,
};

use self::{
    error::{Error, system},
    open::Opened,
    options::Cores,
    ports::{Ports, Ways},
    threads::Member,
};
use crate::{
    clock::Clock,
    config::{self, Config},
    cores::{
        STACK_BYTES,
        connection_loop::{Serving, keep_usage},
        thread::{block_on, end_by, pin, stop_member},
    },
    log, quota,
    shared::Shared,
};

pub mod bootstrap;
pub mod compare;
pub mod drain;
pub mod error;
pub mod import;
pub mod join;
pub mod notify;
pub mod open;
pub mod options;
pub mod ports;
pub mod process;
pub mod repair;
pub mod running;
pub mod secure;
#[cfg(test)]
mod tests;
pub mod threads;

/// Runs the member until it is told to stop.
pub fn run(config: Config, clock: Clock) -> ExitCode {
    process::raise_files_max();
    if !config.knobs.server.huge_pages {
        process::leave_huge_pages();
    }
    if config.memory_mlock
        && let Err(source) = process::lock_memory()
    {
        stop_member(&Error::System { what: "--memory-mlock".into(), source });
    }
    let core = thread::Builder::new().name("core-0".into()).stack_size(STACK_BYTES);
    let served = core.spawn(move || block_on(serve(Arc::new(config), clock)));
    let ended = match served.map(thread::JoinHandle::join) {
        Ok(Ok(ended)) => ended,
        // The thread has reported why.
        Ok(Err(_)) => return ExitCode::FAILURE,
        Err(source) => stop_member(&Error::System { what: "a core's thread".into(), source }),
    };
    match ended {
        Ok(Ok(End::Signal(signal))) if std::process::id() != 1 => end_by(signal),
        Ok(Ok(_)) => ExitCode::SUCCESS,
        Ok(Err(error)) => stop_member(&error),
        Err(source) => stop_member(&Error::System { what: "the runtime".into(), source }),
    }
}

/// Why a member ends.
enum End {
    Signal(i32),
    /// It is no member any more.
    Removed,
}

/// Serves until the member is to end.
async fn serve(config: Arc<Config>, clock: Clock) -> Result<End, Error> {
    let cores = Cores::of(&config);
    if config.knobs.server.pin_cores {
        pin(0);
    }
    let ports = Ports::bind(&config)?;
    secure::check(&config, &clock)?;
    let opened = open::open(&config, &clock, &ports).await?;
    log_start(&config, &opened, cores);
    let (stop, stopping) = watch::channel(false);
    let (peers, to_peers) = mpsc::channel(config.knobs.server.mailbox_messages_max);
    let (states, to_states) = mpsc::channel(config.knobs.server.mailbox_messages_max);
    let serving = Serving { options: options::wire(&config), stop: stopping, peers, states };
    let handshakes = secure::spawn(&config, &clock, cores)?;
    let member = Member::new(Arc::clone(&config), clock, cores, &opened)?;
    let mut started = threads::start(&member, opened, &serving, to_peers, to_states)?;
    let (end, ending) = watch::channel(false);
    let ways = Ways::new(&started.desk, started.ways.clone(), &serving, handshakes, ending);
    ways.accept_others(ports.others);
    let (shared, clock) = (Arc::clone(&started.desk.shared), started.desk.clock.clone());
    let mut ending = pin!(ended(Arc::clone(&shared))?);
    tokio::select! {
        _ = started.ready.wait_for(|ready| *ready) => {}
        end = &mut ending => return Ok(told_of(end, &config)),
    }
    spawn_local(keep_usage(Rc::clone(&started.desk)));
    tracing::info!("ready to serve client requests");
    ways.accept_clients(ports.clients, &started.desk);
    notify::ready(&config.init).await;
    spawn_local(notify::alive(config.init.clone(), shared, clock, options::heartbeat(&config)));
    let why = told_of(ending.await, &config);
    notify::stopping(&config.init).await;
    let fields = end_fields(&config);
    tracing::info!(%fields, "closing etcd server");
    drain::hand_over(&started.desk).await;
    drain::drain(&started.desk, &stop, Duration::from_millis(config.knobs.server.drain_ms)).await;
    end.send_replace(true);
    tracing::info!(%fields, "closed etcd server");
    Ok(why)
}

/// Resolves when the member is to end.
///
/// **Errors** the system's.
fn ended(shared: Arc<Shared>) -> Result<impl Future<Output = End>, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => End::Signal(libc::SIGTERM),
            _ = interrupt.recv() => End::Signal(libc::SIGINT),
            () = drain::removed(&shared) => End::Removed,
        }
    })
}

/// Says why the member ends.
fn told_of(end: End, config: &Config) -> End {
    match end {
        End::Signal(signal) => tracing::info!(signal = signal_name(signal), "received signal; shutting down"),
        End::Removed => {
            let dir = config.data_dir.display();
            tracing::warn!("data-dir" = %dir, "data-dir used by this member must be removed");
        }
    }
    end
}

/// The signal as Go names it.
fn signal_name(signal: i32) -> &'static str {
    if signal == libc::SIGTERM { "terminated" } else { "interrupt" }
}

/// What the lines about the end tell of the member.
fn end_fields(config: &Config) -> log::Object {
    log::Object::default()
        .text("name", &config.name)
        .text("data-dir", &config.data_dir.display().to_string())
        .list("advertise-peer-urls", config.advertise_peer_urls.iter().map(config::Url::as_str))
        .list("advertise-client-urls", config.advertise_client_urls.iter().map(config::Url::as_str))
}

fn log_start(config: &Config, opened: &Opened, cores: Cores) {
    let view = opened.store.mvcc().view();
    let (revision, index) = (view.revision(), view.applied_index());
    tracing::info!(release = crate::RELEASE, etcd = crate::ETCD_VERSION, "starting Orlop");
    tracing::info!(path = %config.data_dir.display(), revision, index, "data directory");
    for error in opened.store.unread() {
        tracing::error!(%error, "a table cannot be read: the state before it is taken, or what it holds is refused");
    }
    tracing::info!(path = %opened.paths.data, log = %opened.paths.log, "I/O path");
    let bytes = options::quota(config).shown();
    if bytes > quota::SENSIBLE_BYTES_MAX {
        let maximum = quota::SENSIBLE_BYTES_MAX;
        tracing::warn!(
            "quota-size-bytes" = bytes,
            "quota-maximum-size-bytes" = maximum,
            "quota exceeds the maximum value"
        );
    }
    let shown = if bytes < 0 { "disabled backend quota" } else { "enabled backend quota" };
    tracing::info!("quota-size-bytes" = bytes, "{shown}");
    if let Some((file, offset)) = opened.driver.truncated_tail() {
        tracing::warn!(file = %file.display(), offset, "the log's torn tail was cut off");
    }
    if let Some(error) = opened.driver.damage() {
        tracing::error!(%error, "the log is damaged: it was put aside (*.damaged), and other members make up for it");
    }
    if opened.driver.is_cut() && opened.driver.conf_state().voters.len() != 1 {
        tracing::warn!(
            "the end of the log may be missing: until it has caught up, this member votes only once those have \
             answered to whom it may have promised something"
        );
    }
    let urls = config::join(&config.advertise_client_urls);
    let (member, cluster) = (opened.identity.member_id, opened.identity.cluster_id);
    let catch_up = config.knobs.consensus.snapshot_catchup_entries;
    tracing::info!(
        name = %config.name,
        "member-id" = %format!("{member:x}"),
        "cluster-id" = %format!("{cluster:x}"),
        "client-urls" = %urls,
        cores = cores.serving,
        "raft-apply" = ?cores.placement,
        "snapshot-catchup-entries" = catch_up,
        "starting an etcd server"
    );
}
