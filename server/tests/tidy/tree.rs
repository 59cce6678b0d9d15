//! The modules of our crates, and what a path means in one of them: imports, re-exports and globs are followed to the
//! file that defines what is named.
//!
//! Invariants: a module belongs to one file, a file may have several; modules for tests alone are not in the tree.
//!
//! What it does not do: it does not look into types. `A::f` stands where `A` is defined, in whatever file its `impl`
//! lies; and a name that a module seems not to have is taken as defined there by a macro.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    parse::{Import, Path, Scope, scope_of},
    source::Source,
};

/// Place of a module in `Tree::modules`.
pub(crate) type ModuleId = usize;

pub(crate) struct Module {
    /// The file that it stands in, from the root of the project.
    pub(crate) file: String,
    /// The crate, by its folder.
    pub(crate) package: String,
    pub(crate) parent: Option<ModuleId>,
    pub(crate) scope: Scope,
    children: BTreeMap<String, ModuleId>,
}

/// What a path means.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Target {
    /// Something defined in this module.
    Item(ModuleId),
    /// A module itself.
    Module(ModuleId),
    /// Something of a crate that is not ours, by its whole path; also what is not known at all: `Vec`, `T::new`.
    Foreign(Vec<String>),
}

#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) modules: Vec<Module>,
    /// The libraries among our crates, by name.
    libraries: BTreeMap<String, ModuleId>,
}

/// The imports that are being resolved, by module and position: an import never explains itself.
type Open = BTreeSet<(ModuleId, usize)>;

impl Tree {
    /// Reads the crates with these names: `NAME/src/lib.rs` and `NAME/src/main.rs`, and the modules below them.
    pub(crate) fn read(packages: &[&str], sources: &[Source]) -> Self {
        let files: BTreeMap<&str, &str> =
            sources.iter().map(|source| (source.path.as_str(), source.text.as_str())).collect();
        let mut tree = Self::default();
        for package in packages {
            for root in ["lib.rs", "main.rs"] {
                let path = format!("{package}/src/{root}");
                if let Some(text) = files.get(path.as_str()) {
                    let folder = format!("{package}/src/");
                    let scope = scope_of(&path, text);
                    let module = Module {
                        file: path,
                        package: (*package).to_owned(),
                        parent: None,
                        scope,
                        children: BTreeMap::new(),
                    };
                    let id = tree.add(module, &folder, &files);
                    if root == "lib.rs" {
                        tree.libraries.insert((*package).to_owned(), id);
                    }
                }
            }
        }
        tree
    }

    /// Adds a module and those in it, of which those with files of their own lie in `folder`.
    fn add(&mut self, mut module: Module, folder: &str, files: &BTreeMap<&str, &str>) -> ModuleId {
        let id = self.modules.len();
        let children = std::mem::take(&mut module.scope.children);
        let (file, package) = (module.file.clone(), module.package.clone());
        self.modules.push(module);
        for child in children {
            let below = format!("{folder}{}/", child.name);
            let (file, scope) = match child.body {
                Some(scope) => (file.clone(), scope),
                None => {
                    let candidates = [format!("{folder}{}.rs", child.name), format!("{below}mod.rs")];
                    let Some(path) = candidates.into_iter().find(|path| files.contains_key(path.as_str())) else {
                        panic!("{file} declares `mod {};`, which has no file", child.name);
                    };
                    let scope = scope_of(&path, files[path.as_str()]);
                    (path, scope)
                }
            };
            let module = Module { file, package: package.clone(), parent: Some(id), scope, children: BTreeMap::new() };
            let child_id = self.add(module, &below, files);
            self.modules[id].children.insert(child.name, child_id);
        }
        id
    }

    /// What a path in this module means; several things where one name is a module and a function, say.
    pub(crate) fn resolve(&self, module: ModuleId, path: &Path) -> BTreeSet<Target> {
        self.resolve_in(module, path, &mut Open::new())
    }

