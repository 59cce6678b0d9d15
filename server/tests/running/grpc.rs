//! gRPC as it is on the wire: what every client relies on, and what grpc-go's server says to clients that err.
//!
//! `server/tests/differential -wire` compares more of it with stock etcd. Here stands what must hold without it.

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::SocketAddr,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request, Response, StatusCode};
use prost::Message;
use proto::etcdserverpb as pb;
use tokio::{net::TcpStream, task::spawn_local, time::timeout};

use crate::member::{Member, WAIT_MAX};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// A stream, as its client sees it.
pub(crate) struct Stream {
    response: Response<RecvStream>,
    buffer: BytesMut,
}

/// A connection without a gRPC library.
pub(crate) struct Raw(SendRequest<Bytes>);

impl Raw {
    async fn connect(member: &Member) -> Self {
        Self::connect_to(member.address).await
    }

    pub(crate) async fn connect_to(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = h2::client::handshake(socket).await.unwrap();
        spawn_local(async move { drop(connection.await) });
        Self(requests)
    }

    /// Sends a head, and `body` if there is one. The stream stays open.
    async fn open(
        &mut self,
        path: &str,
        head: &[(&str, &str)],
        body: Bytes,
    ) -> (SendStream<Bytes>, h2::client::ResponseFuture) {
        poll_fn(|cx| self.0.poll_ready(cx)).await.unwrap();
        let mut request = Request::post(format!("http://orlop{path}")).header("te", "trailers");
        if !head.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in head {
            request = request.header(*name, *value);
        }
        let (response, mut stream) = self.0.send_request(request.body(()).unwrap(), false).unwrap();
        if !body.is_empty() {
            stream.send_data(body, false).unwrap();
        }
        (stream, response)
    }

    /// Sends one message. Returns its answer's stream.
    pub(crate) async fn call_with(&mut self, message: &impl Message, path: &str) -> Stream {
        self.call(path, &[], framed(0, &message.encode_to_vec())).await
    }

    /// Sends all of a request. Returns its answer's stream.
    async fn call(&mut self, path: &str, head: &[(&str, &str)], body: Bytes) -> Stream {
        let (mut stream, response) = self.open(path, head, body).await;
        stream.send_data(Bytes::new(), true).unwrap();
        Stream::new(response).await
    }
}

impl Stream {
    async fn new(response: h2::client::ResponseFuture) -> Self {
        Self { response: timeout(WAIT_MAX, response).await.unwrap().unwrap(), buffer: BytesMut::new() }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    /// The next message with its flag; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let [flag, l0, l1, l2, l3, ..] = self.buffer[..] {
                let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
                if self.buffer.len() >= 5 + len {
                    self.buffer.advance(5);
                    return Some((flag, self.buffer.split_to(len).freeze()));
                }
            }
            let body = self.response.body_mut();
            let data = timeout(WAIT_MAX, body.data()).await.unwrap()?.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            self.buffer.extend_from_slice(&data);
        }
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        M::decode(self.next().await.unwrap().1).unwrap()
    }

    /// The status at the end: its code and its text.
    async fn end(mut self) -> (String, String) {
        while self.next().await.is_some() {}
        let trailers = timeout(WAIT_MAX, self.response.body_mut().trailers()).await.unwrap().unwrap();
        let headers: HeaderMap = trailers.unwrap_or_else(|| self.response.headers().clone());
        let field = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        (field("grpc-status"), field("grpc-message"))
    }
}

fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(flag);
    out.put_u32(u32::try_from(message.len()).unwrap());
    out.put_slice(message);
    out.freeze()
}

fn plain(message: &impl Message) -> Bytes {
    framed(0, &message.encode_to_vec())
}

fn zipped(message: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(message).unwrap();
    encoder.finish().unwrap()
}

fn unzipped(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(message).read_to_end(&mut out).unwrap();
    out
}

fn put(key: &str, value: Vec<u8>) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value: value.into(), ..Default::default() }
}

fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn watch(key: &'static str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

fn block_on(test: impl AsyncFnOnce(Raw)) {
    let member = Member::start(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { test(Raw::connect(&member).await).await });
}

#[test]
fn a_watch_that_is_half_closed_gets_its_events_and_a_keep_alive_ends() {
    block_on(async |mut raw: Raw| {
        let mut events = raw.call(WATCH, &[], plain(&watch("k"))).await;
        assert!(events.message::<pb::WatchResponse>().await.created);
        for version in 1..=3 {
            raw.call(PUT, &[], plain(&put("k", vec![7]))).await.end().await;
            let response: pb::WatchResponse = events.message().await;
            assert_eq!(response.events[0].kv.as_ref().unwrap().version, version);
        }
        let ended = raw.call(KEEP_ALIVE, &[], Bytes::new()).await;
        assert_eq!(ended.header("grpc-status"), Some("0"), "trailers-only, as nothing was answered");
    });
}

#[test]
fn gzip_is_answered_with_gzip_and_without_it_nothing_is() {
    block_on(async |mut raw: Raw| {
        let gzip = [("grpc-encoding", "gzip")];
        let big = put("k", vec![b'v'; 1 << 20]).encode_to_vec();
        let answer = raw.call(PUT, &gzip, framed(1, &zipped(&big))).await;
        assert_eq!(answer.header("grpc-encoding"), Some("gzip"));
        assert_eq!(answer.end().await.0, "0");
        for (path, key, range_end) in [(RANGE, "k", ""), (RANGE, "a", "z"), (RANGE_STREAM, "a", "z")] {
            let request = range(key, range_end).encode_to_vec();
            for body in [framed(1, &zipped(&request)), framed(0, &request)] {
                let mut answer = raw.call(path, &gzip, body).await;
                let (flag, message) = answer.next().await.unwrap();
                assert!(flag == 1 && message.len() < 1 << 16, "{path}: {flag}, {} bytes", message.len());
                let message = unzipped(&message);
                let response = match path {
                    RANGE => pb::RangeResponse::decode(&message[..]).unwrap(),
                    _ => pb::RangeStreamResponse::decode(&message[..]).unwrap().range_response.unwrap(),
                };
                assert_eq!(response.kvs[0].value.len(), 1 << 20);
                assert_eq!(answer.end().await.0, "0");
            }
        }
        let mut answer = raw.call(RANGE, &[("grpc-accept-encoding", "gzip")], plain(&range("k", ""))).await;
        assert_eq!(answer.header("grpc-encoding"), None);
        assert_eq!(answer.next().await.unwrap().0, 0, "accepting it is not asking for it");
    });
}

#[test]
fn an_answer_too_long_to_be_packed_goes_as_it_is() {
    block_on(async |mut raw: Raw| {
        for key in ["a", "b", "c", "d", "e", "f"] {
            raw.call(PUT, &[], plain(&put(key, vec![b'v'; 1 << 20]))).await.end().await;
        }
        let mut answer = raw.call(RANGE, &[("grpc-encoding", "gzip")], plain(&range("a", "z"))).await;
        assert_eq!(answer.header("grpc-encoding"), Some("gzip"));
        let (flag, message) = answer.next().await.unwrap();
        assert_eq!((flag, pb::RangeResponse::decode(message).unwrap().kvs.len()), (0, 6));
        assert_eq!(answer.end().await.0, "0");
    });
}

#[test]
fn messages_that_no_one_can_read_are_refused_in_grpcs_words() {
    block_on(async |mut raw: Raw| {
        let get = range("k", "").encode_to_vec();
        let bomb = framed(1, &zipped(&vec![0; 40 << 20]));
        let gzip = ("grpc-encoding", "gzip");
        for (path, head, body, code, text) in [
            (
                RANGE,
                vec![],
                framed(1, &zipped(&get)),
                "13",
                "grpc: compressed flag set with identity or empty encoding",
            ),
            (RANGE, vec![gzip], framed(2, &get), "13", "grpc: received unexpected payload format 2"),
            (
                RANGE,
                vec![gzip],
                framed(1, b"no gzip at all"),
                "13",
                "grpc: failed to decompress the message: gzip: invalid header",
            ),
            (PUT, vec![gzip], bomb.clone(), "8", "grpc: received message after decompression larger than max 2097152"),
            (WATCH, vec![gzip], bomb, "8", "grpc: received message after decompression larger than max 2097152"),
            (
                RANGE,
                vec![("grpc-encoding", "snappy")],
                framed(0, &get),
                "12",
                "grpc: Decompressor is not installed for grpc-encoding \"snappy\"",
            ),
            (PUT, vec![], Bytes::new(), "2", "EOF"),
            (PUT, vec![], framed(0, &get).slice(..6), "2", "unexpected EOF"),
            (WATCH, vec![], framed(0, &get).slice(..6), "13", "unexpected EOF"),
            (
                RANGE_STREAM,
                vec![],
                framed(0, &get).slice(..3),
                "13",
                "cardinality violation: received no request message from non-client-streaming RPC",
            ),
        ] {
            let answer = raw.call(path, &head, body).await;
            let told = (answer.header("grpc-status"), answer.header("grpc-message"));
            assert_eq!(told, (Some(code), Some(text)), "{path} {head:?}");
            assert_eq!(answer.header("grpc-encoding"), None, "a status is not compressed");
        }
    });
}

#[test]
fn heads_that_make_no_call_have_an_http_status_of_their_own() {
    block_on(async |mut raw: Raw| {
        for (content_type, answered) in [
            ("application/grpc", "application/grpc"),
            ("application/grpc+proto", "application/grpc+proto"),
            ("application/grpc;proto", "application/grpc+proto"),
            ("application/grpc+json", "application/grpc+json"),
        ] {
            let answer = raw.call(RANGE, &[("content-type", content_type)], plain(&range("k", ""))).await;
            assert_eq!(answer.header("content-type"), Some(answered));
            assert_eq!(answer.end().await.0, "0");
        }
        let refused = raw.call(RANGE, &[("content-type", "application/json")], Bytes::new()).await;
        assert_eq!(refused.response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(refused.header("grpc-message"), Some("invalid gRPC request content-type \"application/json\""));
        let refused = raw.call(RANGE, &[("grpc-timeout", "15")], Bytes::new()).await;
        assert_eq!((refused.response.status(), refused.header("grpc-status")), (StatusCode::BAD_REQUEST, Some("13")));
        poll_fn(|cx| raw.0.poll_ready(cx)).await.unwrap();
        let get =
            Request::get(format!("http://orlop{RANGE}")).header("content-type", "application/grpc").body(()).unwrap();
        let refused = Stream::new(raw.0.send_request(get, true).unwrap().0).await;
        assert_eq!(refused.response.status(), StatusCode::METHOD_NOT_ALLOWED);
        let text = "Received a HEADERS frame with :method \"GET\" which should be POST";
        assert_eq!(refused.header("grpc-message"), Some(text));
    });
}

#[test]
fn a_call_that_waits_beyond_its_time_is_told_so() {
    block_on(async |mut raw: Raw| {
        for path in [PUT, WATCH, KEEP_ALIVE] {
            let (_open, response) = raw.open(path, &[("grpc-timeout", "200m")], Bytes::new()).await;
            let told = Stream::new(response).await.end().await;
            assert_eq!(told, ("4".to_owned(), "context deadline exceeded".to_owned()), "{path}");
        }
        let (_open, response) = raw.open(WATCH, &[("grpc-timeout", "200m")], plain(&watch("k"))).await;
        let mut events = Stream::new(response).await;
        assert!(events.message::<pb::WatchResponse>().await.created);
        assert_eq!(events.end().await.0, "4");
        // The call's time is over before it begins; one that is answered at once needs none.
        let told = raw.call(RANGE, &[("grpc-timeout", "0S")], plain(&range("k", ""))).await.end().await;
        assert_eq!(told.0, "4");
        let long = [("grpc-timeout", "99999999H")];
        assert_eq!(raw.call(RANGE, &long, plain(&range("k", ""))).await.end().await.0, "0");
    });
}

#[test]
fn a_stream_of_chunks_ends_with_the_last_keys() {
    block_on(async |mut raw: Raw| {
        for key in 0..30 {
            raw.call(PUT, &[], plain(&put(&format!("k{key:02}"), vec![7]))).await.end().await;
        }
        for (limit, sizes) in
            [(0, vec![10, 20]), (10, vec![10]), (12, vec![10, 2]), (30, vec![10, 20]), (40, vec![10, 20])]
        {
            let mut answer = raw.call(RANGE_STREAM, &[], plain(&pb::RangeRequest { limit, ..range("k", "l") })).await;
            let mut chunks = Vec::new();
            while let Some((_, message)) = answer.next().await {
                let chunk = pb::RangeStreamResponse::decode(message).unwrap().range_response.unwrap();
                chunks.push(chunk.kvs.len());
                assert_eq!(chunk.header.is_some(), chunks.iter().sum::<usize>() == sizes.iter().sum::<usize>());
            }
            assert_eq!(chunks, sizes, "limit {limit}");
        }
        let mut answer = raw.call(RANGE_STREAM, &[], plain(&range("none", ""))).await;
        let only: pb::RangeStreamResponse = answer.message().await;
        assert!(only.range_response.unwrap().header.is_some() && answer.next().await.is_none());
    });
}
