//! Runs on: main thread, before any core is started.
//!
//! etcd's feature gates: the names and defaults of 3.7, and the syntax of `--feature-gates`.
//!
//! Invariants:
//! - This file knows every gate of etcd 3.7 and no others, whether or not the feature exists yet. A manifest that names
//!   a gate must start, and the metric that lists the gates must list all of them.
//! - No gate is taken silently. If it does not do here what it says, it keeps the value that is true, whatever was
//!   asked for, and there is a warning with the reason.

use std::collections::BTreeMap;

use super::{
    error::{Error, Invalid},
    go,
};

/// Maturity of a feature, as etcd's metric names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Off by default.
    Alpha,
    /// On by default.
    Beta,
}

/// What a gate does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// What it does in etcd.
    Etcds,
    /// Nothing: the feature is always there, for this reason.
    On(&'static str),
    /// Nothing: the feature is never there, for this reason.
    Off(&'static str),
}

use Effect::{Etcds, Off, On};

/// The gates: name, stage, default. What LeaseCheckpoint has taken down is always kept, as in etcd once the cluster's
/// version is 3.6; so LeaseCheckpointPersist changes nothing, as there. Alone, a
/// member has nothing to compare its hashes with, in etcd too.
const TABLE: [(&str, Stage, bool, Effect); 11] = [
    ("AllAlpha", Stage::Alpha, false, Etcds),
    ("AllBeta", Stage::Beta, false, Etcds),
    ("CompactHashCheck", Stage::Alpha, false, Etcds),
    ("FastLeaseKeepAlive", Stage::Beta, true, On("no renewal waits for entries before it")),
    ("InitialCorruptCheck", Stage::Alpha, false, Etcds),
    ("LeaseCheckpoint", Stage::Alpha, false, Etcds),
    ("LeaseCheckpointPersist", Stage::Alpha, false, Etcds),
    ("PriorityRequest", Stage::Alpha, false, Off("a client's LeaseRevoke is refused like others; expiry never is")),
    ("SetMemberLocalAddr", Stage::Alpha, false, Etcds),
    ("StopGRPCServiceOnDefrag", Stage::Alpha, false, Etcds),
    ("TxnModeWriteWithSharedBuffer", Stage::Beta, true, On("no buffer of reads is copied")),
];

/// The gates: name, stage, default.
pub const GATES: [(&str, Stage, bool); TABLE.len()] = {
    let mut gates = [("", Stage::Alpha, false); TABLE.len()];
    let mut position = 0;
    while position < gates.len() {
        gates[position] = (TABLE[position].0, TABLE[position].1, TABLE[position].2);
        position += 1;
    }
    gates
};

/// Reads `A=true,B=false`.
///
/// **Errors**: etcd's text.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, bool>, Invalid> {
    let mut set = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), value.trim()),
            None => return Err(Invalid::GateWithoutValue(part.trim().to_owned())),
        };
        let bad = || Invalid::GateValue { gate: name.to_owned(), value: value.to_owned() };
        let value = go::parse_bool(value).ok_or_else(bad)?;
        set.insert(name.to_owned(), value);
    }
    match set.keys().find(|name| TABLE.iter().all(|(known, ..)| known != name)) {
        Some(unknown) => Err(Invalid::Gate(unknown.clone())),
        None => Ok(set),
    }
}

/// All gates with the values that are asked for. A gate that is set by name beats `AllAlpha` and `AllBeta`, which beat
/// the defaults.
pub(super) fn asked(set: &BTreeMap<String, bool>) -> BTreeMap<&'static str, bool> {
    let value_of = |&(name, stage, default, _): &(&'static str, Stage, bool, Effect)| {
        let all = match stage {
            Stage::Alpha => "AllAlpha",
            Stage::Beta => "AllBeta",
        };
        (name, set.get(name).or_else(|| set.get(all)).copied().unwrap_or(default))
    };
    TABLE.iter().map(value_of).collect()
}

/// Gives the gates their true values. Returns those that were asked to be otherwise, and why they are not.
pub(super) fn correct(gates: &mut BTreeMap<&'static str, bool>) -> Vec<(&'static str, &'static str)> {
    let mut corrected = Vec::new();
    for (name, .., effect) in TABLE {
        let (is_on, why) = match effect {
            Etcds => continue,
            On(why) => (true, why),
            Off(why) => (false, why),
        };
        if gates.insert(name, is_on) != Some(is_on) {
            corrected.push((name, why));
        }
    }
    corrected
}

/// Refuses gates that need another one.
///
/// **Errors**: etcd's text.
pub(super) fn check(gates: &BTreeMap<&'static str, bool>) -> Result<(), Error> {
    if gates["LeaseCheckpointPersist"] && !gates["LeaseCheckpoint"] {
        let text = "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint";
        return Err(Error::Refused(text.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_parse_as_in_etcd() {
        let rows = [
            ("", Ok(0)),
            ("InitialCorruptCheck=true", Ok(1)),
            (" PriorityRequest = T ,AllBeta=0,", Ok(2)),
            ("Foo=true", Err("unrecognized feature gate: Foo")),
            ("PriorityRequest", Err("missing bool value for PriorityRequest")),
            (
                "PriorityRequest=x",
                Err("invalid value of PriorityRequest=x, err: strconv.ParseBool: parsing \"x\": invalid syntax"),
            ),
        ];
        for (text, want) in rows {
            let got = parse(text).map(|set| set.len()).map_err(|why| why.to_string());
            assert_eq!(got, want.map_err(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn a_gate_by_name_beats_its_stage_which_beats_the_default() {
        let gates = asked(&parse("AllAlpha=true,PriorityRequest=false,AllBeta=false").unwrap());
        assert!(gates["LeaseCheckpoint"] && gates["AllAlpha"]);
        assert!(!gates["PriorityRequest"] && !gates["FastLeaseKeepAlive"]);
        let mut gates = asked(&BTreeMap::new());
        assert!(gates["FastLeaseKeepAlive"] && !gates["InitialCorruptCheck"]);
        assert_eq!(check(&gates), Ok(()));
        assert_eq!(correct(&mut gates), [], "the defaults are true");
        assert!(check(&asked(&parse("LeaseCheckpointPersist=true").unwrap())).is_err());
    }

    #[test]
    fn what_a_gate_cannot_do_it_does_not_claim() {
        let mut gates = asked(&parse("AllAlpha=true,AllBeta=false").unwrap());
        let corrected: Vec<&str> = correct(&mut gates).into_iter().map(|(name, _)| name).collect();
        let off = ["PriorityRequest"];
        let on = ["FastLeaseKeepAlive", "TxnModeWriteWithSharedBuffer"];
        assert_eq!(corrected, [&on[..1], &off[..], &on[1..]].concat());
        assert!(off.iter().all(|name| !gates[name]) && on.iter().all(|name| gates[name]));
        assert!(gates["LeaseCheckpoint"] && gates["LeaseCheckpointPersist"]);
        assert!(gates["StopGRPCServiceOnDefrag"] && gates["InitialCorruptCheck"] && gates["AllAlpha"]);
    }
}
