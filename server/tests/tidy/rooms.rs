//! The rooms of the server, top-level folders and files of `server/src`, in rows: arrows point downward only.

use std::collections::BTreeSet;

use crate::{
    graph::{Example, Graph},
    source::{Source, Violation},
};

const HOUSE: &str = "server/src/";

/// Rooms that stand side by side.
pub(crate) struct Row {
    pub(crate) rooms: &'static [&'static str],
    /// Whether they may import each other.
    pub(crate) is_open: bool,
}

impl Row {
    /// Rooms that do not know each other.
    pub(crate) const fn closed(rooms: &'static [&'static str]) -> Self {
        Self { rooms, is_open: false }
    }

    /// Rooms that may import each other, without circles.
    pub(crate) const fn open(rooms: &'static [&'static str]) -> Self {
        Self { rooms, is_open: true }
    }
}

/// The room that a file belongs to: `wire` for `server/src/wire/mod.rs` and for `server/src/wire.rs`.
pub(crate) fn room_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix(HOUSE)?;
    Some(below.split('/').next().unwrap_or(below).trim_end_matches(".rs"))
}

/// Rooms that stand in no row, and rooms without a file. `later` are those that are drawn before they are built.
pub(crate) fn unknown_rooms(sources: &[Source], rows: &[Row], later: &[&str]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let built: BTreeSet<&str> = sources.iter().filter_map(|source| room_of(&source.path)).collect();
    for room in built.iter().filter(|room| row_of(room, rows).is_none()) {
        violations.push(Violation::new(&format!("{HOUSE}{room}"), 0, "stands in no row"));
    }
    for room in rows.iter().flat_map(|row| row.rooms) {
        if built.contains(room) == later.contains(room) {
            let path = format!("{HOUSE}{room}");
            let text = if later.contains(room) { "is built, though said to come later" } else { "is drawn, not built" };
            violations.push(Violation::new(&path, 0, text));
        }
    }
    violations
}

/// Imports that point upward, or beside.
pub(crate) fn wrong_arrows(graph: &Graph, rows: &[Row]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for ((from, to), Example { line, name }) in &graph.edges {
        let (Some(from_room), Some(to_room)) = (room_of(from), room_of(to)) else { continue };
        let (Some(from_row), Some(to_row)) = (row_of(from_room, rows), row_of(to_room, rows)) else { continue };
        let is_beside = from_row == to_row && from_room != to_room && !rows[from_row].is_open;
        if from_row > to_row || is_beside {
            let place = if is_beside { "beside" } else { "above" };
            let text = format!("imports {name} of {to}: `{to_room}` stands {place} `{from_room}`");
            violations.push(Violation::new(from, *line, text));
        }
    }
    violations
}

fn row_of(room: &str, rows: &[Row]) -> Option<usize> {
    rows.iter().position(|row| row.rooms.contains(&room))
}

/// The rows as a text draws them, in the fenced block whose first line begins with the first room:
///
/// - a line that begins with a name is a row, one with a blank goes on with the row above
/// - rooms are parted by one blank; two blanks end them, and what is in the rooms may follow
/// - `wire/` and `(peer)` are rooms too
pub(crate) fn drawn_rows<'a>(text: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let names = |line: &'a str| -> Vec<&'a str> {
        let rooms = line.split("  ").next().unwrap_or_default();
        rooms.split(' ').map(|name| name.trim_matches(['(', ')', '/', ','])).filter(|name| !name.is_empty()).collect()
    };
    let is_first = |line: &str| line.split([' ', '/']).next() == Some(first);
    let blocks = text.split("\n```text\n").skip(1).filter_map(|rest| rest.split("\n```").next());
    let drawing = blocks.into_iter().find(|block| block.lines().next().is_some_and(is_first)).unwrap_or_default();
    drawing.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')).map(names).collect()
}

/// Rows that the text draws otherwise.
pub(crate) fn undrawn_rows(text: &str, rows: &[Row]) -> Vec<String> {
    let drawn = drawn_rows(text, rows[0].rooms[0]);
    let sorted = |names: &[&str]| {
        let mut names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        names.join(" ")
    };
    let known: Vec<String> = rows.iter().map(|row| sorted(row.rooms)).collect();
    let drawn: Vec<String> = drawn.iter().map(|row| sorted(row)).collect();
    (0..known.len().max(drawn.len()))
        .filter(|at| known.get(*at) != drawn.get(*at))
        .map(|at| {
            let name = |rows: &[String]| rows.get(at).map_or("nothing", String::as_str).to_owned();
            format!("row {}: the table has {}, the drawing {}", at + 1, name(&known), name(&drawn))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    const ROWS: [Row; 3] =
        [Row::closed(&["main"]), Row::closed(&["kv", "watch", "peer"]), Row::open(&["clock", "error", "lib"])];

    fn sources(files: &[(&str, &str)]) -> Vec<Source> {
        files.iter().map(|(path, text)| Source::new(&format!("server/src/{path}"), text)).collect()
    }

    #[test]
    fn arrows_point_downward_and_not_beside() {
        let sources = sources(&[
            ("main.rs", "use server::kv::Key;"),
            ("lib.rs", "pub mod kv; pub mod watch; pub mod clock; pub mod error;"),
            ("kv/mod.rs", "pub mod read; pub struct Key; use crate::clock::Clock; use crate::watch::Hub;"),
            ("kv/read.rs", "use super::Key;"),
            ("watch.rs", "pub struct Hub;"),
            ("clock.rs", "pub struct Clock; use crate::error::Error;"),
            ("error.rs", "pub struct Error(crate::kv::Key);"),
        ]);
        let graph = Graph::of(&Tree::read(&["server"], &sources));
        let found: Vec<String> = wrong_arrows(&graph, &ROWS).iter().map(Violation::to_string).collect();
        let expected = [
            "server/src/error.rs:1: imports crate::kv::Key of server/src/kv/mod.rs: `kv` stands above `error`",
            "server/src/kv/mod.rs:1: imports crate::watch::Hub of server/src/watch.rs: `watch` stands beside `kv`",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_room_is_known_and_built_unless_it_comes_later() {
        let sources = sources(&[
            ("main.rs", ""),
            ("lib.rs", ""),
            ("kv.rs", ""),
            ("top/mod.rs", ""),
            ("clock.rs", ""),
            ("error.rs", ""),
        ]);
        let paths = |later: &[&str]| -> Vec<String> {
            unknown_rooms(&sources, &ROWS, later).into_iter().map(|violation| violation.path).collect()
        };
        assert_eq!(paths(&["peer", "watch"]), ["server/src/top"]);
        assert_eq!(paths(&["peer", "kv"]), ["server/src/top", "server/src/kv", "server/src/watch"]);
    }

    #[test]
    fn the_drawing_has_the_rows_of_the_table() {
        let drawing = "x\n\n```text\nother\n```\n\n```text\nmain\n\nkv/ watch/ (peer)   pure\n          more\n\
                       lib clock error\n```\n";
        assert!(undrawn_rows(drawing, &ROWS).is_empty(), "{:?}", undrawn_rows(drawing, &ROWS));
        assert_eq!(undrawn_rows(&drawing.replace("lib clock", "lib\nclock"), &ROWS).len(), 2);
        assert_eq!(undrawn_rows("nothing is drawn", &ROWS).len(), 3);
    }
}
