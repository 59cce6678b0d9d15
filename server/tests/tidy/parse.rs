//! One Rust file as the names it defines, the names it imports, and the paths it mentions. Tests in it do not count.
//!
//! Macros are not expanded. Paths among the tokens of a macro's definition or call are found all the same. What
//! is not found: items that a macro defines, and calls of another file's `macro_rules!` without a `use`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{
    Attribute, Expr, Item, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

/// A path as it is written: `a::b::C`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Path {
    /// It begins with `::`.
    pub(crate) is_absolute: bool,
    pub(crate) segments: Vec<String>,
}

/// One name that a `use` brings in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Import {
    pub(crate) path: Path,
    /// The name it has here; `*` for everything that lies in `path`.
    pub(crate) name: String,
    /// Others see it here too: `pub`, and also `pub(crate)` and the like.
    pub(crate) is_public: bool,
    pub(crate) line: usize,
}

/// What one module says, without the modules in it.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// Names that it defines: functions, types, traits, constants, macros.
    pub(crate) items: Vec<String>,
    pub(crate) imports: Vec<Import>,
    /// Imports inside a function. They are seen from anywhere in the module, which is more than Rust allows.
    pub(crate) local_imports: Vec<Import>,
    /// Paths in code, with their lines.
    pub(crate) mentions: Vec<(Path, usize)>,
    /// Names of called methods, with their lines.
    pub(crate) methods: Vec<(String, usize)>,
    pub(crate) children: Vec<Child>,
}

/// A module in a module.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: String,
    /// `None` if it is a file of its own.
    pub(crate) body: Option<Scope>,
}

/// The scope of a whole file.
pub(crate) fn scope_of(path: &str, text: &str) -> Scope {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path} is no Rust: {error}"));
    let mut scope = Scope::default();
    if !is_test_only(&file.attrs) {
        add_items(&file.items, &mut scope);
    }
    scope
}

fn add_items(items: &[Item], scope: &mut Scope) {
    for item in items.iter().filter(|item| !is_test_only(attributes(item))) {
        match item {
            Item::Use(item) => scope.imports.extend(imports_of(item)),
            Item::Mod(module) => {
                let body = module.content.as_ref().map(|(_, items)| {
                    let mut body = Scope::default();
                    add_items(items, &mut body);
                    body
                });
                scope.children.push(Child { name: module.ident.to_string(), body });
            }
            _ => {
                scope.items.extend(name_of(item));
                Reader(scope).visit_item(item);
            }
        }
    }
}

/// The name that an item defines in its module.
pub(crate) fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Mod(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]`, `#[cfg(all(test, ..))]` or `#[test]`.
fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string().replace(' ', "");
            condition == "test" || condition.starts_with("all(test,")
        }
        meta => meta.path().is_ident("test"),
    })
}

/// Every name of a `use`, each on the line where it stands.
fn imports_of(item: &syn::ItemUse) -> Vec<Import> {
    let mut imports = Vec::new();
    let mut prefix = Path { is_absolute: item.leading_colon.is_some(), segments: Vec::new() };
    let is_public = !matches!(item.vis, Visibility::Inherited);
    add_imports(&item.tree, &mut prefix, is_public, &mut imports);
    imports
}

fn add_imports(tree: &UseTree, prefix: &mut Path, is_public: bool, imports: &mut Vec<Import>) {
    let mut add = |prefix: &Path, last: &str, name: String, line| {
        let mut path = prefix.clone();
        if last != "self" || path.segments.is_empty() {
            path.segments.push(last.to_owned());
        }
        let name = if name == "self" { path.segments.last().cloned().unwrap_or_default() } else { name };
        imports.push(Import { path, name, is_public, line });
    };
    match tree {
        UseTree::Path(tree) => {
            prefix.segments.push(tree.ident.to_string());
            add_imports(&tree.tree, prefix, is_public, imports);
            prefix.segments.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(tree, prefix, is_public, imports);
            }
        }
        UseTree::Name(tree) => {
            let name = tree.ident.to_string();
            add(prefix, &name, name.clone(), line_of(&tree.ident));
        }
        UseTree::Rename(tree) => {
            add(prefix, &tree.ident.to_string(), tree.rename.to_string(), line_of(&tree.ident));
        }
        UseTree::Glob(tree) => {
            let line = tree.star_token.spans[0].start().line;
            imports.push(Import { path: prefix.clone(), name: "*".to_owned(), is_public, line });
        }
    }
}

fn line_of(ident: &proc_macro2::Ident) -> usize {
    ident.span().start().line
}

/// Collects what the code of an item mentions.
struct Reader<'a>(&'a mut Scope);

