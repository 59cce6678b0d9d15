//! Runs on: connection core.
//!
//! The wire leads from an accepted connection to calls at the door of `api`, and back. It is the only place of this
//! crate that knows HTTP.
//!
//! - `channel`: a connected socket; `stream`: its bytes, encrypted or not
//! - `socket`: the first bytes tell HTTP/2 from HTTP/1.1
//! - `tls/`: TLS of accepted connections
//! - `http2/`: connections of HTTP/2, over h2
//! - `http1/`: connections of HTTP/1.1, for small requests
//! - `grpc/`: gRPC over an h2 stream
//! - `endpoints`: /health, /livez, /readyz, /version, /metrics; `peers`: those for other members
//! - `vars`: /debug/vars
//! - `client`: the smallest gRPC client, for `orlop top` and tests
//!
//! Bounds: connections are bounded by their count, streams by the advertised maximum, request bytes by the windows, the
//! frames of a turn and unread answers to control frames by `http2/ration`, and unsent bytes by the writer.

pub mod channel;
pub mod client;
pub mod endpoints;
pub mod grpc;
pub mod http1;
pub mod http2;
mod peers;
pub mod socket;
pub mod stream;
pub mod tls;
mod vars;
