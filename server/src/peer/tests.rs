//! Runs on: tests.
//!
//! The connections with other members, without sockets: deeds are looked at, and what the other side says is said here.

use std::time::Duration;

use bytes::Bytes;
use consensus::{
    Entry, EntryKind, Member, Message, MessageKind,
    peer::{
        frames,
        hello::{Channel, Hello, Remote},
        pieces::Pieces,
    },
};

use super::links::{Arrived, Deed, Links, Options, Traffic};
use crate::shared::Cluster;

const SECOND: Duration = Duration::from_secs(1);
const OTHER: u64 = 2;
const URLS: [&str; 2] = ["http://b:1", "http://b:2"];

fn hello(member_id: u64, life: u64) -> Hello {
    Hello { cluster_id: 9, member_id, version: "3.7.1".into(), peer_urls: "http://x:1".into(), life }
}

fn options() -> Options {
    Options { waiting_bytes_max: 10_000, silence_max: 5 * SECOND, stall_max: 5 * SECOND }
}

fn cluster(others: &[u64]) -> Cluster {
    let member = |id: &u64| Member { id: *id, peer_urls: URLS.map(str::to_owned).to_vec(), ..Member::default() };
    Cluster { members: [1].iter().chain(others).map(member).collect(), ..Cluster::default() }
}

/// Member 1, which knows one other one, and its two tries to reach it.
fn links() -> (Links, Vec<u64>) {
    let mut links = Links::new(hello(1, 7), options());
    links.set_members(&cluster(&[OTHER]), Duration::ZERO);
    let dials = dials(&mut links);
    assert_eq!(dials.iter().map(|(_, url)| url.as_str()).collect::<Vec<_>>(), ["http://b:1"; 2]);
    (links, dials.into_iter().map(|(attempt, _)| attempt).collect())
}

fn dials(links: &mut Links) -> Vec<(u64, String)> {
    let dial = |deed| match deed {
        Deed::Dial { attempt, url } => Some((attempt, url)),
        _ => None,
    };
    links.take_deeds().into_iter().filter_map(dial).collect()
}

fn closed(links: &mut Links) -> Vec<u64> {
    let close = |deed| if let Deed::Close(id) = deed { Some(id) } else { None };
    links.take_deeds().into_iter().filter_map(close).collect()
}

fn written(links: &mut Links, id: u64, now: Duration) -> String {
    let mut out: Vec<Bytes> = Vec::new();
    links.take_bytes(id, now, &mut out);
    let text = out.concat();
    links.written(id, text.len(), now);
    as_text(&text)
}

/// Bytes as characters, to be searched.
fn as_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn message(kind: MessageKind, to: u64) -> Message {
    Message { kind, to, from: if to == 1 { OTHER } else { 1 }, term: 3, ..Message::default() }
}

/// What the other member says on its message stream, in the life `life`, behind the head.
fn said(life: u64, messages: &[Message]) -> Vec<u8> {
    let mut pieces = Pieces::default();
    messages.iter().for_each(|message| frames::encode(message, &mut pieces));
    let (head, body) = (hello(OTHER, life).begin_stream(), pieces.take().concat());
    let chunk = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat();
    [head.as_bytes(), if body.is_empty() { b"" } else { &chunk[..] }].concat()
}

fn unreachable(links: &mut Links) -> Vec<u64> {
    links.take_unreachable().into_iter().collect()
}

#[test]
fn a_member_that_is_removed_is_sent_what_waits_for_it() {
    let (mut links, _) = links();
    links.attach(Channel::Messages, (OTHER, 8), 60, SECOND);
    links.send(vec![message(MessageKind::Heartbeat, OTHER)], SECOND);
    links.set_members(&Cluster { removed: [OTHER].into(), ..cluster(&[]) }, SECOND);
    let deeds = links.take_deeds();
    assert!(deeds.contains(&Deed::Write(60)) && !deeds.contains(&Deed::Close(60)), "{deeds:?}");
    let mut waiting = Vec::new();
    links.take_bytes(60, SECOND, &mut waiting);
    assert!(!waiting.is_empty());
    links.attach(Channel::Messages, (OTHER, 8), 61, SECOND);
    assert!(links.take_deeds().contains(&Deed::Close(61)), "it gets no other stream");
    links.pass(2 * SECOND);
    assert!(links.take_deeds().contains(&Deed::Close(60)));
}