    /// Whether `inner` is `outer` or lies in it.
    pub(crate) fn is_within(&self, inner: ModuleId, outer: ModuleId) -> bool {
        let mut at = Some(inner);
        while let Some(module) = at {
            if module == outer {
                return true;
            }
            at = self.modules[module].parent;
        }
        false
    }

    fn resolve_in(&self, module: ModuleId, path: &Path, open: &mut Open) -> BTreeSet<Target> {
        let Some((first, rest)) = path.segments.split_first() else { return BTreeSet::new() };
        let start = match first.as_str() {
            _ if path.is_absolute => BTreeSet::from([self.crate_named(first)]),
            "crate" => BTreeSet::from([Target::Module(self.root_of(module))]),
            "self" => BTreeSet::from([Target::Module(module)]),
            "super" => self.modules[module].parent.map(Target::Module).into_iter().collect(),
            "Self" => BTreeSet::new(),
            name => {
                let found = self.look_up(module, name, true, open);
                if found.is_empty() { BTreeSet::from([self.crate_named(name)]) } else { found }
            }
        };
        rest.iter().fold(start, |targets, name| self.step(&targets, name, open))
    }

    fn root_of(&self, module: ModuleId) -> ModuleId {
        self.modules[module].parent.map_or(module, |parent| self.root_of(parent))
    }

    fn crate_named(&self, name: &str) -> Target {
        self.libraries
            .get(name)
            .map_or_else(|| Target::Foreign(vec![name.to_owned()]), |library| Target::Module(*library))
    }

