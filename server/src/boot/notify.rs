//! Runs on: core 0.
//!
//! Tells the init daemon that the member serves, that it stops, and that it is alive.
//!
//! Invariants:
//! - READY is sent once, when clients are served; STOPPING once, before anything is closed.
//! - WATCHDOG is sent only while every loop moves (`Shared::pulse`). If one is stuck, the daemon hears nothing more and
//!   restarts the member. A slow disk is not a loop that is stuck.
//!
//! A message that cannot be sent is logged. The member goes on without it, as etcd does. Each message has a socket of
//! its own, so that a daemon that was started anew gets it too.
//!
//! **Source**: `sd_notify(3)`; etcd v3.7.1 `server/etcdmain/main.go`, which sends READY alone.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use tokio::{
    net,
    time::{self, MissedTickBehavior},
};

use crate::{clock::Clock, config::Init, shared::Shared};

/// Longest time that a message waits for room in the daemon's queue.
const SEND_MAX: Duration = Duration::from_secs(1);
/// Looks at the loops in one period of the watchdog.
const LOOKS: u32 = 4;
/// Heartbeats that a loop may miss: it beats once in each.
const MISSED_MAX: u32 = 2;

/// Tells the daemon that clients are served.
pub async fn ready(init: &Init) {
    tracing::info!("notifying init daemon");
    match send(init, "READY=1").await {
        Ok(()) => tracing::info!("successfully notified init daemon"),
        Err(error) => tracing::error!(%error, "failed to notify systemd for readiness"),
    }
}

/// Tells the daemon that the member stops.
pub async fn stopping(init: &Init) {
    if let Err(error) = send(init, "STOPPING=1").await {
        tracing::warn!(%error, "failed to notify systemd of the end");
    }
}

/// Tells the daemon that the member is alive, for as long as it is. Returns at once if the daemon has no watchdog.
pub async fn alive(init: Init, shared: Arc<Shared>, clock: Clock, heartbeat: Duration) {
    let Some(period) = init.watchdog else { return };
    let mut looks = time::interval((period / LOOKS).max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let patience = (period / 2).max(MISSED_MAX * heartbeat);
    let mut was_alive = true;
    loop {
        looks.tick().await;
        let silent = clock.now().saturating_sub(shared.pulse.oldest());
        let is_alive = silent <= patience;
        if is_alive && let Err(error) = send(&init, "WATCHDOG=1").await {
            tracing::warn!(%error, "failed to notify systemd's watchdog");
        }
        if was_alive && !is_alive {
            tracing::error!(?silent, "a loop does not move: systemd's watchdog is not notified");
        }
        was_alive = is_alive;
    }
}

async fn send(init: &Init, state: &str) -> io::Result<()> {
    let Some(name) = &init.socket else { return Ok(()) };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address?)?;
    socket.set_nonblocking(true)?;
    let socket = net::UnixDatagram::from_std(socket)?;
    time::timeout(SEND_MAX, socket.send(state.as_bytes())).await??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use engine::Mvcc;

    use super::*;

    /// A daemon's socket, and what a process is told of it.
    fn daemon(dir: &tempfile::TempDir, watchdog: Option<Duration>) -> (net::UnixDatagram, Init) {
        let path = dir.path().join("notify");
        let socket = net::UnixDatagram::bind(&path).unwrap();
        (socket, Init { socket: Some(path.display().to_string()), watchdog })
    }

    async fn next(daemon: &net::UnixDatagram) -> String {
        let mut message = [0; 64];
        let len = time::timeout(Duration::from_secs(60), daemon.recv(&mut message)).await.expect("a message").unwrap();
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_watchdog_hears_nothing_while_a_loop_does_not_move() {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, init) = daemon(&dir, Some(Duration::from_millis(20)));
        let shared = Arc::new(Shared::for_tests(Mvcc::in_memory().published(), 2));
        let (clock, second) = (Clock::manual(1), Duration::from_secs(1));
        let watching = alive(init, Arc::clone(&shared), clock.clone(), second);
        let test = async {
            assert_eq!(next(&daemon).await, "WATCHDOG=1");
            let beat_all_but_the_last = || {
                shared.pulse.raft.strike(clock.now());
                shared.pulse.apply.strike(clock.now());
                shared.pulse.cores[0].strike(clock.now());
            };
            clock.advance(2 * second);
            beat_all_but_the_last();
            assert_eq!(next(&daemon).await, "WATCHDOG=1", "two heartbeats may be missed");
            clock.advance(second);
            beat_all_but_the_last();
            // What was sent before the clock moved may still come.
            let quiet = async { while time::timeout(Duration::from_millis(200), next(&daemon)).await.is_ok() {} };
            time::timeout(Duration::from_secs(60), quiet).await.expect("the messages end");
            shared.pulse.cores[1].strike(clock.now());
            assert_eq!(next(&daemon).await, "WATCHDOG=1", "it moves again");
        };
        tokio::select! {
            () = watching => unreachable!("there is a watchdog"),
            () = test => {}
        }
    }

    #[tokio::test]
    async fn who_asks_for_nothing_is_told_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, init) = daemon(&dir, None);
        let shared = Arc::new(Shared::for_tests(Mvcc::in_memory().published(), 1));
        alive(init.clone(), shared, Clock::manual(1), Duration::from_secs(1)).await;
        ready(&Init::default()).await;
        stopping(&init).await;
        assert_eq!(next(&daemon).await, "STOPPING=1", "and nothing before");
    }
}
