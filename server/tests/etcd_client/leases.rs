//! Leases: grant, keepalive, time to live, revoke, expiry.

use std::time::Duration;

use etcd_client::{Client, Error, EventType, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions};

use crate::{FAILED_PRECONDITION, NOT_FOUND, keys, member::fresh, next, refusal, revision};

const LEASE: i64 = 0x1234;
const TTL_SECONDS: i64 = 600;

async fn grant(client: &mut Client, id: i64, ttl_seconds: i64) -> Result<i64, Error> {
    let granted = client.lease_grant(ttl_seconds, Some(LeaseGrantOptions::new().with_id(id))).await?;
    assert_eq!((granted.id(), granted.error()), (id, ""));
    Ok(granted.ttl())
}

async fn put_leased(client: &mut Client, key: &str, lease: i64) -> Result<i64, Error> {
    let answer = client.put(key, "v", Some(PutOptions::new().with_lease(lease))).await?;
    Ok(revision(answer.header()))
}

/// The granted seconds, and the keys in order. A lease that does not exist has none, and -1 seconds left.
async fn attached(client: &mut Client, lease: i64) -> (i64, Vec<Vec<u8>>) {
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let answer = client.lease_time_to_live(lease, Some(options)).await.unwrap();
    assert_eq!(answer.id(), lease);
    assert!((-1..=answer.granted_ttl()).contains(&answer.ttl()), "{answer:?}");
    assert_eq!(answer.ttl() == -1, answer.granted_ttl() == 0);
    let mut keys = answer.keys().to_vec();
    keys.sort();
    (answer.granted_ttl(), keys)
}

#[tokio::test]
async fn a_lease_knows_its_keys_until_they_leave_it() {
    let (_dir, _member, mut client) = fresh().await;
    assert_eq!(grant(&mut client, LEASE, TTL_SECONDS).await.unwrap(), TTL_SECONDS);
    let chosen = client.lease_grant(TTL_SECONDS, None).await.unwrap();
    assert!(chosen.id() > 0 && revision(chosen.header()) == 1, "a grant changes no key");
    for key in ["b", "a", "c", "d"] {
        put_leased(&mut client, key, LEASE).await.unwrap();
    }
    assert_eq!(client.get("a", None).await.unwrap().kvs()[0].lease(), LEASE);
    assert_eq!(attached(&mut client, LEASE).await, (TTL_SECONDS, ["a", "b", "c", "d"].map(Vec::from).to_vec()));
    client.put("b", "without", None).await.unwrap();
    client.delete("c", None).await.unwrap();
    put_leased(&mut client, "d", chosen.id()).await.unwrap();
    assert_eq!(attached(&mut client, LEASE).await, (TTL_SECONDS, vec![b"a".to_vec()]));
    assert_eq!(attached(&mut client, chosen.id()).await, (TTL_SECONDS, vec![b"d".to_vec()]));

    let listed = client.leases().await.unwrap();
    let mut ids: Vec<i64> = listed.leases().iter().map(|lease| lease.id()).collect();
    ids.sort_unstable();
    let mut wanted = [LEASE, chosen.id()];
    wanted.sort_unstable();
    assert_eq!(ids, wanted);
}

#[tokio::test]
async fn a_keepalive_is_answered_with_the_granted_time() {
    let (_dir, _member, mut client) = fresh().await;
    grant(&mut client, LEASE, TTL_SECONDS).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(LEASE).await.unwrap();
    for _ in 0..10 {
        keeper.keep_alive().await.unwrap();
        let answer = answers.message().await.unwrap().expect("the stream stays open");
        assert_eq!((answer.id(), answer.ttl()), (LEASE, TTL_SECONDS));
    }
    client.lease_revoke(LEASE).await.unwrap();
    keeper.keep_alive().await.unwrap();
    let answer = answers.message().await.unwrap().expect("the stream stays open");
    assert_eq!((answer.id(), answer.ttl()), (LEASE, 0), "a lease that is gone");
    let unknown = client.lease_keep_alive(LEASE).await;
    assert!(matches!(unknown, Err(Error::LeaseKeepAliveError(_))));
}

