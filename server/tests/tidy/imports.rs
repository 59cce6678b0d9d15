//! One style of imports, in every scope of every file: one `use` for each crate; std first, then other crates, then our
//! own names (`crate`, `super`, `self`); a blank line between these groups, and none within.
//!
//! Imports of other visibility or other attributes are counted apart. A `pub use` stands in a group of its own, before
//! or after the others.

use proc_macro2::Span;
use syn::{
    Item, ItemUse, Meta, Stmt, UseTree, Visibility,
    visit::{self, Visit},
};

use crate::{
    parse::name_of,
    source::{Source, Violation},
};

/// In the order of their groups.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Group {
    Standard,
    External,
    Own,
    /// Names handed on: has no place in the order.
    Public,
}

/// A `use` as it stands.
struct Use {
    root: String,
    group: Group,
    visibility: String,
    attributes: String,
    first_line: usize,
    last_line: usize,
    /// Place among the items of its scope.
    position: usize,
}

/// Imports of another style.
pub(crate) fn wrong_imports(source: &Source) -> Vec<Violation> {
    let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{} is no Rust: {error}", source.path));
    let mut reader = Reader { source, own: Vec::new(), violations: Vec::new() };
    reader.visit_file(&file);
    reader.violations.sort();
    reader.violations
}

struct Reader<'a> {
    source: &'a Source,
    /// Names that the modules around define.
    own: Vec<String>,
    violations: Vec<Violation>,
}

impl Reader<'_> {
    /// Checks the `use` items of one scope; each comes with its place among all items.
    fn check<'ast>(&mut self, items: impl Iterator<Item = (usize, &'ast ItemUse)>) {
        let uses: Vec<Use> = items.map(|(position, item)| self.read(position, item)).collect();
        for (at, this) in uses.iter().enumerate() {
            let is_same = |other: &&Use| {
                (&other.root, &other.visibility, &other.attributes) == (&this.root, &this.visibility, &this.attributes)
            };
            if let Some(other) = uses[..at].iter().find(is_same) {
                self.violate(this, format!("a second `use {}` beside line {}", this.root, other.first_line));
            }
            if let Some(later) =
                uses[..at].iter().find(|other| other.group > this.group && other.group != Group::Public)
                && this.group != Group::Public
            {
                self.violate(this, format!("`use {}` stands behind `use {}`", this.root, later.root));
            }
            let Some(before) = at.checked_sub(1).map(|before| &uses[before]) else { continue };
            if before.position + 1 == this.position {
                let lines = self.source.text.lines().skip(before.last_line);
                let is_apart = lines
                    .take((this.first_line - before.last_line).saturating_sub(1))
                    .any(|line| line.trim().is_empty());
                if is_apart && before.group == this.group {
                    self.violate(this, "a blank line within a group of imports".to_owned());
                } else if !is_apart && before.group != this.group {
                    self.violate(this, "no blank line between groups of imports".to_owned());
                }
            }
        }
    }

    fn violate(&mut self, item: &Use, text: String) {
        self.violations.push(Violation::new(&self.source.path, item.first_line, text));
    }

    fn read(&self, position: usize, item: &ItemUse) -> Use {
        let root = root_of(&item.tree);
        let visibility = match &item.vis {
            Visibility::Inherited => "",
            Visibility::Public(_) => "pub",
            Visibility::Restricted(_) => "pub(..)",
        };
        let group = match root.as_str() {
            _ if !visibility.is_empty() => Group::Public,
            "std" | "core" | "alloc" => Group::Standard,
            "crate" | "self" | "super" => Group::Own,
            root if self.own.iter().any(|own| own == root) => Group::Own,
            _ => Group::External,
        };
        let attribute = |meta: &Meta| match meta {
            Meta::List(list) => format!("{}({}) ", last_name(&list.path), list.tokens),
            meta => format!("{} ", last_name(meta.path())),
        };
        let line = |span: Span| span.start().line;
        let vis_line = match &item.vis {
            Visibility::Public(token) => line(token.span),
            Visibility::Restricted(restricted) => line(restricted.pub_token.span),
            Visibility::Inherited => line(item.use_token.span),
        };
        let attribute_lines = item.attrs.iter().map(|attribute| line(attribute.pound_token.spans[0]));
        Use {
            root,
            group,
            visibility: visibility.to_owned(),
            attributes: item.attrs.iter().map(|item| attribute(&item.meta)).collect(),
            first_line: attribute_lines.chain([vis_line]).min().unwrap_or(vis_line),
            last_line: line(item.semi_token.spans[0]),
            position,
        }
    }

    fn check_items(&mut self, items: &[Item]) {
        self.own.extend(items.iter().filter_map(name_of));
        self.check(items.iter().enumerate().filter_map(|(position, item)| match item {
            Item::Use(item) => Some((position, item)),
            _ => None,
        }));
    }
}

/// The crate, or where else a `use` begins. `use {a, b};` begins nowhere.
fn root_of(tree: &UseTree) -> String {
    match tree {
        UseTree::Path(tree) => tree.ident.to_string(),
        UseTree::Name(tree) => tree.ident.to_string(),
        UseTree::Rename(tree) => tree.ident.to_string(),
        UseTree::Glob(_) => "*".to_owned(),
        UseTree::Group(_) => "{}".to_owned(),
    }
}

fn last_name(path: &syn::Path) -> String {
    path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        self.check_items(&file.items);
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if let Some((_, items)) = &module.content {
            self.check_items(items);
        }
        visit::visit_item_mod(self, module);
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        self.check(block.stmts.iter().enumerate().filter_map(|(position, statement)| match statement {
            Stmt::Item(Item::Use(item)) => Some((position, item)),
            _ => None,
        }));
        visit::visit_block(self, block);
    }
}

#[test]
fn each_departure_from_the_style_is_seen() {
    let found = |text: &str| -> Vec<(usize, String)> {
        wrong_imports(&Source::new("a.rs", text)).into_iter().map(|found| (found.line, found.text)).collect()
    };
    let tidy = "mod child;\n\nuse std::{\n    fmt,\n    fs,\n};\n\nuse bytes::Bytes;\nuse engine::Store;\n\n\
                pub use child::A;\npub use other::B;\n\nuse child::C;\nuse crate::d;\n\
                #[cfg(test)]\nuse crate::e;\n// Why.\nuse super::f;\n\
                fn g() {\n    use std::io;\n    use crate::h;\n}\n";
    assert_eq!(found(tidy), [(22, "no blank line between groups of imports".to_owned())]);
    assert_eq!(
        found("use std::a;\nuse std::b;\n\nuse std::c;\n"),
        [
            (2, "a second `use std` beside line 1".to_owned()),
            (4, "a blank line within a group of imports".to_owned()),
            (4, "a second `use std` beside line 1".to_owned()),
        ]
    );
    assert_eq!(found("use crate::a;\n\nuse std::b;\n"), [(3, "`use std` stands behind `use crate`".to_owned())]);
    assert_eq!(found("use std::a;\npub use crate::b;\n"), [(2, "no blank line between groups of imports".to_owned())]);
    assert_eq!(found("mod m { use std::a; use std::b; }").len(), 1);
}
