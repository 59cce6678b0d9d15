//! Runs on: main thread, before the server starts.
//!
//! What etcd 3.5 writes into its log as a request of the v2 API: the attributes of a member, and the cluster's version.
//! Each becomes the entry with which later releases say the same.
//!
//! Invariant: a request that would mean anything else in etcd 3.5 is not translated. etcd 3.6 stops at such a one.
//!
//! **Source** etcd v3.5.35 `server/etcdserver/apply_v2.go Put`; etcd v3.6.16 `server/etcdserver/apply_v2.go
//! v2ToV3Request`.

use bytes::Bytes;
use prost::Message;
use proto::{
    internal::{self, Kind, RequestHeader},
    membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest},
};
use serde_json::Value;

/// The fields of etcd's `etcdserverpb.Request` that decide what a request does to a member or to the version.
#[derive(Clone, PartialEq, Message)]
struct RequestV2 {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(string, tag = "4")]
    value: String,
    #[prost(string, tag = "6")]
    previous_value: String,
    #[prost(uint64, tag = "7")]
    previous_index: u64,
    #[prost(bool, optional, tag = "8")]
    must_exist: Option<bool>,
}

/// The entry that says the same as the v2 request in `data`; `None` if it is not one, or says something else.
pub fn translate(data: &Bytes) -> Option<Bytes> {
    let request = RequestV2::decode(data.clone()).ok()?;
    let is_conditional = !request.previous_value.is_empty() || request.previous_index != 0;
    if request.method != "PUT" || is_conditional || request.must_exist.is_some() || request.id == 0 {
        return None;
    }
    let (kind, raw) = match request.path.as_str() {
        "/0/version" => (Kind::ClusterVersionSet, ClusterVersionSetRequest { ver: request.value }.encode_to_vec()),
        path => {
            let member_id = member_of(path)?;
            let member_attributes = Some(attributes(&request.value)?);
            (Kind::ClusterMemberAttrSet, ClusterMemberAttrSetRequest { member_id, member_attributes }.encode_to_vec())
        }
    };
    let header = RequestHeader { id: request.id, ..RequestHeader::default() };
    Some(internal::encode(&header, kind, &raw).entry)
}

/// The member whose attributes lie at `path`.
fn member_of(path: &str) -> Option<u64> {
    let id = path.strip_prefix("/0/members/")?.strip_suffix("/attributes")?;
    let is_id = (1..=16).contains(&id.len()) && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_id { u64::from_str_radix(id, 16).ok() } else { None }
}

/// A name and client URLs, as Go writes them. Either is left out where it is empty.
fn attributes(json: &str) -> Option<Attributes> {
    let value: Value = serde_json::from_str(json).ok()?;
    let object = value.as_object()?;
    let name = object.get("name").map_or(Some(""), Value::as_str)?.to_owned();
    let urls = match object.get("clientURLs") {
        None | Some(Value::Null) => Vec::new(),
        Some(urls) => urls.as_array()?.iter().map(|url| url.as_str().map(str::to_owned)).collect::<Option<_>>()?,
    };
    Some(Attributes { name, client_urls: urls })
}

#[cfg(test)]
mod tests {
    use proto::internal::Request;

    use super::*;

    fn put(path: &str, value: &str) -> RequestV2 {
        RequestV2 { id: 9, method: "PUT".into(), path: path.into(), value: value.into(), ..RequestV2::default() }
    }

    #[test]
    fn what_a_member_of_etcd_3_5_says_is_said_in_the_later_form() {
        let translated = |request: &RequestV2| {
            let data = Bytes::from(request.encode_to_vec());
            assert!(internal::decode(data.clone()).is_err(), "etcd tries the later form first");
            let (header, request) = internal::decode(translate(&data)?).unwrap();
            assert_eq!(header.id, 9);
            Some(request)
        };
        let version = translated(&put("/0/version", "3.5.0"));
        assert_eq!(version, Some(Request::ClusterVersionSet(ClusterVersionSetRequest { ver: "3.5.0".into() })));
        let json = r#"{"name":"m1","clientURLs":["http://a:1","http://b:1"]}"#;
        let expected = ClusterMemberAttrSetRequest {
            member_id: 0x8e9e_05c5_2164_694d,
            member_attributes: Some(Attributes {
                name: "m1".into(),
                client_urls: vec!["http://a:1".into(), "http://b:1".into()],
            }),
        };
        let set = translated(&put("/0/members/8e9e05c52164694d/attributes", json));
        assert_eq!(set, Some(Request::ClusterMemberAttrSet(expected)));
        assert!(translated(&put("/0/members/1/attributes", "{}")).is_some());
        let version = put("/0/version", "3.5.0");
        for other in [
            put("/0/members/1/raftAttributes", "{}"),
            put("/0/members/x/attributes", "{}"),
            put("/0/members/12345678901234567/attributes", "{}"),
            put("/0/members/1/attributes", "[]"),
            put("/0/members/1/attributes", r#"{"clientURLs":[1]}"#),
            put("/1/key", "value"),
            RequestV2 { method: "DELETE".into(), ..version.clone() },
            RequestV2 { must_exist: Some(false), ..version.clone() },
            RequestV2 { previous_index: 1, ..version.clone() },
            RequestV2 { previous_value: "3.4.0".into(), ..version.clone() },
            RequestV2 { id: 0, ..version },
        ] {
            assert_eq!(translated(&other), None, "{other:?}");
        }
        assert_eq!(translate(&Bytes::from_static(b"\xff")), None);
    }
}
