//! The text files of the project, and what a rule says of one.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// A text file.
pub(crate) struct Source {
    /// From the root, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// One that a test makes up.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their number, from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(position, line)| (position + 1, line))
    }
}

/// One place where a rule is broken.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Violation {
    pub(crate) path: String,
    /// 0 for the whole file.
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Violation {
    pub(crate) fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.text),
            line => write!(f, "{}:{line}: {}", self.path, self.text),
        }
    }
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// All text files in these entries of the root.
pub(crate) fn read_sources(entries: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for entry in entries {
        collect(&root().join(entry), &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.iter().filter(|source| source.is_rust()).count() > 20, "the source tree was not found");
    found
}

fn collect(path: &Path, found: &mut Vec<Source>) {
    if path.is_dir() {
        if path.ends_with("target") || path.extension().is_some_and(|extension| extension == "etcd") {
            return;
        }
        for entry in fs::read_dir(path).expect("a directory of the project is readable") {
            collect(&entry.expect("its entries too").path(), found);
        }
    } else if let Ok(text) = fs::read_to_string(path) {
        let relative = path.strip_prefix(root()).expect("every path began at the root");
        found.push(Source { path: relative.to_string_lossy().replace('\\', "/"), text });
    }
}

pub(crate) fn assert_none<V: fmt::Display>(rule: &str, violations: &[V]) {
    let lines: Vec<String> = violations.iter().map(V::to_string).collect();
    assert!(lines.is_empty(), "{rule} ({}):\n{}", lines.len(), lines.join("\n"));
}
