//! Three members whose messages are delivered one by one, or dropped.

use bytes::Bytes;
use consensus::{Message, MessageKind, Options};
use engine::disk::sim::SimStorage;

use super::{Machine, World, options};

/// Three members; the messages between them wait in `wire` until they are delivered.
pub struct Three {
    pub worlds: Vec<World>,
    pub wire: Vec<Message>,
}

impl Three {
    /// Member 1 leads, and all have applied the same.
    pub fn led() -> Three {
        let open = |id| {
            let options = Options { seed: id, ..options() };
            World::open(id, 3, SimStorage::new(id), Machine::new(), options).unwrap()
        };
        let mut three = Three { worlds: (1..=3).map(open).collect(), wire: Vec::new() };
        three.settle();
        for _ in 0..40 {
            three.worlds[0].driver.tick();
            three.deliver_all();
        }
        assert!(three.worlds[0].driver.status().is_leader);
        three
    }

    /// Lets each member move as far as its disk lets it, and gathers what they send.
    pub fn settle(&mut self) {
        for world in &mut self.worlds {
            while world.turn().unwrap() {}
            self.wire.append(&mut world.outbox);
        }
    }

    /// Delivers the messages on the wire that `wanted` wants, and drops the others.
    pub fn deliver(&mut self, wanted: impl Fn(&Message) -> bool) {
        for message in std::mem::take(&mut self.wire).into_iter().filter(|message| wanted(message)) {
            let to = usize::try_from(message.to - 1).unwrap();
            self.worlds[to].driver.receive(message).unwrap();
        }
        self.settle();
    }

    pub fn deliver_all(&mut self) {
        self.settle();
        while !self.wire.is_empty() {
            self.deliver(|_| true);
        }
    }

    /// The contexts of the heartbeats on the wire.
    pub fn tokens(&self) -> Vec<Bytes> {
        let heartbeats = self.wire.iter().filter(|message| message.kind == MessageKind::Heartbeat);
        heartbeats.map(|message| message.context.clone()).collect()
    }

    /// The answers to reads on the wire: to whom, and their bytes.
    pub fn answers(&self) -> Vec<(u64, Bytes)> {
        let answers = self.wire.iter().filter(|message| message.kind == MessageKind::ReadIndexResponse);
        answers.map(|message| (message.to, message.entries[0].data.clone())).collect()
    }
}