#[test]
fn streams_are_asked_for_and_bring_messages() {
    let (mut links, attempts) = links();
    links.connected(attempts[1], 50, SECOND);
    let request = written(&mut links, 50, SECOND);
    assert!(request.starts_with("GET /raft/stream/message/1 HTTP/1.1\r\nHost: b:1\r\n"), "{request}");
    assert!(request.contains("\r\nX-Raft-To: 2\r\n") && request.contains("\r\nX-Orlop-Life: 7\r\n"), "{request}");
    assert_eq!(links.take_active(), None, "nobody has answered");
    let vote = message(MessageKind::Vote, 1);
    let said = said(8, std::slice::from_ref(&vote));
    links.received(50, &said, 2 * SECOND);
    assert!(links.has_news());
    assert_eq!(links.take_messages(), [Arrived { id: 50, message: vote }]);
    assert_eq!(links.take_active(), Some([(OTHER, 2 * SECOND)].into()));
    // What no honest member sends ends the connection, which is dialled again.
    links.refuse(50, 3 * SECOND);
    assert!(links.take_deeds().contains(&Deed::Close(50)));
    assert_eq!(links.take_active(), Some([].into()));
    let received_bytes = said.len() as u64;
    let sent_bytes = request.len() as u64;
    let traffic = Traffic { disconnections: 1, sent_bytes, received_bytes, ..Traffic::default() };
    assert_eq!(links.traffic().collect::<Vec<_>>(), [(OTHER, traffic)]);
    links.posted((OTHER, 8), (message(MessageKind::Vote, 1), 40), 70);
    links.send(vec![message(MessageKind::Heartbeat, OTHER); 100], 3 * SECOND);
    let traffic = Traffic { received_bytes: received_bytes + 40, send_failures: 36, ..traffic };
    assert_eq!(links.traffic().collect::<Vec<_>>(), [(OTHER, traffic)], "64 wait to be posted");
}

#[test]
fn messages_take_the_stream_of_their_kind_and_acknowledgements_are_summed_up() {
    let (mut links, _) = links();
    for (channel, id) in [(Channel::Appends, 60), (Channel::Messages, 61)] {
        links.attach(channel, (OTHER, 8), id, SECOND);
        assert!(written(&mut links, id, SECOND).starts_with("HTTP/1.1 200 OK\r\n"));
    }
    drop(links.take_deeds());
    let entry = Entry { index: 5, term: 3, kind: EntryKind::Normal, data: "data".into() };
    let append = Message { entries: vec![entry], ..message(MessageKind::Append, OTHER) };
    let answer = |index, reject| Message { index, reject, ..message(MessageKind::AppendResponse, OTHER) };
    links.send(vec![append, answer(4, false), answer(1, true), answer(6, false), answer(5, false)], SECOND);
    assert_eq!(links.take_deeds(), [Deed::Write(60), Deed::Write(61)]);
    assert!(written(&mut links, 60, SECOND).contains("data"));
    let mut expected = Pieces::default();
    [answer(1, true), answer(6, false)].iter().for_each(|message| frames::encode(message, &mut expected));
    assert!(written(&mut links, 61, SECOND).contains(&as_text(&expected.take().concat())));
    assert!(unreachable(&mut links).is_empty());
    // Nobody is sent to who is no member.
    links.send(vec![message(MessageKind::Heartbeat, 99)], SECOND);
    assert!(links.take_deeds().is_empty());
}

