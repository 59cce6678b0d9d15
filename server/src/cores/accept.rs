//! Runs on: core 0.
//!
//! Which core serves a new connection: the one with the fewest.

use std::{rc::Rc, sync::atomic::Ordering};

use tokio::task::spawn_local;

use super::{
    connection_loop::{self, Serving},
    listen::Listener,
    outbox::{ToCore, Way},
};
use crate::{api::desk::Desk, wire::socket};

/// Accepts connections of clients, for all cores that serve: `ways` leads to each of them. `desk` is the desk of the
/// core that accepts.
pub async fn clients(listener: Listener, desk: Rc<Desk>, ways: Vec<Way>, serving: Serving) {
    let mut last = 0;
    loop {
        let connection = listener.accept().await;
        let loads: Vec<usize> = desk.shared.connections.iter().map(|load| load.load(Ordering::Relaxed)).collect();
        let total: usize = loads.iter().sum();
        if total >= desk.shared.limits.connections_max {
            tracing::warn!(connections = total, "no more connections are accepted");
            continue;
        }
        let least = least_behind(last, &loads);
        last = least;
        match &ways[least] {
            Way::Here(desk) => connection_loop::serve(desk, connection, &serving),
            Way::There(core) => match connection.into_std() {
                Ok(connection) => {
                    if core.try_send(ToCore::Accept(connection)).is_err() {
                        tracing::warn!(core = least, "a core is too busy to take a connection");
                    }
                }
                Err(error) => tracing::warn!(%error, "an accepted connection cannot be moved"),
            },
        }
    }
}

/// The position with the least load; of several the first behind `last`, in the round. A core counts a connection when
/// it has begun to serve it: many that come at once go to one after the other.
fn least_behind(last: usize, loads: &[usize]) -> usize {
    let round = (1..=loads.len()).map(|step| (last + step) % loads.len());
    round.min_by_key(|position| loads[*position]).expect("there is a core")
}

/// Accepts connections of the metrics port, which this core serves.
pub async fn metrics(listener: Listener, desk: Rc<Desk>) {
    loop {
        let connection = listener.accept().await;
        spawn_local(socket::serve_endpoints(Rc::clone(&desk), connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_with_the_fewest_is_next_and_of_several_the_next_one() {
        assert_eq!(least_behind(0, &[3, 2, 1, 1]), 2);
        assert_eq!(least_behind(2, &[3, 2, 1, 1]), 3);
        assert_eq!(least_behind(3, &[0, 0, 0, 0]), 0);
        assert_eq!(least_behind(0, &[0]), 0);
    }
}
