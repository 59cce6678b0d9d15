//! How files are laid out: folders of modules, the maps at their heads, columns, and the README.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, Violation};

pub(crate) const COLUMNS_MAX: usize = 120;

/// A tab is as wide as most editors of Go show it.
const TAB_COLUMNS: usize = 4;

/// Lines beyond `COLUMNS_MAX`. Tables of Markdown are left out: a row cannot be broken.
pub(crate) fn wide_lines(source: &Source) -> Vec<Violation> {
    let is_markdown = source.path.ends_with(".md");
    let columns = |line: &str| line.chars().map(|c| if c == '\t' { TAB_COLUMNS } else { 1 }).sum::<usize>();
    source
        .lines()
        .filter(|(_, line)| columns(line) > COLUMNS_MAX && !(is_markdown && line.starts_with('|')))
        .map(|(number, line)| Violation::new(&source.path, number, format!("{} columns", columns(line))))
        .collect()
}

/// Files `x.rs` beside a folder `x/`, and folders with modules that have no `mod.rs`. A crate's root may be `lib.rs` or
/// `main.rs`, and so may a test's; `tests`, `benches` and the like are folders of crates.
pub(crate) fn split_modules(sources: &[Source]) -> Vec<Violation> {
    let files: BTreeSet<&str> =
        sources.iter().filter(|source| source.is_rust()).map(|source| source.path.as_str()).collect();
    let folders: BTreeSet<&str> = files.iter().filter_map(|path| Some(path.rsplit_once('/')?.0)).collect();
    let mut violations = Vec::new();
    for folder in folders {
        let beside = format!("{folder}.rs");
        if files.contains(beside.as_str()) {
            violations.push(Violation::new(&beside, 0, format!("stands beside its folder; it is {folder}/mod.rs")));
        }
        let name = folder.rsplit('/').next().unwrap_or(folder);
        let is_of_crates = ["tests", "benches", "fuzz_targets"].contains(&name) || !folder.contains('/');
        let has_root =
            ["mod.rs", "lib.rs", "main.rs"].iter().any(|root| files.contains(format!("{folder}/{root}").as_str()));
        let is_crate = sources.iter().any(|source| source.path == format!("{folder}/Cargo.toml"));
        if !is_of_crates && !has_root && !is_crate {
            violations.push(Violation::new(folder, 0, "a folder of modules has no mod.rs"));
        }
    }
    violations
}

/// Modules that the head of their folder's `mod.rs`, `lib.rs` or `main.rs` does not name. The head says of each what it
/// has, in a line that names it as code: "`block`: the bytes of a record".
pub(crate) fn unmapped_modules(source: &Source) -> Vec<Violation> {
    let is_root = ["/mod.rs", "/lib.rs", "/main.rs"].iter().any(|root| source.path.ends_with(root));
    if !is_root || !source.path.contains("/src/") {
        return Vec::new();
    }
    let head: Vec<&str> = source.text.lines().map_while(|line| line.strip_prefix("//!")).collect();
    let mut violations = Vec::new();
    let mut is_test = false;
    for (number, line) in source.lines() {
        if let Some(name) = declared_module(line)
            && !is_test
            && !head.iter().any(|line| is_entry(line, name))
        {
            violations.push(Violation::new(&source.path, number, format!("the head has no line for `{name}`")));
        }
        is_test = line == "#[cfg(test)]" || (is_test && line.starts_with("#["));
    }
    violations
}

/// The name in `mod name;`.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.strip_suffix(';')?;
    let (before, name) = if line.starts_with("mod ") { line.split_once("mod ")? } else { line.split_once(" mod ")? };
    (before.is_empty() || before.starts_with("pub")).then_some(name)
}

/// Whether a line of a head names this module, as a word of code: `name` or `name/`, alone or in a link.
fn is_entry(line: &str, name: &str) -> bool {
    line.split('`').skip(1).step_by(2).any(|word| word.strip_suffix('/').unwrap_or(word) == name)
}

