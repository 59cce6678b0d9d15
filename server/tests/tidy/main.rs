//! What no compiler checks: the rules of the house that are about the text of the project. Reads the source tree, takes
//! seconds, names the file and line of each violation.
//!
//! - `source`: the files, and what a violation is
//! - `text`: code as text: words, and the length of functions
//! - `parse`: code as names and paths
//! - `tree`: modules, and what a path means in them
//! - `graph`: which file imports which, and circles
//! - `rooms`: the rows of the server's rooms
//! - `names`: names that belong to a few files
//! - `imports`: the style of imports
//! - `layout`: folders, heads, columns, and the README
//!
//! A test beside each rule shows it fail, on source that is made up. Here stand the tables, and then the rules as the
//! project is held to them.
//!
//! Not here: what rustfmt and clippy know already (see the lint table in the workspace's `Cargo.toml`).

mod graph;
mod imports;
mod layout;
mod names;
mod parse;
mod rooms;
mod source;
mod text;
mod tree;

use std::{collections::BTreeSet, fs, sync::LazyLock};

use crate::{
    graph::Graph,
    names::{Owned, foreign_uses, is_below},
    rooms::Row,
    source::{Source, Violation, assert_none, read_sources, root},
    text::{contains_word, functions, without_literals},
    tree::Tree,
};

/// All exceptions from the rules on owned names (`OWNED`), each with its reason. One that is no longer needed is a
/// violation too.
const EXCEPTIONS: [Exception; 5] = [
    Exception {
        what: "files",
        place: "server/src/commands/mod.rs",
        reason: "hands the reading of small text files (knobs, /proc) to whoever needs one, before there is a disk",
    },
    Exception {
        what: "files",
        place: "server/src/log",
        reason: "appends to the log's own outputs, before there is a disk",
    },
    Exception { what: "files", place: "server/src/metrics/process.rs", reason: "reads /proc, which is no medium" },
    Exception {
        what: "sockets",
        place: "server/src/boot/notify.rs",
        reason: "sends the init daemon its datagrams, which belong to no client and no member",
    },
    Exception {
        what: "threads",
        place: "server/src/api/database.rs",
        reason: "waits for a system call that has no other form, beside its core",
    },
];

struct Exception {
    what: &'static str,
    place: &'static str,
    reason: &'static str,
}

const CRATES: [&str; 7] = ["bench", "consensus", "engine", "proto", "server", "trust", "tuning"];

/// The complete edges between our crates.
const EDGES: [(&str, &[&str]); 7] = [
    ("bench", &["proto", "trust", "tuning"]),
    ("consensus", &["engine", "tuning"]),
    ("engine", &["tuning"]),
    ("proto", &[]),
    ("server", &["consensus", "engine", "proto", "trust", "tuning"]),
    ("trust", &[]),
    ("tuning", &[]),
];

/// The rooms of the server, as README.md draws them: a room imports only what stands in rows below it.
const ROWS: [Row; 15] = [
    Row::closed(&["main"]),
    Row::closed(&["commands"]),
    Row::closed(&["boot"]),
    Row::closed(&["cores"]),
    Row::closed(&["peer"]),
    Row::closed(&["wire"]),
    Row::closed(&["api"]),
    Row::closed(&["etcd_files"]),
    Row::closed(&["raft"]),
    Row::closed(&["apply"]),
    Row::closed(&["kv", "watch", "lease", "quota"]),
    Row::closed(&["metrics"]),
    Row::closed(&["insight", "log"]),
    Row::closed(&["config"]),
    Row::open(&[
        "shared", "error", "clock", "mailbox", "slots", "loader", "floor", "gathered", "hashes", "auth", "header",
        "method", "protobuf", "lib",
    ]),
];

/// Rooms that are drawn, and not built yet.
const LATER: [&str; 0] = [];

