//! Which Rust files the compiler ever sees: those of the targets, and the modules they declare.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::Metadata;

/// All files reached from the targets of the workspace.
pub(crate) fn reached(metadata: &Metadata) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<Module> = metadata
        .workspace_packages()
        .iter()
        .flat_map(|package| &package.targets)
        .map(|target| Module::root(target.src_path.as_std_path()))
        .collect();
    while let Some(module) = open.pop() {
        if let Ok(text) = fs::read_to_string(&module.file)
            && reached.insert(module.file.clone())
        {
            open.extend(module.declared(&text));
        }
    }
    reached
}

/// A source file and the folder where its modules are looked for.
struct Module {
    file: PathBuf,
    folder: PathBuf,
}

impl Module {
    /// A target's root file: its modules lie beside it.
    fn root(file: &Path) -> Self {
        Self { file: file.to_owned(), folder: parent(file) }
    }

    /// Modules and included files that the text names. Modules declared within an inline module
    /// are not looked for: the house keeps inline modules for tests.
    fn declared(&self, text: &str) -> Vec<Self> {
        let mut found = Vec::new();
        let mut path_attribute = None;
        for line in text.lines().map(str::trim) {
            if let Some(path) = between(line, "#[path = \"", "\"]") {
                path_attribute = Some(parent(&self.file).join(path));
            } else if let Some(name) = declaration(line) {
                match path_attribute.take() {
                    Some(file) => found.push(Self::root(&file)),
                    None => {
                        let beside = self.folder.join(format!("{name}.rs"));
                        let inside = self.folder.join(name);
                        found.push(Self { file: beside, folder: inside.clone() });
                        found.push(Self { file: inside.join("mod.rs"), folder: inside });
                    }
                }
            } else if let Some(path) = between(line, "include!(\"", "\")") {
                found.push(Self::root(&parent(&self.file).join(path)));
            }
        }
        found
    }
}

/// The name in `mod name;`, whatever its visibility.
fn declaration(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
        Some(rest) => rest.trim_start(),
        None => line,
    };
    let name = line.strip_prefix("mod ")?.split_once(';')?.0.trim();
    name.chars().all(|letter| letter.is_alphanumeric() || letter == '_').then_some(name)
}

fn between<'a>(line: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(line.split_once(before)?.1.split_once(after)?.0)
}

fn parent(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_told_from_other_lines() {
        assert_eq!(declaration("mod a;"), Some("a"));
        assert_eq!(declaration("pub mod b_2; // why"), Some("b_2"));
        assert_eq!(declaration("pub(crate) mod c;"), Some("c"));
        assert_eq!(declaration("pub(in crate::x) mod d;"), Some("d"));
        assert_eq!(declaration("mod tests {"), None);
        assert_eq!(declaration("let x = modulus;"), None);
    }

    #[test]
    fn modules_lie_beside_the_root_and_inside_other_files() {
        let root = Module::root(Path::new("/w/src/lib.rs"));
        let text = "mod a;\n#[path = \"odd/place.rs\"]\nmod b;\n";
        let files: Vec<_> = root.declared(text).into_iter().map(|module| module.file).collect();
        let expected = ["/w/src/a.rs", "/w/src/a/mod.rs", "/w/src/odd/place.rs"];
        assert_eq!(files, expected.map(PathBuf::from));
        let inner = Module { file: "/w/src/a.rs".into(), folder: "/w/src/a".into() };
        assert_eq!(inner.declared("mod c;")[0].file, PathBuf::from("/w/src/a/c.rs"));
    }
}
