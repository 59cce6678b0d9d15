//! Runs on: connection core.
//!
//! The request for a state: `GET /orlop/state/FROM/offered/INDEX/TERM` for one that was offered to the member FROM, or
//! `GET /orlop/state/FROM/least/INDEX` for any that has this entry; ids in hex, numbers in decimal. A query names what
//! has come of it already: `?index=..&term=..&rows=..&main=..&sub=..&records=..`.
//!
//! Invariant: whatever is read here is only compared, or passed over; it takes no memory and moves nothing.

use consensus::EntryId;
use engine::Revision;

use super::send::Position;

/// In front of all such paths.
pub const PREFIX: &str = "/orlop/state/";

/// Which state is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The one that ends with this entry, which was offered.
    Offered(EntryId),
    /// Any that has this entry: it is to make up for damage, or for what was lost.
    Least(u64),
}

/// A request for a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Who asks.
    pub from: u64,
    /// Which state is wanted.
    pub wanted: Wanted,
    /// What has come of it already.
    pub position: Option<Position>,
}

impl Asked {
    /// Its path, with the query.
    pub fn path(&self) -> String {
        let Self { from, wanted, position } = self;
        let mut path = match wanted {
            Wanted::Offered(EntryId { index, term }) => format!("{PREFIX}{from:x}/offered/{index}/{term}"),
            Wanted::Least(index) => format!("{PREFIX}{from:x}/least/{index}"),
        };
        if let Some(Position { at, has_rows, next, records }) = position {
            let (index, term, rows, main, sub) = (at.index, at.term, u8::from(*has_rows), next.main, next.sub);
            path += &format!("?index={index}&term={term}&rows={rows}&main={main}&sub={sub}&records={records}");
        }
        path
    }

    /// The request that `path` and `query` are; `None` if they are none.
    pub fn read(path: &str, query: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix(PREFIX)?.split('/').collect();
        let (from, wanted) = match parts[..] {
            [from, "offered", index, term] => {
                (from, Wanted::Offered(EntryId { index: number(index)?, term: number(term)? }))
            }
            [from, "least", index] => (from, Wanted::Least(number(index)?)),
            _ => return None,
        };
        let from = consensus::peer::hello::id(from)?;
        let position = if query.is_empty() { None } else { Some(position(query)?) };
        Some(Self { from, wanted, position })
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn position(query: &str) -> Option<Position> {
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(found, _)| *found == name).map(|(_, value)| value)
    };
    Some(Position {
        at: EntryId { index: number(value("index")?)?, term: number(value("term")?)? },
        has_rows: number::<u8>(value("rows")?)? > 0,
        next: Revision::new(number(value("main")?)?, number(value("sub")?)?),
        records: number(value("records")?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_no_other() {
        let at = EntryId { index: 9, term: 2 };
        let position = Position { at, has_rows: true, next: Revision::new(7, 3), records: 5 };
        for wanted in [Wanted::Offered(at), Wanted::Least(4)] {
            for position in [None, Some(position)] {
                let asked = Asked { from: 0xab, wanted, position };
                let path = asked.path();
                let (path, query) = path.split_once('?').unwrap_or((&path, ""));
                assert_eq!(Asked::read(path, query), Some(asked), "{path}?{query}");
            }
        }
        for path in ["/orlop/state/", "/orlop/state/a/least", "/orlop/state/x/least/1", "/orlop/state/a/offered/1/-1"] {
            assert_eq!(Asked::read(path, ""), None, "{path}");
        }
        assert_eq!(Asked::read("/orlop/state/a/least/1", "index=1"), None);
    }
}