    /// From what the path means so far to what it means with one more name.
    fn step(&self, targets: &BTreeSet<Target>, name: &str, open: &mut Open) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        let mut is_item = false;
        for target in targets {
            match target {
                Target::Module(module) if name == "super" => {
                    found.extend(self.modules[*module].parent.map(Target::Module));
                }
                Target::Module(module) => found.extend(self.look_up(*module, name, false, open)),
                Target::Item(_) => is_item = true,
                Target::Foreign(path) => {
                    found.insert(Target::Foreign(
                        path.iter().map(String::as_str).chain([name]).map(str::to_owned).collect(),
                    ));
                }
            }
        }
        if !found.is_empty() {
            return found;
        }
        if is_item {
            // What a type has, or a variant.
            return targets.iter().filter(|target| matches!(target, Target::Item(_))).cloned().collect();
        }
        let made_by_macro = |target: &Target| match target {
            Target::Module(module) => Some(Target::Item(*module)),
            _ => None,
        };
        targets.iter().filter_map(made_by_macro).collect()
    }

    /// What a module has under this name. An import by a glob counts only where nothing else has the name, as in Rust.
    fn look_up(&self, module: ModuleId, name: &str, is_own: bool, open: &mut Open) -> BTreeSet<Target> {
        let Module { scope, children, .. } = &self.modules[module];
        let mut found = BTreeSet::new();
        if scope.items.iter().any(|item| item == name) {
            found.insert(Target::Item(module));
        }
        found.extend(children.get(name).map(|child| Target::Module(*child)));
        let locals: &[Import] = if is_own { &scope.local_imports } else { &[] };
        let imports: Vec<(usize, &Import)> = scope.imports.iter().chain(locals).enumerate().collect();
        for (position, import) in imports.iter().filter(|(_, import)| import.name == name) {
            if open.insert((module, *position)) {
                found.extend(self.resolve_in(module, &import.path, open));
                open.remove(&(module, *position));
            }
        }
        if !found.is_empty() {
            return found;
        }
        for (position, import) in imports.iter().filter(|(_, import)| import.name == "*") {
            if open.insert((module, *position)) {
                for target in self.resolve_in(module, &import.path, open) {
                    if let Target::Module(source) = target {
                        found.extend(self.look_up(source, name, false, open));
                    }
                }
                open.remove(&(module, *position));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(sources: &[(&str, &str)]) -> Tree {
        let sources: Vec<Source> = sources.iter().map(|(path, text)| Source::new(path, text)).collect();
        Tree::read(&["a", "b"], &sources)
    }

    /// What the path means in the file: `file` of an item, `mod file` of a module, the path of what is not ours.
    fn meaning(tree: &Tree, file: &str, path: &str) -> Vec<String> {
        let module = tree.modules.iter().position(|module| module.file == file).expect("the file is in the tree");
        let is_absolute = path.starts_with("::");
        let segments = path.trim_start_matches("::").split("::").map(str::to_owned).collect();
        tree.resolve(module, &Path { is_absolute, segments })
            .into_iter()
            .map(|target| match target {
                Target::Item(module) => tree.modules[module].file.clone(),
                Target::Module(module) => format!("mod {}", tree.modules[module].file),
                Target::Foreign(path) => path.join("::"),
            })
            .collect()
    }

    #[test]
    fn a_path_leads_through_re_exports_to_the_file_that_defines_it() {
        let tree = tree(&[
            (
                "a/src/lib.rs",
                "mod page; pub mod disk; mod user; pub use page::{Fault, Place as Spot}; pub use disk::*;",
            ),
            (
                "a/src/page.rs",
                "pub struct Fault; pub enum Place { One } use std::net::TcpStream as Socket; pub use Place as Again;",
            ),
            (
                "a/src/disk/mod.rs",
                "mod file; mod open; pub use self::{file::*, open::open}; pub const BLOCK: u8 = 1; kinds! {}",
            ),
            ("a/src/disk/file.rs", "pub struct File; use super::*;"),
            ("a/src/disk/open.rs", "pub fn open() {}"),
            ("a/src/user.rs", "use std::net; use crate::disk; mod within { pub struct Deep; }"),
            ("b/src/main.rs", "use a::Spot;"),
        ]);
        let is = |file: &str, path: &str, expected: &[&str]| {
            assert_eq!(meaning(&tree, file, path), expected, "{path} in {file}")
        };
        is("a/src/user.rs", "crate::Fault", &["a/src/page.rs"]);
        is("a/src/user.rs", "super::Spot::One", &["a/src/page.rs"]);
        is("a/src/user.rs", "crate::page::Again", &["a/src/page.rs"]);
        is("a/src/user.rs", "crate::File", &["a/src/disk/file.rs"]);
        is("a/src/user.rs", "disk::File::new", &["a/src/disk/file.rs"]);
        is("a/src/user.rs", "disk::BLOCK", &["a/src/disk/mod.rs"]);
        // A name may mean a module and a function: both count where the path ends there.
        is("a/src/user.rs", "disk::open", &["a/src/disk/open.rs", "mod a/src/disk/open.rs"]);
        is("a/src/user.rs", "disk::open::open", &["a/src/disk/open.rs"]);
        // Made by a macro, for all that is known.
        is("a/src/user.rs", "disk::Kind", &["a/src/disk/mod.rs"]);
        is("a/src/user.rs", "within::Deep", &["a/src/user.rs"]);
        is("a/src/user.rs", "net::UdpSocket", &["std::net::UdpSocket"]);
        is("a/src/user.rs", "Vec::new", &["Vec::new"]);
        is("a/src/page.rs", "Socket::connect", &["std::net::TcpStream::connect"]);
        is("a/src/disk/file.rs", "open", &["a/src/disk/open.rs", "mod a/src/disk/open.rs"]);
        is("a/src/disk/file.rs", "BLOCK", &["a/src/disk/mod.rs"]);
        is("a/src/disk/file.rs", "super::super::user", &["mod a/src/user.rs"]);
        is("b/src/main.rs", "Spot", &["a/src/page.rs"]);
        is("b/src/main.rs", "::a::disk::File", &["a/src/disk/file.rs"]);
    }

    #[test]
    fn modules_for_tests_are_not_in_the_tree() {
        let tree = tree(&[("a/src/lib.rs", "#[cfg(test)] mod tests; mod real;"), ("a/src/real.rs", "")]);
        assert_eq!(tree.modules.len(), 2);
        assert!(tree.is_within(1, 0) && !tree.is_within(0, 1));
    }
}