/// Names that only a few files use.
const OWNED: [Owned; 7] = [
    Owned { what: "HTTP", paths: &["h2", "http"], methods: &[], packages: &["server"], owners: &["server/src/wire"] },
    Owned {
        what: "sockets",
        paths: &["tokio::net", "std::net::Tcp*", "std::net::Udp*", "std::os::unix::net", "socket2", "rustix::net"],
        methods: &[],
        packages: &["consensus", "engine", "proto", "server", "trust", "tuning"],
        owners: &["server/src/wire", "server/src/peer", "server/src/cores/listen.rs", "server/src/commands"],
    },
    Owned {
        what: "files",
        paths: &["std::fs", "std::os::unix::fs", "tokio::fs", "rustix::fs"],
        methods: &[
            "canonicalize",
            "exists",
            "is_dir",
            "is_file",
            "read_dir",
            "read_link",
            "symlink_metadata",
            "try_exists",
        ],
        packages: &["consensus", "engine", "proto", "server", "trust", "tuning"],
        owners: &["engine/src/disk"],
    },
    Owned {
        what: "time",
        paths: &[
            "libc::clock_gettime",
            "rustix::time",
            "std::time::Instant::now",
            "std::time::Instant::elapsed",
            "std::time::SystemTime::now",
            "std::time::SystemTime::elapsed",
            "tokio::time::Instant::now",
            "tokio::time::Instant::elapsed",
        ],
        methods: &["elapsed"],
        packages: &["consensus", "engine", "proto", "server", "trust", "tuning"],
        owners: &["server/src/clock"],
    },
    Owned {
        what: "chance",
        paths: &[
            "rand::random*",
            "rand::rng",
            "rand::rngs::OsRng",
            "rand::rngs::SmallRng::from_os_rng",
            "rand::rngs::StdRng::from_os_rng",
            "rand::rngs::ThreadRng",
            "rand::thread_rng",
            "rustix::rand",
            "std::collections::hash_map::RandomState::new",
            "std::hash::RandomState::new",
        ],
        methods: &[],
        packages: &["consensus", "engine", "proto", "server", "trust", "tuning"],
        owners: &["server/src/clock"],
    },
    // What a client is told, it is told from a view that `desk.view` gave: these go on at a revision that they got
    // there, or show a client nothing.
    Owned {
        what: "views",
        paths: &[],
        methods: &["published"],
        packages: &["server"],
        owners: &[
            "server/src/api/desk.rs",
            "server/src/api/propose.rs",
            "server/src/api/range",
            "server/src/api/watch.rs",
            "server/src/boot/threads.rs",
            "server/src/cores",
        ],
    },
    Owned {
        what: "threads",
        paths: &["std::thread::Builder", "std::thread::scope", "std::thread::spawn", "tokio::task::spawn_blocking"],
        methods: &[],
        packages: &["consensus", "engine", "proto", "server", "trust", "tuning"],
        owners: &["engine/src/disk", "server/src/boot", "server/src/cores"],
    },
];

const TOP_LEVEL: [&str; 21] = [
    ".ci",
    ".clippy.toml",
    ".config",
    ".deny.toml",
    ".git",
    ".gitattributes",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Procfile",
    "README.md",
    "REPLACING.md",
    "bench",
    "consensus",
    "engine",
    "proto",
    "server",
    "trust",
    "tuning",
];

/// Left behind by builds, runs and measurements; git ignores them.
const LEFT_BEHIND: [&str; 2] = ["target", "measure-data"];

const UNSAFE_ALLOWED: [&str; 3] = ["engine/src/disk/", "server/src/cores", "server/tests/allocations/"];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 900;
const README_LINES_MAX: usize = 250;

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(|| {
    let mut entries = vec![".ci", ".config", ".deny.toml", "Cargo.toml", "README.md"];
    entries.extend(CRATES);
    read_sources(&entries)
});

static TREE: LazyLock<Tree> = LazyLock::new(|| Tree::read(&CRATES, &SOURCES));

static GRAPH: LazyLock<Graph> = LazyLock::new(|| Graph::of(&TREE));

fn readme() -> &'static Source {
    SOURCES.iter().find(|source| source.path == "README.md").expect("there is a README")
}

fn rust_violations(rule: impl Fn(&Source) -> Vec<Violation>) -> Vec<Violation> {
    SOURCES.iter().filter(|source| source.is_rust()).flat_map(rule).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_none("arrows run one way", &GRAPH.circles());
}

#[test]
fn rooms_of_the_server_import_only_rooms_below() {
    assert_none("arrows between rooms point downward", &rooms::wrong_arrows(&GRAPH, &ROWS));
}

#[test]
fn every_room_of_the_server_stands_in_a_row() {
    assert_none("rooms and rows", &rooms::unknown_rooms(&SOURCES, &ROWS, &LATER));
}

#[test]
fn the_readme_draws_the_rooms_in_their_rows() {
    assert_none("rows that README.md draws otherwise", &rooms::undrawn_rows(&readme().text, &ROWS));
}

#[test]
fn owned_names_are_used_by_their_owners() {
    let mut violations = Vec::new();
    let mut needed = BTreeSet::new();
    for owned in &OWNED {
        for found in foreign_uses(&TREE, owned) {
            let excepts =
                |exception: &Exception| exception.what == owned.what && is_below(&found.path, exception.place);
            match EXCEPTIONS.iter().position(excepts) {
                Some(exception) => needed.extend([exception]),
                None => violations.push(found),
            }
        }
    }
    for (position, exception) in EXCEPTIONS.iter().enumerate() {
        if !needed.contains(&position) {
            let text = format!("nothing needs this exception: {} ({})", exception.what, exception.reason);
            violations.push(Violation::new(exception.place, 0, text));
        }
    }
    assert_none("names that belong to others", &violations);
}

#[test]
fn imports_have_one_style() {
    assert_none("imports", &rust_violations(imports::wrong_imports));
}

#[test]
fn modules_have_one_style() {
    assert_none("modules", &layout::split_modules(&SOURCES));
}

/// Code, scripts, and prose; no generated lists, and not the schemas that are etcd's own.
#[test]
fn lines_have_at_most_120_columns() {
    let is_read = |source: &&Source| {
        let is_code = [".rs", ".go", ".md", ".toml"].iter().any(|end| source.path.ends_with(end));
        is_code || source.path.starts_with(".ci/") || source.text.starts_with("#!")
    };
    let violations: Vec<_> = SOURCES.iter().filter(is_read).flat_map(layout::wide_lines).collect();
    assert_none("wide lines", &violations);
}