#[test]
fn without_a_stream_messages_are_posted_four_at_once() {
    let (mut links, _) = links();
    let beats = |count| vec![message(MessageKind::Heartbeat, OTHER); count];
    links.send(beats(6), SECOND);
    let attempts: Vec<u64> = dials(&mut links).into_iter().map(|(attempt, _)| attempt).collect();
    assert_eq!(attempts.len(), 4);
    links.connected(attempts[0], 70, SECOND);
    assert!(written(&mut links, 70, SECOND).starts_with("POST /raft HTTP/1.1\r\nHost: b:1\r\n"));
    assert_eq!(written(&mut links, 70, SECOND), "", "one after the other");
    links.received(70, b"HTTP/1.1 204 No Content\r\n\r\n", SECOND);
    assert!(written(&mut links, 70, SECOND).starts_with("POST /raft"));
    assert!(links.take_active().is_some_and(|active| active.contains_key(&OTHER)));
    // Who refuses one is asked at its next URL, and raft hears that the message is lost.
    links.received(70, b"HTTP/1.1 500 -\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno", SECOND);
    assert_eq!((unreachable(&mut links), closed(&mut links)), (vec![OTHER], vec![70]));
    // Where nobody listens, all that waits is lost.
    links.failed(attempts[1], true, "no", SECOND);
    assert_eq!(unreachable(&mut links), [OTHER]);
    links.send(beats(100), SECOND);
    assert_eq!(unreachable(&mut links), [OTHER], "what waits is bounded");
}

#[test]
fn an_answer_says_that_this_member_was_removed() {
    for (purpose, answer) in [(0, "410 Gone"), (1, "403 Forbidden")] {
        let (mut links, attempts) = links();
        let mut attempt = attempts[0];
        if purpose == 1 {
            links.send(vec![message(MessageKind::Heartbeat, OTHER)], SECOND);
            attempt = dials(&mut links)[0].0;
        }
        links.connected(attempt, 50, SECOND);
        drop(written(&mut links, 50, SECOND));
        assert!(!links.is_removed());
        links.received(50, format!("HTTP/1.1 {answer}\r\nX-Server-Version: 3.7.1\r\n\r\n").as_bytes(), SECOND);
        assert!(links.is_removed() && links.has_news());
        assert!(links.take_removed() && !links.take_removed(), "it is told once");
        drop((links.take_active(), links.take_messages()));
        assert!(!links.has_news(), "nobody is woken for ever");
    }
}

#[test]
fn a_process_is_gone_when_all_its_urls_refuse_and_nothing_is_left_of_it() {
    let (mut links, attempts) = links();
    links.attach(Channel::Messages, (OTHER, 8), 60, SECOND);
    links.failed(attempts[0], true, "no", SECOND);
    links.failed(attempts[1], true, "no", SECOND);
    links.closed(60, true, SECOND);
    assert!(links.take_gone().is_empty(), "one URL has refused, twice");
    let second = dials(&mut links);
    assert_eq!(second.iter().map(|(_, url)| url.as_str()).collect::<Vec<_>>(), ["http://b:2"; 2], "both streams");
    links.attach(Channel::Messages, (OTHER, 8), 61, SECOND);
    second.iter().for_each(|(attempt, _)| links.failed(*attempt, true, "no", SECOND));
    assert!(links.take_gone().is_empty(), "there is a connection");
    links.closed(61, true, 2 * SECOND);
    assert_eq!(links.take_gone(), [OTHER]);
    let again = dials(&mut links);
    assert_eq!(again.len(), 2, "it is dialled on");
    links.failed(again[0].0, true, "no", 2 * SECOND);
    assert!(links.take_gone().is_empty(), "it is told once");
    links.connected(again[1].0, 80, 2 * SECOND);
    links.closed(80, true, 2 * SECOND);
    assert!(links.take_gone().is_empty(), "somebody was there");
    // A silent one is not gone, nor one of whose URLs one is silent.
    for are_refused in [[false, false], [true, false]] {
        let (mut links, attempts) = self::links();
        attempts
            .iter()
            .zip(are_refused)
            .for_each(|(attempt, is_refused)| links.failed(*attempt, is_refused, "no", SECOND));
        assert!(links.take_gone().is_empty());
    }
}

