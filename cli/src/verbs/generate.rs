//! `wirevault generate`: what a package has beside the program, made of what can be typed.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Arguments, GenerateArgs};
use crate::error::CliError;
use crate::outcome::Outcome;

/// Shells, and where Debian looks for completions.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/wirevault"),
    (Shell::Zsh, "zsh/vendor-completions/_wirevault"),
    (Shell::Fish, "fish/vendor_completions.d/wirevault.fish"),
];

/// Writes a manual page for each verb, and the completions.
pub(crate) fn generate(args: &GenerateArgs) -> Result<Outcome, CliError> {
    let folder = &args.folder;
    let failed = |error: io::Error| CliError::Usage(format!("{}: {error}", folder.display()));
    write(folder).map_err(failed)?;
    Ok(Outcome::Found)
}

fn write(folder: &Path) -> io::Result<()> {
    let pages = folder.join("man/man1");
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(Arguments::command(), &pages)?;
    for (shell, file) in SHELLS {
        let file = folder.join(file);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "wirevault", &mut text);
        fs::write(file, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page_and_each_shell_its_completions() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        let command = Arguments::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = read(&format!("man/man1/wirevault-{}.1", verb.get_name()));
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
        }
        assert!(!folder.path().join("man/man1/wirevault-generate.1").exists());
        for (_, file) in SHELLS {
            assert!(read(file).contains("segments"), "{file}");
        }
    }
}
