//! Runs on: core 0, at a start.
//!
//! What a start reads of the meta tree beside the keys and leases: members, alarms, version.

use consensus::Member;
use engine::{Fault, ReadView};

use super::table;
use crate::shared::Cluster;

/// Restores the small tables beside the keys.
///
/// **Errors** a page that is not resident.
pub fn cluster(view: &ReadView) -> Result<Cluster, Fault> {
    let mut cluster = Cluster::default();
    let mut members = view.meta_cursor(table::MEMBER_PREFIX);
    while let Some((_, json)) = members.next()? {
        match Member::from_json(&json) {
            Ok(member) => cluster.members.push(member),
            Err(error) => tracing::error!(%error, "a member in the meta tree cannot be read"),
        }
    }
    let mut alarms = view.meta_cursor(table::ALARM_PREFIX);
    while let Some((key, value)) = alarms.next()? {
        match table::decode_alarm(&key, &value) {
            Some((alarm, origin)) => drop(cluster.alarms.insert(alarm, origin)),
            None => tracing::error!("an alarm in the meta tree cannot be read"),
        }
    }
    cluster.version = view.meta_get(table::CLUSTER_VERSION)?.and_then(|text| String::from_utf8(text.to_vec()).ok());
    Ok(cluster)
}
