//! Runs on: main thread, before any core is started.
//!
//! Reads the server's flags from environment variables: `--name` is `ETCD_NAME`; Orlop's own flags begin with `ORLOP_`.
//!
//! Invariants:
//! - A flag and its variable together are refused, as in etcd, even with equal values.
//! - An empty variable is not set. An unknown `ETCD_` or `ORLOP_` variable gives a warning: Kubernetes creates such
//!   variables for a service named etcd. The warning does not show its value, which may be a secret.

use std::collections::BTreeSet;

use super::{
    error::Error,
    flag::Target,
    flags::{TABLE, is_own},
    values::Values,
};

/// Reads the variables into the values that the arguments gave.
///
/// **Errors**: `Refused` for the first variable that a flag shadows, or that does not have a value of its kind.
pub(super) fn read(values: &mut Values, variables: &[(String, String)]) -> Result<(), Error> {
    let shadowed: BTreeSet<String> = values.given().filter_map(name_of).collect();
    let mut faults = Vec::new();
    for (key, value) in variables.iter().filter(|(key, _)| key.starts_with("ETCD_") || key.starts_with("ORLOP_")) {
        if shadowed.contains(key) {
            return Err(Error::Refused(format!(
                "conflicting environment variable is shadowed by corresponding command-line flag \
                 (either unset environment variable or disable flag)): {key}"
            )));
        }
        let (name, target) = match target_of(key) {
            _ if key == "ETCD_VERSION" => {
                values.warn("cannot set special environment variable", "key", key);
                continue;
            }
            Some(found) if !value.is_empty() => found,
            _ => {
                values.warn("unrecognized environment variable", "environment-variable", key);
                continue;
            }
        };
        if let Err(why) = values.set(&target, &name, value) {
            faults.push(format!("invalid value {value:?} for {key}: {why}"));
        }
    }
    match faults.into_iter().next() {
        Some(fault) => Err(Error::Refused(fault)),
        None => Ok(()),
    }
}

/// The flag of this variable, and its target.
fn target_of(key: &str) -> Option<(String, Target)> {
    let (prefix, rest) = key.split_once('_')?;
    if rest.chars().any(|c| c.is_ascii_lowercase()) {
        return None;
    }
    let name = rest.to_ascii_lowercase().replace('_', "-");
    let target = TABLE.find(&name)?;
    (prefix_of(&target) == prefix).then_some((name, target))
}

/// The variable of a flag.
fn name_of(flag: &str) -> Option<String> {
    let prefix = prefix_of(&TABLE.find(flag)?);
    Some(format!("{prefix}_{}", flag.to_ascii_uppercase().replace('-', "_")))
}

fn prefix_of(target: &Target) -> &'static str {
    match target {
        Target::Flag(row) if is_own(row) => "ORLOP",
        Target::Knob(_) => "ORLOP",
        Target::Flag(_) | Target::Gate(_) => "ETCD",
    }
}