#[test]
fn nothing_moves_for_five_seconds_and_a_connection_is_given_up() {
    let (mut links, attempts) = links();
    links.connected(attempts[1], 50, SECOND);
    links.received(50, &said(8, &[]), SECOND);
    links.attach(Channel::Messages, (OTHER, 8), 60, SECOND);
    drop(written(&mut links, 60, SECOND));
    links.pass(5 * SECOND);
    assert!(links.take_deeds().contains(&Deed::Write(60)), "a heartbeat is due");
    // The heartbeat is taken, and the socket does not take it.
    links.take_bytes(60, 5 * SECOND, &mut Vec::new());
    links.pass(6 * SECOND);
    let deeds = links.take_deeds();
    assert!(deeds.contains(&Deed::Close(50)) && !deeds.contains(&Deed::Close(60)), "{deeds:?}");
    assert!(deeds.iter().any(|deed| matches!(deed, Deed::Dial { .. })), "{deeds:?}");
    assert_eq!(links.take_active(), Some([].into()));
    links.pass(10 * SECOND);
    assert_eq!(closed(&mut links), [60]);
}

#[test]
fn of_two_streams_the_newer_one_counts_and_what_waits_is_bounded() {
    let (mut links, _) = links();
    links.attach(Channel::Messages, (OTHER, 8), 60, SECOND);
    links.attach(Channel::Messages, (OTHER, 8), 61, SECOND);
    assert_eq!((closed(&mut links), unreachable(&mut links)), (vec![60], vec![OTHER]));
    let long = |kind| Message { context: vec![0; 6000].into(), ..message(kind, OTHER) };
    links.send(vec![long(MessageKind::Heartbeat), long(MessageKind::Heartbeat)], SECOND);
    assert!(unreachable(&mut links).is_empty());
    links.send(vec![message(MessageKind::Heartbeat, OTHER)], SECOND);
    assert_eq!(unreachable(&mut links), [OTHER]);
    links.attach(Channel::Messages, (99, 8), 62, SECOND);
    assert_eq!(closed(&mut links), [62], "it is no member any more");
}

#[test]
fn proposals_have_room_until_the_queue_is_half_full_and_raft_is_told_when_they_have_it_again() {
    let (mut links, _) = links();
    assert_eq!((links.room_for(99), links.room_for(OTHER)), (0, 5000), "it can be posted");
    links.attach(Channel::Messages, (OTHER, 8), 60, SECOND);
    drop(written(&mut links, 60, SECOND));
    links.send(vec![message(MessageKind::Propose, OTHER)], SECOND);
    let room = links.room_for(OTHER);
    assert!((1..5000).contains(&room), "{room}");
    links.send(vec![Message { context: vec![0; 6000].into(), ..message(MessageKind::Propose, OTHER) }], SECOND);
    assert_eq!(links.room_for(OTHER), 0);
    assert!(unreachable(&mut links).is_empty(), "nothing was lost");
    let mut out = Vec::new();
    links.take_bytes(60, SECOND, &mut out);
    assert!(links.take_active().is_some() && links.take_messages().is_empty());
    links.written(60, 100, SECOND);
    assert!(!links.has_news() && links.room_for(OTHER) == 0);
    links.written(60, out.concat().len() - 100, SECOND);
    assert!(links.has_news());
    assert_eq!((links.room_for(OTHER), links.has_news()), (5000, false));
    // Who leads by now waits for no room, and nobody is woken for that.
    links.send(vec![Message { context: vec![0; 6000].into(), ..message(MessageKind::Propose, OTHER) }], SECOND);
    assert_eq!(links.room_for(OTHER), 0);
    links.forward_nothing();
    out.clear();
    links.take_bytes(60, SECOND, &mut out);
    links.written(60, out.concat().len(), SECOND);
    assert!(!links.has_news());
}