/// What a README lacks: it is short, names each crate, and names each folder of the server with its slash: `wire/`.
pub(crate) fn readme_faults(readme: &Source, lines_max: usize, crates: &[&str], sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let lines = readme.text.lines().count();
    if lines > lines_max {
        violations.push(Violation::new(&readme.path, 0, format!("{lines} lines; {lines_max} at most")));
    }
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for name in crates {
        names.insert((*name).to_owned(), format!("the crate `{name}`"));
    }
    for source in sources {
        if let Some((folder, _)) = source.path.strip_prefix("server/src/").and_then(|below| below.split_once('/')) {
            names.insert(format!("{folder}/"), format!("the folder `server/src/{folder}/`"));
        }
    }
    for (name, what) in names {
        let is_named = readme.text.match_indices(name.as_str()).any(|(at, _)| {
            let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            let after = readme.text[at + name.len()..].chars().next();
            !is_word(readme.text[..at].chars().next_back()) && (name.ends_with('/') || !is_word(after))
        });
        if !is_named {
            violations.push(Violation::new(&readme.path, 0, format!("does not name {what}")));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(Violation::to_string).collect()
    }

    #[test]
    fn wide_lines_are_seen_and_wide_tables_are_not() {
        let (full, beyond) = ("ä".repeat(120), "ä".repeat(121));
        let text = format!("{full}\n{beyond}\n|{beyond}|\n\t{}\n", "x".repeat(117));
        let rust = texts(&wide_lines(&Source::new("a.rs", &text)));
        assert_eq!(rust, ["a.rs:2: 121 columns", "a.rs:3: 123 columns", "a.rs:4: 121 columns"]);
        assert_eq!(texts(&wide_lines(&Source::new("a.md", &text))), ["a.md:2: 121 columns", "a.md:4: 121 columns"]);
    }

    #[test]
    fn a_folder_of_modules_has_a_mod_rs_and_no_file_beside_it() {
        let sources = [
            "a/build.rs",
            "a/src/lib.rs",
            "a/src/b.rs",
            "a/src/b/c.rs",
            "a/src/d/mod.rs",
            "a/src/d/e.rs",
            "a/src/f/g.rs",
            "a/tests/h.rs",
            "a/tests/i/main.rs",
            "a/tests/i/j.rs",
        ]
        .map(|path| Source::new(path, ""));
        let expected = [
            "a/src/b.rs: stands beside its folder; it is a/src/b/mod.rs",
            "a/src/b: a folder of modules has no mod.rs",
            "a/src/f: a folder of modules has no mod.rs",
        ];
        assert_eq!(texts(&split_modules(&sources)), expected);
    }

    #[test]
    fn a_head_has_a_line_for_each_module() {
        let text = "//! Files.\n//!\n//! - `block`, [`cache`]: bytes, and memory.\n//! - `cursors/`: many\n\
                    //! whole, index\n\nmod block;\npub(crate) mod cache;\npub mod cursor;\nmod cursors;\nmod index;\n\
                    #[cfg(test)]\nmod tests;\n    mod inner;\n";
        let lacking = |path: &str| texts(&unmapped_modules(&Source::new(path, text)));
        let expected =
            ["a/src/mod.rs:9: the head has no line for `cursor`", "a/src/mod.rs:11: the head has no line for `index`"];
        assert_eq!(lacking("a/src/mod.rs"), expected);
        assert!(lacking("a/src/plain.rs").is_empty());
    }

    #[test]
    fn the_readme_is_short_and_names_crates_and_folders() {
        let sources =
            ["server/src/wire/mod.rs", "server/src/kv/mod.rs", "server/src/main.rs", "engine/src/disk/mod.rs"]
                .map(|path| Source::new(path, ""));
        let readme = Source::new("README.md", "server engines\nwire/ xkv/\n");
        let expected = [
            "README.md: 2 lines; 1 at most",
            "README.md: does not name the crate `engine`",
            "README.md: does not name the folder `server/src/kv/`",
        ];
        assert_eq!(texts(&readme_faults(&readme, 1, &["server", "engine"], &sources)), expected);
    }
}
