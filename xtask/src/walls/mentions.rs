//! What a source file mentions: every path in imports, types, expressions, attributes and macro calls, resolved as far
//! as the file itself tells.

use std::collections::HashMap;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, File, ItemExternCrate, ItemMod, ItemUse, Macro, UseTree};

/// A path as the file means it: `crate::room::Item` for this crate's own, `krate::module::Item` for another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mention {
    pub(super) path: Vec<String>,
    pub(super) line: usize,
    /// The path was imported by `*`, so it stands for everything beneath it.
    pub(super) is_glob: bool,
}

/// All mentions in the file that stands at `modules` in its crate.
pub(super) fn of(file: &File, modules: &[String]) -> Vec<Mention> {
    let mut imports = Collector::new(modules);
    imports.only_imports = true;
    imports.visit_file(file);
    // Imports may follow their use, so all of them are known before any path is resolved. A name that two modules of
    // a file import differently stands for both.
    let mut all = Collector::new(modules);
    all.imported = imports.imported;
    all.visit_file(file);
    all.found
}

struct Collector {
    modules: Vec<String>,
    imported: HashMap<String, Vec<Vec<String>>>,
    found: Vec<Mention>,
    only_imports: bool,
}

impl Collector {
    fn new(modules: &[String]) -> Self {
        Self { modules: modules.to_vec(), imported: HashMap::new(), found: Vec::new(), only_imports: false }
    }

    /// Replaces `crate`, `self` and `super` by where they lead.
    fn absolute(&self, path: &[String]) -> Vec<String> {
        let mut base = self.modules.clone();
        let mut rest = path;
        let mut relative = false;
        while let Some((first, tail)) = rest.split_first() {
            match first.as_str() {
                "crate" | "$crate" => base.clear(),
                "self" => {}
                "super" => {
                    base.pop();
                }
                _ => break,
            }
            relative = true;
            rest = tail;
        }
        // The binary of the agent's package calls its own library by this name.
        if !relative && path.first().is_some_and(|first| first == "portcullis") {
            (relative, rest) = (true, path.get(1..).unwrap_or_default());
            base.clear();
        }
        let mut absolute = Vec::with_capacity(base.len() + rest.len() + 1);
        if relative {
            absolute.push("crate".to_owned());
            absolute.append(&mut base);
        }
        absolute.extend_from_slice(rest);
        absolute
    }

    fn add(&mut self, path: &[String], line: usize, is_glob: bool) {
        if !self.only_imports {
            let path = self.absolute(path);
            self.found.push(Mention { path, line, is_glob });
        }
    }

    /// A path outside imports. Its first name may be an imported one; alone, it may as well be a variable, and the
    /// import it may come from is a mention itself.
    fn add_path(&mut self, path: &[String], line: usize) {
        let (Some(first), true) = (path.first(), path.len() > 1) else {
            return;
        };
        let rest = path.get(1..).unwrap_or_default();
        for start in self.imported.get(first).cloned().unwrap_or_default() {
            self.add(&[start.as_slice(), rest].concat(), line, false);
        }
        self.add(path, line, false);
    }

    fn add_import(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_import(&with(&path.ident), &path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_import(prefix, tree)),
            UseTree::Glob(glob) => self.add(prefix, glob.star_token.spans[0].start().line, true),
            UseTree::Name(name) => self.import(prefix, &name.ident, &name.ident),
            UseTree::Rename(rename) => self.import(prefix, &rename.ident, &rename.rename),
        }
    }

    fn import(&mut self, prefix: &[String], name: &syn::Ident, alias: &syn::Ident) {
        // `use std::time::{self}` imports `time` itself.
        let (path, alias) = if name == "self" && !prefix.is_empty() {
            let last = prefix.last().cloned().unwrap_or_default();
            (prefix.to_vec(), if alias == "self" { last } else { alias.to_string() })
        } else {
            ([prefix, &[name.to_string()]].concat(), alias.to_string())
        };
        self.add(&path, name.span().start().line, false);
        if self.only_imports && path.as_slice() != [alias.clone()] {
            let path = self.absolute(&path);
            self.imported.entry(alias).or_default().push(path);
        }
    }

    /// Finds paths in tokens that nothing parses: the arguments of macros and attributes.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.add_path(&path, line);
                        path.clear();
                        line = name.span().start().line;
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                other => {
                    self.add_path(&path, line);
                    path.clear();
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.add_group(&group);
                    }
                }
            }
        }
        self.add_path(&path, line);
    }

    fn add_group(&mut self, group: &proc_macro2::Group) {
        // A block in a macro's arguments may hold statements with imports.
        if group.delimiter() == Delimiter::Brace
            && let Ok(items) = syn::parse2::<File>(group.stream())
        {
            self.visit_file(&items);
            return;
        }
        self.add_tokens(group.stream());
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_import(&[], &item.tree);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        let alias = item.rename.as_ref().map_or(&item.ident, |(_, alias)| alias);
        self.import(&[], &item.ident, alias);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.modules.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.modules.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let line = path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        self.add_path(&names, line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        self.visit_path(attribute.path());
        if let syn::Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
    }
}