#[test]
fn the_head_of_a_folder_names_each_of_its_modules() {
    assert_none("maps at the heads of folders", &rust_violations(layout::unmapped_modules));
}

#[test]
fn the_readme_is_short_and_names_every_crate_and_folder() {
    let violations = layout::readme_faults(readme(), README_LINES_MAX, &CRATES, &SOURCES);
    assert_none("README.md", &violations);
}

#[test]
fn nothing_is_left_for_later_and_no_machine_is_named() {
    // Written apart, so that this file does not find itself.
    let never = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("dbg", "!("),
        concat!("#[", "ignore"),
        concat!("#[should", "_panic"),
        concat!("\"/wo", "rk/"),
        concat!("/wo", "rk/main"),
        concat!("/wo", "rk/shared"),
        concat!("/ro", "ot/"),
    ];
    let mut violations = Vec::new();
    for source in SOURCES.iter() {
        for (number, line) in source.lines() {
            violations.extend(
                never
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{}:{number}: {word}", source.path)),
            );
        }
    }
    assert_none("these are never merged", &violations);
}

#[test]
fn every_file_says_first_what_it_is_and_in_the_server_where_it_runs() {
    let mut violations = Vec::new();
    for source in SOURCES.iter().filter(|source| source.is_rust()) {
        let first = source.text.lines().next().unwrap_or_default();
        if !first.starts_with("//! ") {
            violations.push(format!("{}: no `//!` head", source.path));
        } else if source.path.starts_with("server/src/") && !first.starts_with("//! Runs on: ") {
            violations.push(format!("{}: the first line does not say `Runs on:`", source.path));
        }
    }
    assert_none("file heads", &violations);
}

#[test]
fn unsafe_code_stays_in_its_places() {
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"];
    let mut violations = Vec::new();
    for source in SOURCES.iter().filter(|source| source.is_rust()) {
        if UNSAFE_ALLOWED.iter().any(|place| source.path.starts_with(place)) {
            continue;
        }
        let code = without_literals(&source.text);
        for (position, line) in code.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                violations.push(format!("{}:{}", source.path, position + 1));
            }
        }
    }
    assert_none("unsafe outside its places", &violations);
}

#[test]
fn crates_depend_on_one_another_as_drawn() {
    for (name, allowed) in EDGES {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("each crate has a manifest");
        let mut is_dependencies = false;
        let mut edges = BTreeSet::new();
        for line in manifest.lines().map(str::trim) {
            if let Some(section) = line.strip_prefix('[') {
                is_dependencies = section.trim_end_matches(']').ends_with("dependencies");
            } else if is_dependencies {
                let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
                edges.extend(CRATES.iter().filter(|known| **known == key));
            }
        }
        let beyond: Vec<_> = edges.iter().filter(|edge| !allowed.contains(*edge)).collect();
        assert!(beyond.is_empty(), "{name} depends on {beyond:?}");
    }
}

/// A knob is read as `group.field` anywhere, or as `.field` in a file that names the group's struct. Setting it by the
/// registry does not count.
#[test]
fn every_knob_is_read_somewhere() {
    let readers: Vec<&Source> = SOURCES
        .iter()
        .filter(|source| source.is_rust() && source.path.contains("/src/"))
        .filter(|source| !source.path.starts_with("tuning/") && !source.path.starts_with("server/src/config"))
        .collect();
    let mut unread = Vec::new();
    for knob in tuning::REGISTRY {
        let mut initials = knob.group.chars();
        let group_type = initials.next().into_iter().flat_map(char::to_uppercase).chain(initials).collect::<String>();
        let is_read = readers.iter().any(|source| {
            contains_word(&source.text, &format!("{}.{}", knob.group, knob.field))
                || (source.text.contains(&format!("tuning::{group_type}"))
                    && contains_word(&source.text, &format!(".{}", knob.field)))
        });
        if !is_read {
            unread.push(knob.name());
        }
    }
    assert_none("a knob is read by code or does not exist", &unread);
}

#[test]
fn the_top_level_stays_clean() {
    let mut violations = Vec::new();
    for entry in fs::read_dir(root()).expect("the root is readable") {
        let name = entry.expect("its entries too").file_name().to_string_lossy().into_owned();
        let is_known = TOP_LEVEL.contains(&name.as_str()) || LEFT_BEHIND.contains(&name.as_str());
        if !is_known && !name.ends_with(".etcd") {
            violations.push(name);
        }
    }
    assert_none("not among the entries of the top level", &violations);
}

#[test]
fn functions_and_files_stay_short() {
    let mut violations = Vec::new();
    for source in SOURCES.iter().filter(|source| source.is_rust()) {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            violations.push(format!("{}: {lines} lines in the file", source.path));
        }
        for (line, name, lines) in functions(&source.text) {
            if lines > FUNCTION_LINES_MAX {
                violations.push(format!("{}:{line}: {lines} lines in {name}", source.path));
            }
        }
    }
    assert_none("too long", &violations);
}
