//! Watches: live, from the past, what was before, progress, cancelling.

use etcd_client::{
    Client, CompactionOptions, Event, EventType, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};

use crate::{member::fresh, next, revision};

/// The watch id of a progress message for all watchers of a stream.
const ALL_WATCHERS: i64 = -1;

/// Opens a stream with one watcher, and waits for the word that it is there.
async fn watch(client: &mut Client, key: &str, options: WatchOptions) -> WatchStream {
    let mut stream = client.watch(key, Some(options)).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created() && !created.canceled() && created.events().is_empty());
    stream
}

/// The next message of a watcher, which must be one with events.
async fn events(stream: &mut WatchStream, watch_id: i64) -> WatchResponse {
    let message = next(stream).await;
    assert!(message.watch_id() == watch_id && !message.canceled() && !message.events().is_empty(), "{message:?}");
    message
}

/// What an event tells: whether it is a put, the key, the value, and the value before.
fn told(event: &Event) -> (bool, &[u8], &[u8], Option<&[u8]>) {
    let kv = event.kv().expect("an event has its key");
    (event.event_type() == EventType::Put, kv.key(), kv.value(), event.prev_kv().map(|kv| kv.value()))
}

#[tokio::test]
async fn a_watch_tells_each_change_once_in_order_and_what_was_before() {
    let (_dir, _member, mut client) = fresh().await;
    client.put("w/a", "0", None).await.unwrap();
    let mut stream = watch(&mut client, "w/", WatchOptions::new().with_prefix().with_prev_key()).await;
    client.put("w/a", "1", None).await.unwrap();
    client.put("elsewhere", "x", None).await.unwrap();
    client.delete("w/a", None).await.unwrap();
    let puts = [TxnOp::put("w/b", "2", None), TxnOp::put("elsewhere", "y", None), TxnOp::put("w/c", "3", None)];
    client.txn(Txn::new().and_then(puts)).await.unwrap();

    type Told<'a> = (bool, &'a [u8], &'a [u8], Option<&'a [u8]>);
    let wanted: [(i64, &[Told]); 3] = [
        (3, &[(true, b"w/a", b"1", Some(b"0"))]),
        (5, &[(false, b"w/a", b"", Some(b"1"))]),
        (6, &[(true, b"w/b", b"2", None), (true, b"w/c", b"3", None)]),
    ];
    for (wanted_revision, wanted_events) in wanted {
        let message = events(&mut stream, 0).await;
        assert_eq!(message.events().iter().map(told).collect::<Vec<_>>(), wanted_events);
        assert_eq!(revision(message.header()), wanted_revision);
        assert!(message.events().iter().all(|event| event.kv().unwrap().mod_revision() == wanted_revision));
    }
}

#[tokio::test]
async fn filtered_events_are_not_told() {
    let (_dir, _member, mut client) = fresh().await;
    let options = WatchOptions::new().with_filters([WatchFilterType::NoPut]);
    let mut stream = watch(&mut client, "k", options).await;
    client.put("k", "v", None).await.unwrap();
    client.delete("k", None).await.unwrap();
    let message = events(&mut stream, 0).await;
    assert_eq!(message.events().iter().map(told).collect::<Vec<_>>(), [(false, &b"k"[..], &b""[..], None)]);
}

#[tokio::test]
async fn a_watch_from_the_past_passes_into_the_present_without_a_gap() {
    const START: i64 = 40;
    let (_dir, _member, mut client) = fresh().await;
    let mut last = 0;
    for number in 0..100 {
        last = revision(client.put("k", number.to_string(), None).await.unwrap().header());
    }
    let mut stream = watch(&mut client, "k", WatchOptions::new().with_start_revision(START).with_prev_key()).await;
    for number in 100..200 {
        last = revision(client.put("k", number.to_string(), None).await.unwrap().header());
    }
    assert_eq!(last, 201);
    let mut expected = START;
    while expected <= last {
        for event in events(&mut stream, 0).await.events() {
            let number = expected - 2;
            assert_eq!(event.kv().unwrap().mod_revision(), expected);
            let (value, before) = (number.to_string(), (number - 1).to_string());
            assert_eq!(told(event), (true, &b"k"[..], value.as_bytes(), Some(before.as_bytes())));
            expected += 1;
        }
    }
    assert_eq!(expected, last + 1);
}

#[tokio::test]
async fn progress_is_told_after_all_that_it_covers() {
    let (_dir, _member, mut client) = fresh().await;
    let mut stream = watch(&mut client, "k", WatchOptions::new().with_progress_notify()).await;
    for value in ["1", "2", "3"] {
        client.put("k", value, None).await.unwrap();
    }
    client.put("elsewhere", "x", None).await.unwrap();
    stream.request_progress().await.unwrap();
    let mut seen = Vec::new();
    let progress = loop {
        let message = next(&mut stream).await;
        if message.events().is_empty() {
            break message;
        }
        seen.extend(message.events().iter().map(|event| event.kv().unwrap().mod_revision()));
    };
    assert_eq!((progress.watch_id(), progress.created(), progress.canceled()), (ALL_WATCHERS, false, false));
    assert_eq!((revision(progress.header()), seen), (5, vec![2, 3, 4]));
}

#[tokio::test]
async fn a_cancelled_watcher_is_silent_and_its_neighbours_are_not() {
    let (_dir, _member, mut client) = fresh().await;
    let mut stream = watch(&mut client, "k", WatchOptions::new().with_watch_id(11)).await;
    stream.watch("k", Some(WatchOptions::new().with_watch_id(12))).await.unwrap();
    assert_eq!((next(&mut stream).await.watch_id(), 12), (12, 12));
    stream.watch("k", Some(WatchOptions::new().with_watch_id(12))).await.unwrap();
    let twice = next(&mut stream).await;
    assert!(twice.canceled() && twice.cancel_reason().contains("duplicate watch ID"), "{twice:?}");

    stream.cancel(11).await.unwrap();
    let gone = next(&mut stream).await;
    assert_eq!((gone.watch_id(), gone.canceled(), gone.cancel_reason()), (11, true, ""));
    client.put("k", "v", None).await.unwrap();
    assert_eq!(events(&mut stream, 12).await.events().len(), 1);
    // A late event of the cancelled watcher would come before this.
    stream.request_progress().await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), ALL_WATCHERS);
}

#[tokio::test]
async fn a_watch_from_before_the_compaction_is_cancelled_and_told_where_it_is() {
    let (_dir, _member, mut client) = fresh().await;
    for value in ["1", "2", "3"] {
        client.put("k", value, None).await.unwrap();
    }
    client.compact(3, Some(CompactionOptions::new().with_physical())).await.unwrap();
    let mut stream = watch(&mut client, "k", WatchOptions::new().with_start_revision(2)).await;
    let cancelled = next(&mut stream).await;
    assert_eq!((cancelled.canceled(), cancelled.compact_revision(), cancelled.events().len()), (true, 3, 0));

    let mut stream = watch(&mut client, "k", WatchOptions::new().with_start_revision(3)).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = events(&mut stream, 0).await;
        seen.extend(message.events().iter().map(|event| event.kv().unwrap().value().to_vec()));
    }
    assert_eq!(seen, [b"2", b"3"]);
}