/// This client's h2 ends a connection on which a hundred small frames wait to be read; see `Cargo.toml`.
#[tokio::test]
async fn ten_thousand_keepalives_a_second_on_one_stream_do_not_end_the_connection() {
    const BURST: usize = 200;
    const BURSTS: usize = 50;
    const BURST_EVERY: Duration = Duration::from_millis(20);
    let (_dir, _member, mut client) = fresh().await;
    grant(&mut client, LEASE, TTL_SECONDS).await.unwrap();
    let (mut keeper, mut answers) = client.lease_keep_alive(LEASE).await.unwrap();
    let renewing = async {
        let mut ticks = tokio::time::interval(BURST_EVERY);
        for _ in 0..BURSTS {
            ticks.tick().await;
            for _ in 0..BURST {
                keeper.keep_alive().await.unwrap();
            }
        }
    };
    let reading = async {
        for _ in 0..BURSTS * BURST {
            let answer = answers.message().await.unwrap().expect("the stream stays open");
            assert_eq!((answer.id(), answer.ttl()), (LEASE, TTL_SECONDS));
        }
    };
    tokio::join!(renewing, reading);
}

#[tokio::test]
async fn revoking_deletes_the_attached_keys_in_one_revision() {
    let (_dir, _member, mut client) = fresh().await;
    grant(&mut client, LEASE, TTL_SECONDS).await.unwrap();
    for key in ["k/2", "k/1", "k/3"] {
        put_leased(&mut client, key, LEASE).await.unwrap();
    }
    client.put("k/2", "stays", None).await.unwrap();
    let mut stream = client.watch("k/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(next(&mut stream).await.created());
    let revoked = client.lease_revoke(LEASE).await.unwrap();
    assert_eq!(revision(revoked.header()), 6);
    let message = next(&mut stream).await;
    let told: Vec<_> = message.events().iter().map(|event| (event.event_type(), event.kv().unwrap().key())).collect();
    assert_eq!(told, [(EventType::Delete, &b"k/1"[..]), (EventType::Delete, b"k/3")]);
    assert!(message.events().iter().all(|event| event.kv().unwrap().mod_revision() == 6));
    let all = client.get("", Some(etcd_client::GetOptions::new().with_all_keys())).await.unwrap();
    assert_eq!(keys(all.kvs()), [b"k/2"]);
    assert_eq!(attached(&mut client, LEASE).await, (0, vec![]));
}

#[tokio::test]
async fn what_names_no_lease_or_a_taken_one_is_refused() {
    let (_dir, _member, mut client) = fresh().await;
    let not_found = (NOT_FOUND, "etcdserver: requested lease not found".to_owned());
    assert_eq!(refusal(put_leased(&mut client, "k", LEASE).await), not_found);
    assert_eq!(refusal(client.lease_revoke(LEASE).await), not_found);
    grant(&mut client, LEASE, TTL_SECONDS).await.unwrap();
    let taken = (FAILED_PRECONDITION, "etcdserver: lease already exists".to_owned());
    assert_eq!(refusal(grant(&mut client, LEASE, TTL_SECONDS).await), taken);
    assert_eq!(client.get("k", None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn an_expired_lease_takes_its_keys_along() {
    // The shortest time that an election timeout of one second allows.
    const TTL_SECONDS_MIN: i64 = 2;
    let (_dir, _member, mut client) = fresh().await;
    assert_eq!(grant(&mut client, LEASE, 1).await.unwrap(), TTL_SECONDS_MIN);
    put_leased(&mut client, "k", LEASE).await.unwrap();
    let mut stream = client.watch("k", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    assert!(next(&mut stream).await.created());
    for wanted in [EventType::Put, EventType::Delete] {
        assert_eq!(next(&mut stream).await.events()[0].event_type(), wanted);
    }
    assert_eq!(client.get("k", None).await.unwrap().count(), 0);
    assert_eq!(attached(&mut client, LEASE).await, (0, vec![]));
}
