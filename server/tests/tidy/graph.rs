//! Which file imports which, and the circles among them.
//!
//! An edge is a `use` or a path in code that names what another file of the same crate defines. A `mod` line or the
//! call of a method is none. A module's own `pub use` of what lies below it is none either: it is what paths are led
//! through.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use crate::tree::{Target, Tree};

/// Where a file imports another for the first time, and what.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Example {
    pub(crate) line: usize,
    pub(crate) name: String,
}

/// The files of all crates with the edges between them.
pub(crate) struct Graph {
    pub(crate) edges: BTreeMap<(String, String), Example>,
}

/// Files that all reach one another.
pub(crate) struct Circle {
    pub(crate) files: BTreeSet<String>,
    /// The shortest way round among them, edge by edge.
    pub(crate) shortest: Vec<(String, String, Example)>,
}

impl Graph {
    pub(crate) fn of(tree: &Tree) -> Self {
        let mut graph = Self { edges: BTreeMap::new() };
        for (id, module) in tree.modules.iter().enumerate() {
            let scope = &module.scope;
            for import in scope.imports.iter().chain(&scope.local_imports) {
                for target in tree.resolve(id, &import.path) {
                    let is_led_through =
                        |to| import.is_public && tree.is_within(to, id) && tree.modules[to].file != module.file;
                    if let Target::Item(to) = target
                        && !is_led_through(to)
                    {
                        graph.add(tree, (id, to), import.line, &import.path.segments);
                    }
                }
            }
            for (path, line) in &scope.mentions {
                for target in tree.resolve(id, path) {
                    if let Target::Item(to) = target {
                        graph.add(tree, (id, to), *line, &path.segments);
                    }
                }
            }
        }
        graph
    }

    fn add(&mut self, tree: &Tree, (from, to): (usize, usize), line: usize, path: &[String]) {
        let (from, to) = (&tree.modules[from], &tree.modules[to]);
        if from.file == to.file || from.package != to.package {
            return;
        }
        let example = Example { line, name: path.join("::") };
        let first = self.edges.entry((from.file.clone(), to.file.clone())).or_insert_with(|| example.clone());
        if line < first.line {
            *first = example;
        }
    }

    /// Each set of files that reach one another, once.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (from, to) in self.edges.keys() {
            next.entry(from).or_default().push(to);
        }
        let ways: BTreeMap<&str, BTreeMap<&str, &str>> =
            next.keys().map(|from| (*from, ways_from(from, &next))).collect();
        let mut circles = Vec::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for (file, reached) in &ways {
            if !reached.contains_key(file) || seen.contains(*file) {
                continue;
            }
            let files: BTreeSet<&str> = reached
                .keys()
                .filter(|other| ways.get(*other).is_some_and(|back| back.contains_key(file)))
                .copied()
                .collect();
            seen.extend(&files);
            let rounds = files.iter().map(|file| way_back(file, &ways[file]));
            let shortest = rounds.min_by_key(Vec::len).expect("a circle has files");
            circles.push(Circle {
                files: files.into_iter().map(str::to_owned).collect(),
                shortest: shortest.into_iter().map(|(from, to)| self.edge(from, to)).collect(),
            });
        }
        circles
    }

    fn edge(&self, from: &str, to: &str) -> (String, String, Example) {
        let key = (from.to_owned(), to.to_owned());
        let example = self.edges[&key].clone();
        (key.0, key.1, example)
    }
}

/// What can be reached from a file over one edge or more, each with the file before it on a shortest way.
fn ways_from<'a>(start: &'a str, next: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeMap<&'a str, &'a str> {
    let mut before = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for to in next.get(file).into_iter().flatten() {
            if !before.contains_key(to) {
                before.insert(*to, file);
                queue.push_back(to);
            }
        }
    }
    before
}

