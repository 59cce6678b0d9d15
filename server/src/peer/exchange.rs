//! Runs on: raft core.
//!
//! What raft and the connections with other members have for each other, once in each turn.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consensus::{Error, Message, MessageKind};

use super::links::{Arrived, Links};
use crate::{
    raft::machine::Raft,
    shared::{Cluster, Shared},
};

/// What has come and is not for raft yet, or not at all.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Messages that announce states: raft hears of one when all of it is here.
    pub states: Vec<Message>,
    /// Why messages were refused. A stream that brought one is closed; who has posted one has its answer already.
    pub refused: Vec<Error>,
}

/// Tells `links` of the members, if they are others than `known`. Returns whether that may be so.
pub fn look_at_members(links: &mut Links, shared: &Shared, known: &mut Arc<Cluster>, now: Duration) -> bool {
    let cluster = shared.cluster.load();
    let is_other = !Arc::ptr_eq(&cluster, known);
    if is_other {
        links.set_members(&cluster, now);
        known.clone_from(&cluster);
    }
    is_other
}

/// Gives raft what has come from other members, after `note` has seen it.
///
/// **Errors** the member must stop.
pub fn deliver(
    links: &mut Links,
    (raft, shared): (&mut Raft, &Shared),
    now: Duration,
    mut note: impl FnMut(&Message),
) -> Result<Delivered, Error> {
    if let Some(active) = links.take_active() {
        shared.links.store(Arc::new(active));
    }
    if links.take_removed() {
        shared.is_removed.store(true, Ordering::Release);
    }
    links.take_unreachable().into_iter().for_each(|id| raft.unreachable(id));
    links.take_gone().into_iter().for_each(|id| raft.gone(id));
    links.take_unsent_states().into_iter().for_each(|id| raft.report_state(id, false));
    let mut delivered = Delivered::default();
    for Arrived { id, message } in links.take_messages() {
        note(&message);
        if message.kind == MessageKind::Snapshot {
            delivered.states.push(message);
            continue;
        }
        match raft.receive_peer(message, now) {
            Ok(()) => {}
            Err(error @ Error::Malformed { .. }) => {
                links.refuse(id, now);
                delivered.refused.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    raft.set_forward_room(match raft.leader() {
        leader if [0, shared.identity.member_id].contains(&leader) => {
            links.forward_nothing();
            usize::MAX
        }
        leader => links.room_for(leader),
    });
    Ok(delivered)
}
