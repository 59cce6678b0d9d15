//! Runs on: main thread, before any core is started.
//!
//! etcd's feature gates: the names and defaults of 3.7, and the syntax of `--feature-gates`.
//!
//! Invariant: this file knows every gate of etcd 3.7 and no others, whether or not the feature exists yet. A manifest
//! that names a gate must start, and the metric that lists the gates must list all of them.

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

/// The gates: name, stage, default.
pub const GATES: [(&str, Stage, bool); 11] = [
    ("AllAlpha", Stage::Alpha, false),
    ("AllBeta", Stage::Beta, false),
    ("CompactHashCheck", Stage::Alpha, false),
    ("FastLeaseKeepAlive", Stage::Beta, true),
    ("InitialCorruptCheck", Stage::Alpha, false),
    ("LeaseCheckpoint", Stage::Alpha, false),
    ("LeaseCheckpointPersist", Stage::Alpha, false),
    ("PriorityRequest", Stage::Alpha, false),
    ("SetMemberLocalAddr", Stage::Alpha, false),
    ("StopGRPCServiceOnDefrag", Stage::Alpha, false),
    ("TxnModeWriteWithSharedBuffer", Stage::Beta, true),
];

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
    match set.keys().find(|name| GATES.iter().all(|(known, ..)| known != name)) {
        Some(unknown) => Err(Invalid::Gate(unknown.clone())),
        None => Ok(set),
    }
}

/// All gates with their values. A gate that is set by name beats `AllAlpha` and `AllBeta`, which beat the defaults.
pub(super) fn resolve(set: &BTreeMap<String, bool>) -> BTreeMap<&'static str, bool> {
    let value_of = |&(name, stage, default): &(&'static str, Stage, bool)| {
        let all = match stage {
            Stage::Alpha => "AllAlpha",
            Stage::Beta => "AllBeta",
        };
        (name, set.get(name).or_else(|| set.get(all)).copied().unwrap_or(default))
    };
    GATES.iter().map(value_of).collect()
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
        let gates = resolve(&parse("AllAlpha=true,PriorityRequest=false,AllBeta=false").unwrap());
        assert!(gates["LeaseCheckpoint"] && gates["AllAlpha"]);
        assert!(!gates["PriorityRequest"] && !gates["FastLeaseKeepAlive"]);
        let gates = resolve(&BTreeMap::new());
        assert!(gates["FastLeaseKeepAlive"] && !gates["InitialCorruptCheck"]);
        assert_eq!(check(&gates), Ok(()));
        assert!(check(&resolve(&parse("LeaseCheckpointPersist=true").unwrap())).is_err());
    }
}
