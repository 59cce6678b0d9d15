//! Generates the message types from `schema/` with protox, so that no protoc is needed. Services are part of the schema (the descriptor
//! test compares them), but no stubs come of them: the server and `bench` speak HTTP/2 themselves.

use std::io::Error;

const SCHEMA_DIR: &str = "schema";

const FILES: [&str; 12] = [
    "authpb/auth.proto",
    "etcdserverpb/auth.proto",
    "etcdserverpb/cluster.proto",
    "etcdserverpb/header.proto",
    "etcdserverpb/kv.proto",
    "etcdserverpb/lease.proto",
    "etcdserverpb/maintenance.proto",
    "etcdserverpb/raft_internal.proto",
    "etcdserverpb/watch.proto",
    "grpc/health.proto",
    "membershippb/membership.proto",
    "mvccpb/kv.proto",
];

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed={SCHEMA_DIR}");
    let descriptors = protox::compile(FILES, [SCHEMA_DIR]).map_err(Error::other)?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)
}
