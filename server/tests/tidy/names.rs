//! Names that belong to a few files: files are opened in one place, time is read in one place, and so on.
//!
//! A name is found by what it means, through imports, aliases and re-exports; a method by its name alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    source::Violation,
    tree::{Target, Tree},
};

/// Names that only their owners use.
pub(crate) struct Owned {
    /// What it is about: a word for messages and for the table of exceptions.
    pub(crate) what: &'static str,
    /// Paths with all that lies below them; a last name that ends in `*` stands for all that begin so.
    pub(crate) paths: &'static [&'static str],
    pub(crate) methods: &'static [&'static str],
    /// Crates where the rule holds.
    pub(crate) packages: &'static [&'static str],
    /// Files, and folders with all that is in them.
    pub(crate) owners: &'static [&'static str],
}

/// Uses of owned names by others than their owners: each name once in a file, where it stands first.
pub(crate) fn foreign_uses(tree: &Tree, owned: &Owned) -> Vec<Violation> {
    let mut violations: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (id, module) in tree.modules.iter().enumerate() {
        let is_owner = owned.owners.iter().any(|owner| is_below(&module.file, owner));
        if is_owner || !owned.packages.contains(&module.package.as_str()) {
            continue;
        }
        let mut found = |line: usize, name: String| {
            let first = violations.entry((module.file.clone(), name)).or_insert(line);
            *first = line.min(*first);
        };
        let scope = &module.scope;
        for (path, line) in &scope.mentions {
            for name in foreign(tree.resolve(id, path)) {
                if owned.paths.iter().any(|pattern| is_owned(&name, pattern)) {
                    found(*line, name);
                }
            }
        }
        for import in scope.imports.iter().chain(&scope.local_imports) {
            let is_glob = import.name == "*";
            for name in foreign(tree.resolve(id, &import.path)) {
                let is_found = |pattern: &&str| {
                    is_owned(&name, pattern)
                        || (is_glob && pattern.rsplit_once("::").is_some_and(|(folder, _)| folder == name))
                };
                if owned.paths.iter().any(is_found) {
                    found(import.line, if is_glob { format!("{name}::*") } else { name });
                }
            }
        }
        for (method, line) in &scope.methods {
            if owned.methods.contains(&method.as_str()) {
                found(*line, format!(".{method}()"));
            }
        }
    }
    let violation =
        |((path, name), line): (_, usize)| Violation { path, line, text: format!("uses {name}: {}", owned.what) };
    let mut violations: Vec<Violation> = violations.into_iter().map(violation).collect();
    violations.sort();
    violations
}

fn foreign(targets: BTreeSet<Target>) -> impl Iterator<Item = String> {
    targets.into_iter().filter_map(|target| match target {
        Target::Foreign(path) => Some(path.join("::")),
        _ => None,
    })
}

fn is_owned(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")),
    }
}

/// Whether a file is this place, or lies in this folder, which may be written as the module it is.
pub(crate) fn is_below(path: &str, place: &str) -> bool {
    let place = place.trim_end_matches('/');
    path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    #[test]
    fn an_owned_name_is_found_behind_imports_and_aliases() {
        let sources = [
            ("a/src/lib.rs", "mod wire; mod wires; mod user; mod data;"),
            ("a/src/wire/mod.rs", "pub use std::net::TcpStream; fn f() { h2::g(); x.elapsed() }"),
            ("a/src/wires.rs", "use h2::g;\nuse h2x::g;\nfn f() { http() }"),
            (
                "a/src/user.rs",
                "use std::{\n    net as n,\n    net::SocketAddr,\n};\nuse crate::wire::TcpStream as S;\n\
                 fn f() { n::UdpSocket::bind(x) }\nuse std::net::*;\n\
                 fn g() { let a = x.elapsed(); t!(h2::x, b.elapsed()) }\n\
                 #[cfg(test)]\nfn h() { h2::g() }\n",
            ),
            ("a/src/data.rs", "use std::net::SocketAddr; fn f() { elapsed(1) }"),
        ]
        .map(|(path, text)| Source::new(path, text));
        let owned = Owned {
            what: "w",
            paths: &["h2", "http", "std::net::Tcp*", "std::net::Udp*"],
            methods: &["elapsed"],
            packages: &["a"],
            owners: &["a/src/wire"],
        };
        let tree = Tree::read(&["a"], &sources);
        let found: Vec<String> = foreign_uses(&tree, &owned).iter().map(Violation::to_string).collect();
        let expected = [
            "a/src/user.rs:5: uses std::net::TcpStream: w",
            "a/src/user.rs:6: uses std::net::UdpSocket::bind: w",
            "a/src/user.rs:7: uses std::net::*: w",
            "a/src/user.rs:8: uses .elapsed(): w",
            "a/src/user.rs:8: uses h2::x: w",
            "a/src/wires.rs:1: uses h2::g: w",
            "a/src/wires.rs:3: uses http: w",
        ];
        assert_eq!(found, expected);
        assert!(foreign_uses(&tree, &Owned { packages: &["b"], ..owned }).is_empty());
    }
}
