//! The Debian package: both programs, the unit, and what belongs to it, from `systemd/`.
//!
//! A package is a folder of files and a few texts about it, which `dpkg-deb` packs; which libraries
//! the programs need, and since when, `dpkg-shlibdeps` knows.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{root, said, workspace};

/// Programs and the packages that build them.
const PROGRAMS: [(&str, &str); 2] =
    [("wirevault", "wirevault-cli"), ("wirevaultd", "wirevault-daemon")];
/// Files of the repository and where they go. `/etc` belongs to the administrator: these files are
/// `conffiles`, which dpkg does not replace when they were changed.
const FILES: &[(&str, &str)] = &[
    ("systemd/wirevaultd.service", "lib/systemd/system/wirevaultd.service"),
    ("systemd/sysusers.conf", "usr/lib/sysusers.d/wirevault.conf"),
    ("systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/wirevault.conf"),
    ("systemd/60-wirevault.rules", "lib/udev/rules.d/60-wirevault.rules"),
    ("systemd/wirevault.yaml", "etc/wirevault/wirevault.yaml"),
    ("systemd/deb/copyright", "usr/share/doc/wirevault/copyright"),
    ("systemd/deb/lintian-overrides", "usr/share/lintian/overrides/wirevault"),
    ("LICENSE-MIT", "usr/share/doc/wirevault/LICENSE-MIT"),
    ("config/examples/full.yaml", "usr/share/doc/wirevault/full.yaml"),
    ("config/examples/prometheus.yml", "usr/share/doc/wirevault/prometheus.yml"),
    ("docs/OPERATIONS.md", "usr/share/doc/wirevault/OPERATIONS.md"),
];
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Longest line of a changelog that lintian likes.
const CHANGELOG_COLUMNS: usize = 80;
const MAINTAINER: &str = "The Wirevault authors <noreply@example.org>";

/// How it is made.
#[derive(Default)]
struct Options {
    /// Folder of programs that are built already, instead of a release build.
    programs: Option<PathBuf>,
    /// Debian's part of the version: counts packages of one version of the programs.
    revision: Option<String>,
    /// Folder for the package.
    out: Option<PathBuf>,
}

/// Makes the package and prints its path.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let options = Options::read(words)?;
    let metadata = workspace()?;
    let target = metadata.target_directory.as_std_path();
    let programs = match options.programs {
        Some(folder) => folder,
        None => {
            let packages = PROGRAMS.iter().flat_map(|(_, package)| ["-p", package]);
            let mut cargo = Command::new("cargo");
            said(cargo.args(["build", "--release", "--quiet"]).args(packages).current_dir(root()))?;
            target.join("release")
        }
    };
    let daemon = metadata.packages.iter().find(|package| package.name.as_str() == PROGRAMS[1].1);
    let version = &daemon.context("the workspace has no daemon")?.version;
    let version = format!("{version}-{}", options.revision.as_deref().unwrap_or("1"));
    let out = options.out.unwrap_or_else(|| target.join("deb"));
    let package = make(&programs, &version, &out)?;
    println!("{}", package.display());
    Ok(true)
}

impl Options {
    fn read(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        for pair in words.chunks(2) {
            let &[name, value] = pair else { bail!("{} needs a value", pair[0]) };
            match name {
                "--programs" => options.programs = Some(PathBuf::from(value)),
                "--revision" => options.revision = Some(value.to_owned()),
                "--out" => options.out = Some(PathBuf::from(value)),
                _ => bail!("deb knows --programs, --revision and --out, not {name}"),
            }
        }
        Ok(options)
    }
}

fn make(programs: &Path, version: &str, out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    // Programs run in other folders.
    let out = out.canonicalize()?;
    let work = out.join("work");
    // What an interrupted run left must not get into the package.
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let files = work.join("files");
    for (from, to) in FILES {
        put(&root().join(from), &files.join(to), 0o644)?;
    }
    let mut installed = Vec::new();
    for (name, package) in PROGRAMS {
        let (from, to) = (programs.join(name), files.join("usr/bin").join(name));
        let way_out = || format!("{} is missing: cargo build -p {package}", from.display());
        ensure!(from.is_file(), way_out());
        put(&from, &to, 0o755)?;
        let mut strip = Command::new("strip");
        strip.args(["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note"]);
        said(strip.arg(&to))?;
        installed.push(to);
    }
    generated(&installed, &files.join("usr/share"))?;
    let changes = files.join("usr/share/doc/wirevault/changelog.Debian");
    fs::write(&changes, changelog(version)?)?;
    compressed(&[changes])?;
    let sums = sums(&files)?;
    let about = files.join("DEBIAN");
    let conffiles = FILES.iter().filter(|(_, to)| to.starts_with("etc/"));
    let conffiles: String = conffiles.map(|(_, to)| format!("/{to}\n")).collect();
    fs::create_dir_all(&about)?;
    fs::write(about.join("conffiles"), conffiles)?;
    fs::write(about.join("md5sums"), sums)?;
    fs::write(about.join("control"), control(version, &libraries(&work, &installed)?)?)?;
    for script in SCRIPTS {
        put(&root().join("systemd/deb").join(script), &about.join(script), 0o755)?;
    }
    let package = out.join(format!("wirevault_{version}_{}.deb", architecture()?));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "-z1", "--build"]).arg(&files).arg(&package);
    said(&mut pack)?;
    fs::remove_dir_all(&work)?;
    Ok(package)
}

