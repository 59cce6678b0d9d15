//! Runs on: main thread.
//!
//! From a data directory and a configuration to a serving member.
//!
//! | file | what it owns |
//! |---|---|
//! | `import` | taking over the data directory of a stopped etcd, once |

pub mod import;
