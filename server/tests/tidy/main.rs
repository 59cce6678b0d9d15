//! What no compiler checks: the rules of the house that are about the text of the project. Reads the source tree, runs in
//! milliseconds, names the file and line of each violation.
//!
//! Not here: what rustfmt and clippy know already (see the lint table in the workspace's `Cargo.toml`).

mod graph;
mod parse;
mod source;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::{
    graph::Graph,
    source::{Source, assert_none, read_sources, root},
    tree::Tree,
};

const CRATES: [&str; 6] = ["bench", "consensus", "engine", "proto", "server", "tuning"];

/// The complete edges between our crates.
const EDGES: [(&str, &[&str]); 6] = [
    ("bench", &["proto", "tuning"]),
    ("consensus", &["engine", "tuning"]),
    ("engine", &["tuning"]),
    ("proto", &[]),
    ("server", &["consensus", "engine", "proto", "tuning"]),
    ("tuning", &[]),
];

const TOP_LEVEL: [&str; 18] = [
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
    "README.md",
    "bench",
    "consensus",
    "engine",
    "proto",
    "server",
    "tuning",
];

/// Left behind by builds, runs and measurements; git ignores them.
const LEFT_BEHIND: [&str; 2] = ["target", "measure-data"];

const UNSAFE_ALLOWED: [&str; 2] = ["engine/src/disk/", "server/src/cores"];

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 900;

/// Everything that is read.
fn sources() -> Vec<Source> {
    let mut entries = vec![".ci", ".config", ".deny.toml", "Cargo.toml", "README.md"];
    entries.extend(CRATES);
    read_sources(&entries)
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    assert_none("arrows run one way", &Graph::of(&Tree::read(&CRATES, &sources())).circles());
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
    for source in sources() {
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
    for source in sources().iter().filter(|source| source.is_rust()) {
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
fn unsafe_code_stays_in_its_two_places() {
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"];
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
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
    assert_none("unsafe outside engine::disk and server::cores", &violations);
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

/// A reading is `group.field` anywhere, or `.field` in a file that names the group's struct. Setting by registry is none.
#[test]
fn every_knob_is_read_somewhere() {
    let readers: Vec<Source> = sources()
        .into_iter()
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

fn contains_word(text: &str, word: &str) -> bool {
    let is_inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let is_start = word.starts_with('.') || !is_inside(text[..at].chars().next_back());
        is_start && !is_inside(text[at + word.len()..].chars().next())
    })
}

/// A file stands in the map by its path below `src`, such as `disk/uring.rs`; a folder's `mod.rs` by the folder, `disk/`.
#[test]
fn the_map_in_the_readme_names_every_source_file() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is a README");
    let mut missing = Vec::new();
    for source in sources().iter().filter(|source| source.is_rust()) {
        let Some((_, below)) = source.path.split_once("/src/") else { continue };
        // Tests beside their code are found where the code is.
        if below.ends_with("tests.rs") {
            continue;
        }
        let name = below.strip_suffix("mod.rs").filter(|folder| !folder.is_empty()).unwrap_or(below);
        if !readme.contains(name) {
            missing.push(source.path.clone());
        }
    }
    assert_none("not in README.md's map", &missing);
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
    for source in sources().iter().filter(|source| source.is_rust()) {
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

/// Each function's first line, name, and number of lines in its body that are neither blank nor comment.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let code = without_literals(text);
    let mut open: Vec<(usize, String, usize, usize)> = Vec::new();
    let mut done = Vec::new();
    let mut depth = 0_usize;
    let mut waiting: Option<(usize, String)> = None;
    for (position, line) in code.lines().enumerate() {
        for function in &mut open {
            function.3 += usize::from(!line.trim().is_empty());
        }
        if let Some(name) = function_name(line) {
            waiting = Some((position + 1, name));
        }
        for c in line.chars() {
            match c {
                '{' => {
                    depth += 1;
                    if let Some((line, name)) = waiting.take() {
                        open.push((line, name, depth, 0));
                    }
                }
                '}' => {
                    if open.last().is_some_and(|function| function.2 == depth) {
                        let (line, name, _, lines) = open.pop().expect("just seen");
                        done.push((line, name, lines.saturating_sub(1)));
                    }
                    depth = depth.saturating_sub(1);
                }
                ';' => waiting = None,
                _ => {}
            }
        }
    }
    done
}

fn function_name(line: &str) -> Option<String> {
    let at = line.find("fn ").filter(|at| *at == 0 || line[..*at].ends_with([' ', '(']))?;
    let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The text with comments, strings and characters blanked, line for line.
fn without_literals(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let literal = literal_len(rest, code.chars().next_back());
        if literal == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..literal].chars().filter(|c| *c == '\n'));
            rest = &rest[literal..];
        }
    }
    code
}

/// Length of the comment, string or character that the text begins with; 0 if none.
fn literal_len(text: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return until(2, "*/");
    }
    if text.starts_with('"') {
        return quoted_len(text, '"');
    }
    let is_after_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with('r') && !is_after_word {
        let hashes = text[1..].chars().take_while(|c| *c == '#').count();
        if text[1 + hashes..].starts_with('"') {
            return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if text.starts_with('\'') {
        // A lifetime has no second quote where a character has it.
        let mut chars = text.strip_prefix(|_: char| true).unwrap_or_default().chars();
        return match (chars.next(), chars.next()) {
            (Some('\\'), _) => quoted_len(text, '\''),
            (Some(c), Some('\'')) => 2 + c.len_utf8(),
            _ => 0,
        };
    }
    0
}

fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The rules above are only worth something if the reading beneath them sees what is there.
#[test]
fn the_reader_sees_code_and_not_literals() {
    let text =
        "fn a() {\n    let s = \"}\\\"{\"; // }\n\n    let c = '{';\n    let r = r#\"}\"}\"#;\n    b::<'x>()\n}\n";
    assert_eq!(functions(text), [(1, "a".to_owned(), 4)]);
    assert_eq!(without_literals("x /* a\nb */ 'c' 'd: \"\n\""), "x \n  'd: \n");
    let nested = "trait T {\n    fn declared(&self);\n    fn outer() {\n        fn inner() {}\n    }\n}\n";
    let by_name: BTreeMap<_, _> =
        functions(nested).into_iter().map(|(line, name, lines)| (name, (line, lines))).collect();
    assert_eq!(by_name["outer"], (3, 1));
    assert!(by_name.contains_key("inner") && !by_name.contains_key("declared"));
    assert!(contains_word("a.wal.segment_bytes;", "wal.segment_bytes"));
    assert!(!contains_word("a.wal.segment_bytes_max", "wal.segment_bytes") && !contains_word("xwal.b", "wal.b"));
}