/// The edges of a shortest way from a file back to itself.
fn way_back<'a>(file: &'a str, before: &BTreeMap<&'a str, &'a str>) -> Vec<(&'a str, &'a str)> {
    let mut edges = Vec::new();
    let mut at = file;
    loop {
        edges.push((before[at], at));
        at = before[at];
        if at == file {
            break;
        }
    }
    edges.reverse();
    edges
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} files import each other in a circle:", self.files.len())?;
        for file in &self.files {
            writeln!(f, "    {file}")?;
        }
        writeln!(f, "  the shortest way round:")?;
        for (from, to, example) in &self.shortest {
            writeln!(f, "    {from}:{} imports {} of {to}", example.line, example.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    fn graph(sources: &[(&str, &str)]) -> Graph {
        let sources: Vec<Source> = sources.iter().map(|(path, text)| Source::new(path, text)).collect();
        Graph::of(&Tree::read(&["a"], &sources))
    }

    fn edges(graph: &Graph) -> Vec<String> {
        graph
            .edges
            .iter()
            .map(|((from, to), example)| {
                let short = |path: &str| path.trim_start_matches("a/src/").to_owned();
                format!("{}:{} {} {}", short(from), example.line, example.name, short(to))
            })
            .collect()
    }

    #[test]
    fn an_edge_is_an_import_or_a_path_to_the_file_that_defines() {
        let graph = graph(&[
            ("a/src/lib.rs", "mod b;\nmod c;\nmod d;\npub use b::B;\npub use d::D;\n"),
            ("a/src/b.rs", "pub struct B;\nuse crate::c;\nfn f(_: c::C) { crate::B; self::B }\n"),
            ("a/src/c.rs", "pub struct C;\n#[cfg(test)]\nmod tests { use crate::B; }\n"),
            ("a/src/d/mod.rs", "mod e;\npub use e::D;\npub(super) use super::c::C;\nfn g() { D::h(); }\n"),
            ("a/src/d/e.rs", "use crate::{B, c::C as Other};\npub struct D;\nfn h(x: B) { x.f(crate::c::C) }\n"),
        ]);
        let expected = [
            "b.rs:3 c::C c.rs",
            "d/e.rs:1 crate::B b.rs",
            "d/e.rs:1 crate::c::C c.rs",
            "d/mod.rs:3 super::c::C c.rs",
            // The module's `pub use` is no edge; its code that uses what it re-exports is.
            "d/mod.rs:4 D::h d/e.rs",
        ];
        assert_eq!(edges(&graph), expected);
        assert!(graph.circles().is_empty());
    }

    #[test]
    fn each_circle_is_found_once_with_its_shortest_way_round() {
        let graph = graph(&[
            ("a/src/lib.rs", "mod b; mod c; mod d; mod e; mod f; mod g; pub use c::C; pub use e::E;"),
            ("a/src/b.rs", "use crate::C; pub struct B;"),
            ("a/src/c.rs", "use crate::d::D; pub struct C;"),
            ("a/src/d.rs", "pub struct D; fn f() { assert!(crate::b::B == 1); crate::c::C; }"),
            ("a/src/e.rs", "use crate::{b::B, f::F}; pub struct E;"),
            ("a/src/f.rs", "use super::E; pub struct F;"),
            ("a/src/g.rs", "use super::{E, C};"),
        ]);
        let circles = graph.circles();
        let files = |circle: &Circle| circle.files.iter().map(|file| file[6..7].to_owned()).collect::<String>();
        let shortest =
            |circle: &Circle| circle.shortest.iter().map(|(from, _, _)| from[6..7].to_owned()).collect::<String>();
        let found: Vec<_> = circles.iter().map(|circle| (files(circle), shortest(circle))).collect();
        assert_eq!(found, [("bcd".to_owned(), "cd".to_owned()), ("ef".to_owned(), "ef".to_owned())]);
        assert!(circles[1].to_string().contains("a/src/e.rs:1 imports crate::f::F of a/src/f.rs"));
    }
}
