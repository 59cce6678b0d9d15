//! Runs on: core 0.
//!
//! Who a member without data is, and with whom it begins.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`, `server/etcdserver/api/membership/{cluster,member}.go`.

use consensus::{Identity, Member};

use crate::config::{Config, Url};

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The member, and its cluster.
    pub identity: Identity,
    /// The members with which a new cluster begins, ascending by id.
    pub members: Vec<Member>,
}

impl Bootstrap {
    /// The member that `config` names, of the new cluster that it describes.
    pub fn of_new_cluster(config: &Config) -> Self {
        let texts = |urls: &[Url]| urls.iter().map(ToString::to_string).collect::<Vec<_>>();
        let id_of = |urls: &[String]| consensus::member_id(urls, &config.initial_cluster_token, None);
        let member = |(name, urls): (&String, &Vec<Url>)| {
            let peer_urls = texts(urls);
            Member { id: id_of(&peer_urls), peer_urls, name: name.clone(), ..Member::default() }
        };
        let mut members: Vec<Member> = config.initial_cluster.iter().map(member).collect();
        members.sort_by_key(|member| member.id);
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        let member_id = id_of(&texts(&config.advertise_peer_urls));
        Self { identity: Identity { cluster_id: consensus::cluster_id(&ids), member_id }, members }
    }
}