#[test]
fn nothing_of_an_earlier_life_is_taken_behind_something_of_a_later_one() {
    let (mut links, attempts) = links();
    links.connected(attempts[1], 50, SECOND);
    links.received(50, &said(8, &[]), SECOND);
    // It starts again, and asks for a stream: what it said before does not count any more.
    links.attach(Channel::Messages, (OTHER, 9), 60, 2 * SECOND);
    assert_eq!(closed(&mut links), [50]);
    let old = [message(MessageKind::AppendResponse, 1)];
    links.received(50, &said(8, &old), 2 * SECOND);
    assert!(links.take_messages().is_empty());
    assert!(!links.posted((OTHER, 8), (old[0].clone(), 1), 40), "posted by the life before");
    assert!(links.posted((OTHER, 9), (old[0].clone(), 1), 70));
    assert_eq!(links.take_messages().len(), 1);
    links.attach(Channel::Appends, (OTHER, 8), 45, 2 * SECOND);
    assert_eq!(closed(&mut links), [45]);
}

#[test]
fn who_knows_of_no_membership_of_its_own_asks_those_it_was_told_of_for_streams() {
    let mut links = Links::new(hello(1, 7), options());
    links.add_remote(Remote { member_id: OTHER, peer_urls: vec![URLS[0].to_owned()] });
    links.pass(SECOND);
    let attempts = dials(&mut links);
    assert_eq!(attempts.len(), 2);
    links.connected(attempts[1].0, 50, SECOND);
    links.received(50, b"HTTP/1.1 404 -\r\nX-Server-Version: 3.7.1\r\n\r\n", SECOND);
    assert_eq!((closed(&mut links), links.is_removed()), (vec![50], false), "not now");
    links.pass(2 * SECOND);
    let again = dials(&mut links);
    links.connected(again[0].0, 51, 2 * SECOND);
    links.received(51, b"HTTP/1.1 410 -\r\nX-Server-Version: 3.7.1\r\n\r\n", 2 * SECOND);
    assert!(links.is_removed());
}

#[test]
fn a_stranger_is_known_by_what_it_has_said_and_members_by_the_log_alone() {
    let (mut links, _) = links();
    let remote = |member_id, url: &str| Remote { member_id, peer_urls: vec![url.to_owned()] };
    for (id, url) in [(5, "http://e:1"), (6, "no url"), (1, "http://a:1"), (OTHER, "http://evil:1")] {
        links.add_remote(remote(id, url));
    }
    links.send(vec![message(MessageKind::Vote, 5), message(MessageKind::Vote, 6)], SECOND);
    let dialled: Vec<String> = dials(&mut links).into_iter().map(|(_, url)| url).collect();
    assert_eq!(dialled, ["http://e:1"], "it is posted to");
    assert_eq!(links.urls(OTHER), URLS);
    (100..200).for_each(|id| links.add_remote(remote(id, "http://e:1")));
    assert_eq!((100..200).filter(|id| !links.urls(*id).is_empty()).count(), 15, "they are bounded");
    // The log says that one is a member, and another one none any more.
    let removed = Cluster { removed: [OTHER].into(), ..cluster(&[5]) };
    links.set_members(&removed, SECOND);
    assert_eq!((links.urls(OTHER), links.urls(5).len()), (Vec::new(), 2));
    assert_eq!(dials(&mut links).len(), 2, "a member is asked for streams");
    links.add_remote(remote(OTHER, "http://b:1"));
    assert!(links.urls(OTHER).is_empty(), "who was removed is not known again");
    assert!(!links.posted((OTHER, 8), (message(MessageKind::Vote, 1), 1), 90));
}
