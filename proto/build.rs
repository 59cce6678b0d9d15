//! Generates the message types from `schema/` with protox, so that no protoc is needed. Services are part of the schema
//! (the descriptor test compares them), but no stubs come of them: the server and `bench` speak HTTP/2 themselves.

use std::{env, fs, io::Error, path::PathBuf};

const SCHEMA_DIR: &str = "schema";

const FILES: [&str; 13] = [
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
    "orlop/v1/insight.proto",
];

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed={SCHEMA_DIR}");
    let mut compiler = protox::Compiler::new([SCHEMA_DIR]).map_err(Error::other)?;
    compiler.include_imports(true).open_files(FILES).map_err(Error::other)?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| Error::other("cargo sets no OUT_DIR"))?);
    // For tests/descriptors.rs: exactly what the types were generated from.
    fs::write(out_dir.join("schema.bin"), compiler.encode_file_descriptor_set())?;
    prost_build::Config::new().bytes(["."]).compile_fds(compiler.file_descriptor_set())
}
