//! Our schema against etcd's own `.proto` files: every message, field, enum and method must be the same, in both
//! directions.
//!
//! etcd's files come from the Go module proxy, so this needs `go` in PATH and, the first time, the network; without
//! them it fails. etcd's custom options (HTTP mappings, "since release") do not change the wire: the files that declare
//! them are stood in for below, and options are not compared. `etcdserver.proto` (one message of etcd's WAL) is not
//! part of our schema.

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use prost_reflect::{Cardinality, DescriptorPool, FieldDescriptor, Kind};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

const ETCD_API: &str = "go.etcd.io/etcd/api/v3@v3.7.1";
const PACKAGES: [&str; 4] = ["authpb", "etcdserverpb", "membershippb", "mvccpb"];
const OURS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));

const HTTP_OPTIONS: &str = r#"
    syntax = "proto3"; package google.api; import "google/protobuf/descriptor.proto";
    message HttpRule { string post = 4; string body = 7; repeated HttpRule additional_bindings = 11; }
    extend google.protobuf.MethodOptions { HttpRule http = 72295728; }
"#;
const OPENAPI_OPTIONS: &str = r#"
    syntax = "proto3"; package grpc.gateway.protoc_gen_openapiv2.options; import "google/protobuf/descriptor.proto";
    message Scheme {
      enum Type { TYPE_INVALID = 0; TYPE_BASIC = 1; TYPE_API_KEY = 2; }
      enum In { IN_INVALID = 0; IN_QUERY = 1; IN_HEADER = 2; }
      Type type = 1; string name = 3; In in = 4;
    }
    message Definitions { map<string, Scheme> security = 1; }
    message Requirement { message Value { repeated string scope = 1; } map<string, Value> security_requirement = 1; }
    message Swagger { Definitions security_definitions = 11; repeated Requirement security = 12; }
    extend google.protobuf.FileOptions { Swagger openapiv2_swagger = 1042; }
"#;

/// Finds etcd's files under the names by which they import each other.
struct EtcdFiles(PathBuf);

impl FileResolver for EtcdFiles {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "google/api/annotations.proto" => File::from_source(name, HTTP_OPTIONS),
            "protoc-gen-openapiv2/options/annotations.proto" => File::from_source(name, OPENAPI_OPTIONS),
            "rpc.proto" | "raft_internal.proto" => File::open(name, &self.0.join("etcdserverpb").join(name)),
            _ => match name.strip_prefix("etcd/api/") {
                Some(path) => File::open(name, &self.0.join(path)),
                None => Err(protox::Error::file_not_found(name)),
            },
        }
    }
}

fn etcd_dir() -> PathBuf {
    let output = Command::new("go")
        .args(["mod", "download", "-json", ETCD_API])
        .env("GOFLAGS", "")
        .current_dir(std::env::temp_dir())
        .output()
        .expect("this test compares with etcd's own .proto files and needs `go` in PATH");
    assert!(
        output.status.success(),
        "go mod download {ETCD_API} failed: {} {}",
        output.stdout.escape_ascii(),
        output.stderr.escape_ascii()
    );
    let module: serde_json::Value = serde_json::from_slice(&output.stdout).expect("go prints JSON");
    let dir = PathBuf::from(module["Dir"].as_str().expect("go names the module's directory"));
    assert!(dir.join("etcdserverpb/rpc.proto").is_file(), "no rpc.proto in {}", dir.display());
    dir
}

fn etcd_pool() -> DescriptorPool {
    let mut resolver = ChainFileResolver::new();
    resolver.add(EtcdFiles(etcd_dir()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_files(["rpc.proto", "raft_internal.proto"]).expect("etcd's files compile");
    compiler.descriptor_pool()
}

fn is_ours(package: &str) -> bool {
    PACKAGES.contains(&package)
}

fn field_line(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(of) => of.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    };
    let label = match field.cardinality() {
        Cardinality::Repeated if field.is_packed() => "packed",
        Cardinality::Repeated => "repeated",
        Cardinality::Required => "required",
        Cardinality::Optional if field.supports_presence() => "optional",
        Cardinality::Optional => "implicit",
    };
    let oneof = field.containing_oneof().map_or(String::new(), |oneof| format!(" in oneof {}", oneof.name()));
    format!("{} = {}: {label} {kind}, json {}{oneof}", field.full_name(), field.number(), field.json_name())
}

/// One line for each fact that the wire, or JSON, depends on.
fn facts(pool: &DescriptorPool) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    for message in pool.all_messages().filter(|message| is_ours(message.package_name())) {
        facts.insert(format!("message {}", message.full_name()));
        facts.extend(message.fields().map(|field| field_line(&field)));
        facts.extend(message.reserved_ranges().map(|range| format!("{} reserves {range:?}", message.full_name())));
    }
    for of in pool.all_enums().filter(|of| is_ours(of.package_name())) {
        facts.insert(format!("enum {}", of.full_name()));
        facts
            .extend(of.values().map(|value| format!("enum {}: {} = {}", of.full_name(), value.name(), value.number())));
    }
    for service in pool.services().filter(|service| is_ours(service.package_name())) {
        facts.insert(format!("service {}", service.full_name()));
        facts.extend(service.methods().map(|method| {
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            let (input, output) = (method.input(), method.output());
            let (from, to) = (stream(method.is_client_streaming()), stream(method.is_server_streaming()));
            format!("{}({from}{}) returns ({to}{})", method.full_name(), input.full_name(), output.full_name())
        }));
    }
    facts
}

#[test]
fn schema_equals_etcds() {
    let ours = facts(&DescriptorPool::decode(OURS).unwrap());
    let etcds = facts(&etcd_pool());
    assert!(etcds.len() > 480, "etcd's files were not read whole: {} facts", etcds.len());
    let missing: Vec<_> = etcds.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&etcds).collect();
    assert!(missing.is_empty() && extra.is_empty(), "only in etcd: {missing:#?}\nonly here: {extra:#?}");
}
