//! How many allocations a put and a get take, over a real socket: the server runs in this process, and an allocator
//! counts for all threads but the client's.
//!
//! Most of them are h2's, for a stream and its headers. What is beyond is ours: the entry, the proposal, the task that
//! waits for it, the answer.

#![expect(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::TcpListener,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use proto::etcdserverpb::{PutRequest, RangeRequest};
use server::{boot, clock::Clock, config::Config};

/// Calls that are under way at a time: what is made once for a turn or for a group of the log is shared by so many.
const TOGETHER: usize = 100;
/// Rounds of so many that are counted, and before them not counted.
const ROUNDS: usize = 50;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    // A thread that ends has no locals any more; it is none of the client's.
    if !IS_CLIENT.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Starts a member on a free port of this host; where it answers.
#[expect(clippy::disallowed_methods, reason = "the member runs beside the test until the process ends")]
fn start(dir: &std::path::Path) -> String {
    let held = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let [client, peer] = held.map(|listener| listener.local_addr().unwrap().to_string());
    let arguments = [
        "--name=m".to_owned(),
        format!("--data-dir={}", dir.join("data").display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=m=http://{peer}"),
        "--server-cores=1".to_owned(),
        "--server-raft-apply=shared".to_owned(),
    ];
    let config = Config::parse(&arguments, &[], &|path| std::fs::read_to_string(path)).unwrap();
    std::thread::spawn(move || boot::run(config, Clock::start()));
    client
}

fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut out).unwrap();
    out.freeze()
}

async fn call(client: &mut SendRequest<Bytes>, path: &'static str, body: Bytes) {
    let mut ready = client.clone().ready().await.unwrap();
    let request = Request::post(format!("http://orlop{path}")).header("content-type", "application/grpc");
    let request = request.header("te", "trailers").body(()).unwrap();
    let (response, mut stream) = ready.send_request(request, false).unwrap();
    stream.send_data(body, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

/// Allocations for each call.
async fn measured(client: &SendRequest<Bytes>, path: &'static str, body: &impl Fn(usize) -> Bytes) -> f64 {
    let mut began = 0;
    for round in 0..2 * ROUNDS {
        if round == ROUNDS {
            began = ALLOCATIONS.load(Ordering::Relaxed);
        }
        let local = tokio::task::LocalSet::new();
        for number in 0..TOGETHER {
            let (mut client, body) = (client.clone(), body(number));
            local.spawn_local(async move { call(&mut client, path, body).await });
        }
        local.await;
    }
    (ALLOCATIONS.load(Ordering::Relaxed) - began) as f64 / (ROUNDS * TOGETHER) as f64
}

#[tokio::test]
async fn a_put_takes_at_most_13_allocations_and_a_get_fewer() {
    IS_CLIENT.set(true);
    let dir = tempfile::tempdir().unwrap();
    let address = start(dir.path());
    let mut tries = 0;
    let socket = loop {
        match tokio::net::TcpStream::connect(&address).await {
            Ok(socket) => break socket,
            Err(error) => assert!(tries < 600, "the member does not answer: {error}"),
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (client, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(async move { connection.await.unwrap() });
    let key = |number: usize| Bytes::from(format!("key-{number:04}"));
    let put = |number| framed(&PutRequest { key: key(number), value: vec![7; 256].into(), ..Default::default() });
    let get = |number| framed(&RangeRequest { key: key(number), ..Default::default() });
    let puts = measured(&client, "/etcdserverpb.KV/Put", &put).await;
    let gets = measured(&client, "/etcdserverpb.KV/Range", &get).await;
    println!("{puts:.2} allocations a put, {gets:.2} a get");
    assert!(puts <= 13.0, "{puts:.2} allocations a put");
    assert!(gets <= puts, "{gets:.2} allocations a get");
}