/// Manual pages and completions, which the programs write themselves.
fn generated(programs: &[PathBuf], folder: &Path) -> Result<()> {
    for program in programs {
        said(Command::new(program).arg("generate").arg(folder))?;
    }
    for section in ["man1", "man8"] {
        let pages = fs::read_dir(folder.join("man").join(section))?;
        let pages = pages.map(|page| Ok(page?.path())).collect::<Result<Vec<_>>>()?;
        ensure!(!pages.is_empty(), "there is no page in {section}");
        compressed(&pages)?;
    }
    Ok(())
}

/// Without time and name, so that the same programs make the same package.
fn compressed(files: &[PathBuf]) -> Result<()> {
    said(Command::new("gzip").args(["--best", "--no-name"]).args(files))?;
    Ok(())
}

/// What changed, as Debian wants it told: the fragments of `changelog.d`, as of the commit's time.
fn changelog(version: &str) -> Result<String> {
    let folder = fs::read_dir(root().join("changelog.d"))?;
    let mut names = folder.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    names.sort();
    let mut text = format!("wirevault ({version}) unstable; urgency=medium\n\n");
    for name in names {
        let (mut line, fragment) = ("  *".to_owned(), fs::read_to_string(&name)?);
        for word in fragment.split_whitespace() {
            if line.chars().count() + word.chars().count() >= CHANGELOG_COLUMNS {
                text += &line;
                line = "\n   ".to_owned();
            }
            line = format!("{line} {word}");
        }
        text += &format!("{line}\n");
    }
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%cD"]).current_dir(root());
    text += &format!("\n -- {MAINTAINER}  {}\n", said(&mut log)?.trim());
    Ok(text)
}

/// Sums of all files, by which `dpkg --verify` knows whether somebody changed one.
fn sums(files: &Path) -> Result<String> {
    let script = "find . -type f -printf '%P\\0' | sort -z | xargs -0 md5sum";
    said(Command::new("sh").args(["-c", script]).current_dir(files))
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a path within the package")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    Ok(())
}

fn architecture() -> Result<String> {
    Ok(said(Command::new("dpkg").arg("--print-architecture"))?.trim().to_owned())
}

/// What the programs are linked with, as `Depends` wants it.
fn libraries(work: &Path, programs: &[PathBuf]) -> Result<String> {
    // It asks for a source package around it.
    fs::create_dir_all(work.join("debian"))?;
    let control = "Source: wirevault\n\nPackage: wirevault\nArchitecture: any\n";
    fs::write(work.join("debian/control"), control)?;
    let mut command = Command::new("dpkg-shlibdeps");
    let told = said(command.arg("-O").args(programs).current_dir(work))?;
    let depends = told.trim().strip_prefix("shlibs:Depends=");
    depends.map(str::to_owned).with_context(|| format!("dpkg-shlibdeps said {told:?}"))
}

fn control(version: &str, libraries: &str) -> Result<String> {
    let architecture = architecture()?;
    // 252 is Debian 12's: the unit was tried with no older one.
    Ok(format!(
        "Package: wirevault\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: {MAINTAINER}\n\
         Section: net\n\
         Priority: optional\n\
         Homepage: https://github.com/wirevault/wirevault\n\
         Depends: {libraries}, systemd (>= 252)\n\
         Suggests: tcpdump, tshark\n\
         Description: network flight recorder\n \
         Records every packet of a link into a sealed store of bounded size, says what\n \
         was lost and why, and finds any flow again by a tcpdump filter.\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_is_there_and_scripts_are_sound() {
        for (from, to) in FILES {
            assert!(root().join(from).is_file(), "{from}");
            assert!(!to.starts_with('/'), "{to} is within the package");
        }
        for script in SCRIPTS {
            let path = root().join("systemd/deb").join(script);
            let checked = Command::new("sh").arg("-n").arg(&path).status().unwrap();
            assert!(checked.success(), "{script}");
        }
    }

    #[test]
    fn options_are_pairs() {
        let options = Options::read(&["--revision", "2", "--out", "/a"]).unwrap();
        assert_eq!((options.revision.as_deref(), options.programs), (Some("2"), None));
        for wrong in [&["--revision"][..], &["--version", "2"]] {
            assert!(Options::read(wrong).is_err(), "{wrong:?}");
        }
    }
}