impl Reader<'_> {
    /// A single name counts if it can be told from a variable: a type, a constant, or what is called.
    fn mention(&mut self, path: Path, line: usize, is_called: bool) {
        let is_variable = |name: &str| name.starts_with(|c: char| c.is_lowercase() || c == '_');
        if path.segments.len() > 1 || is_called || !path.segments.iter().any(|name| is_variable(name)) {
            self.0.mentions.push((path, line));
        }
    }

    fn mention_path(&mut self, path: &syn::Path, is_called: bool) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |segment| line_of(&segment.ident));
        self.mention(Path { is_absolute: path.leading_colon.is_some(), segments }, line, is_called);
    }

    /// The tokens of a macro: every path in them, and every name that is called.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let punct = |at: usize| match tokens.get(at) {
            Some(TokenTree::Punct(punct)) => Some(punct.as_char()),
            _ => None,
        };
        let is_colons = |at: usize| punct(at) == Some(':') && punct(at + 1) == Some(':');
        let mut at = 0;
        while at < tokens.len() {
            let first = at;
            at += 1;
            let ident = match &tokens[first] {
                TokenTree::Group(group) => {
                    self.read_tokens(group.stream());
                    continue;
                }
                TokenTree::Ident(ident) => ident,
                _ => continue,
            };
            let mut segments = vec![ident.to_string()];
            while is_colons(at) {
                let Some(TokenTree::Ident(next)) = tokens.get(at + 2) else { break };
                segments.push(next.to_string());
                at += 3;
            }
            let is_called = match tokens.get(at) {
                Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Parenthesis,
                // A macro's call, and not `a != b`.
                Some(TokenTree::Punct(punct)) => {
                    punct.as_char() == '!' && matches!(tokens.get(at + 1), Some(TokenTree::Group(_)))
                }
                _ => false,
            };
            let before = first.checked_sub(1).and_then(punct);
            let is_range = first >= 2 && before == Some('.') && punct(first - 2) == Some('.');
            match before {
                Some('.') if !is_range => {
                    if is_called {
                        self.0.methods.push((ident.to_string(), line_of(ident)));
                    }
                }
                // A lifetime, or what the macro was given.
                Some('\'') => {}
                Some('$') if segments[0] != "crate" => {}
                _ => {
                    let is_absolute = first >= 2 && is_colons(first - 2);
                    self.mention(Path { is_absolute, segments }, line_of(ident), is_called);
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    // `pub(in a::b)` names a place and imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test_only(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test_only(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_test_only(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_test_only(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.0.local_imports.extend(imports_of(item));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.mention_path(path, false);
        visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast syn::ExprCall) {
        if let Expr::Path(function) = &*call.func
            && function.path.segments.len() == 1
        {
            self.mention_path(&function.path, true);
        }
        visit::visit_expr_call(self, call);
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.0.methods.push((call.method.to_string(), line_of(&call.method)));
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.mention_path(&called.path, true);
        self.read_tokens(called.tokens.clone());
    }
}

#[test]
fn a_scope_has_what_a_file_says_and_not_what_its_tests_say() {
    let scope = scope_of(
        "a.rs",
        "use a::{self, b::C as D, e::*};\npub(crate) use ::f::G;\n#[cfg(test)]\nuse t::T;\nmod child;\n\
         #[cfg(test)]\nmod tests { use t::U; }\nfn h(x: &i::J) -> K {\n    use l::M;\n    n(o::P::q(), x, 'v');\n\
         x.r();\n    assert_eq!(s::t(), U, \"{}\", w.y(z(..z::Z)));\n}\npub(in c::d) const AA: u8 = bb;\n\
         impl X { #[cfg(test)] fn f() { t::V } }\n",
    );
    let imports: Vec<_> = scope
        .imports
        .iter()
        .map(|import| (import.path.segments.join("::"), import.name.as_str(), import.is_public, import.line))
        .collect();
    let expected = [
        ("a".to_owned(), "a", false, 1),
        ("a::b::C".to_owned(), "D", false, 1),
        ("a::e".to_owned(), "*", false, 1),
        ("f::G".to_owned(), "G", true, 2),
    ];
    assert_eq!(imports, expected);
    assert!(scope.imports[3].path.is_absolute && !scope.imports[0].path.is_absolute);
    assert_eq!(scope.local_imports[0].path.segments, ["l", "M"]);
    let mut mentions: Vec<_> = scope.mentions.iter().map(|(path, line)| (path.segments.join("::"), *line)).collect();
    mentions.sort();
    let expected = [
        ("K", 8),
        ("U", 12),
        ("X", 15),
        ("assert_eq", 12),
        ("i::J", 8),
        ("n", 10),
        ("o::P::q", 10),
        ("s::t", 12),
        ("z", 12),
        ("z::Z", 12),
    ];
    assert_eq!(mentions, expected.map(|(name, line)| (name.to_owned(), line)));
    assert_eq!(scope.methods, [("r".to_owned(), 11), ("y".to_owned(), 12)]);
    assert_eq!(scope.children.iter().map(|child| child.name.as_str()).collect::<Vec<_>>(), ["child"]);
    assert_eq!(scope.items, ["h", "AA"]);
}
