//! Runs on: connection core.
//!
//! The membership as the v2 store that etcd's snapshots carry beside the database. etcd 3.6 still reads it when it
//! takes a snapshot and whenever it starts, and must find every member and former member there; 3.7 only keeps it.
//!
//! **Source** etcd v3.6.16 `server/etcdserver/api/v2store/store.go`, `server/etcdserver/api/membership/storev2.go`.

use consensus::Member;
use serde_json::{Map, Value, json};

use crate::shared::Cluster;

/// The store as JSON text.
pub fn store(cluster: &Cluster) -> Vec<u8> {
    let members = cluster.members.iter().map(|member| {
        let path = format!("/0/members/{:x}", member.id);
        let mut parts = vec![("raftAttributes", file(&format!("{path}/raftAttributes"), raft_attributes(member)))];
        if !member.name.is_empty() {
            parts.push(("attributes", file(&format!("{path}/attributes"), attributes(member))));
        }
        (format!("{:x}", member.id), folder(&path, parts.into_iter().map(|(name, part)| (name.to_owned(), part))))
    });
    let removed = cluster.removed.iter().map(|id| {
        let name = format!("{id:x}");
        let node = file(&format!("/0/removed_members/{name}"), String::new());
        (name, node)
    });
    let mut own = vec![("members".to_owned(), folder("/0/members", members))];
    if !cluster.removed.is_empty() {
        own.push(("removed_members".to_owned(), folder("/0/removed_members", removed)));
    }
    if let Some(version) = &cluster.version {
        own.push(("version".to_owned(), file("/0/version", version.clone())));
    }
    let top = [("0".to_owned(), folder("/0", own)), ("1".to_owned(), folder("/1", []))];
    let store = json!({ "Root": folder("/", top), "CurrentIndex": 0, "CurrentVersion": 2 });
    store.to_string().into_bytes()
}

fn raft_attributes(member: &Member) -> String {
    let mut fields = Map::new();
    fields.insert("peerURLs".into(), json!(member.peer_urls));
    if member.is_learner {
        fields.insert("isLearner".into(), json!(true));
    }
    Value::Object(fields).to_string()
}

fn attributes(member: &Member) -> String {
    let mut fields = Map::new();
    fields.insert("name".into(), json!(member.name));
    if !member.client_urls.is_empty() {
        fields.insert("clientURLs".into(), json!(member.client_urls));
    }
    Value::Object(fields).to_string()
}

fn folder(path: &str, children: impl IntoIterator<Item = (String, Value)>) -> Value {
    node(path, String::new(), Value::Object(children.into_iter().collect()))
}

fn file(path: &str, value: String) -> Value {
    node(path, value, Value::Null)
}

fn node(path: &str, value: String, children: Value) -> Value {
    json!({
        "Path": path, "CreatedIndex": 0, "ModifiedIndex": 0, "ExpireTime": "0001-01-01T00:00:00Z", "Value": value,
        "Children": children,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_and_former_member_is_where_etcd_looks() {
        let members = vec![
            Member {
                id: 0xa,
                name: "s1".into(),
                peer_urls: vec!["http://a:1".into()],
                client_urls: vec!["http://a:2".into()],
                ..Member::default()
            },
            Member { id: 0xb, peer_urls: vec!["http://b:1".into()], is_learner: true, ..Member::default() },
        ];
        let cluster = Cluster { members, removed: [0xc].into(), version: Some("3.6.0".into()), ..Cluster::default() };
        let store: Value = serde_json::from_slice(&store(&cluster)).unwrap();
        let children = |path: &str| {
            path.split('/').filter(|part| !part.is_empty()).fold(&store["Root"], |node, part| &node["Children"][part])
        };
        let value = |path: &str| {
            let node = children(path);
            assert_eq!((&node["Path"], &node["Children"]), (&json!(path), &Value::Null));
            node["Value"].as_str().unwrap().to_owned()
        };
        assert_eq!(value("/0/members/a/raftAttributes"), r#"{"peerURLs":["http://a:1"]}"#);
        let attributes: Value = serde_json::from_str(&value("/0/members/a/attributes")).unwrap();
        assert_eq!(attributes, json!({ "name": "s1", "clientURLs": ["http://a:2"] }));
        let learner: Value = serde_json::from_str(&value("/0/members/b/raftAttributes")).unwrap();
        assert_eq!(learner, json!({ "peerURLs": ["http://b:1"], "isLearner": true }));
        assert_eq!(children("/0/members/b/attributes"), &Value::Null, "it has not started");
        assert_eq!((value("/0/removed_members/c"), value("/0/version")), (String::new(), "3.6.0".into()));
        assert_eq!(children("/1")["Children"], json!({}));
    }
}
