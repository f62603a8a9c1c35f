//! Debian packages, unpacked beside the system instead of installed into it.
//!
//! QEMU is taken from backports where the mirror has them: `apt-get install` of it would replace
//! tools of the system, so apt works on lists and an archive folder of its own, and `dpkg -x`
//! unpacks into a prefix.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cache;

/// Kernel with nvme and ext4 built in, and no driver for hardware: it boots fastest.
const KERNEL: (&str, &str) = ("linux-image-6.12.", "-cloud-amd64");
const QEMU: &str = "qemu-system-x86";
/// What the guest has beside programs of this system.
const GUEST: &[&str] = &["busybox-static", "nvme-cli"];

/// Unpacked packages.
#[derive(Debug, Clone)]
pub struct Packages {
    root: PathBuf,
    versions: String,
}

impl Packages {
    /// From the cache, or from the mirror.
    ///
    /// # Panics
    /// If the mirror does not give them.
    pub fn get() -> Self {
        let name = format!("packages-{}", cache::key(&[&GUEST.concat(), KERNEL.0, KERNEL.1, QEMU]));
        let folder = cache::made(&cache::root(), &name, fetch);
        let versions = fs::read_to_string(folder.join("versions")).expect("list of versions");
        Self { root: folder.join("root"), versions }
    }

    /// Names and versions, a line each.
    pub fn versions(&self) -> &str {
        &self.versions
    }

    /// A file of a package.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Folders with libraries.
    pub fn libraries(&self) -> String {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        folders.map(|folder| self.root.join(folder).display().to_string()).join(":")
    }

    /// `boot/vmlinuz-VERSION` of the kernel.
    pub fn kernel(&self) -> PathBuf {
        let boot = fs::read_dir(self.root.join("boot")).expect("boot folder");
        let names = boot.map(|entry| entry.expect("entry").path());
        let is_kernel = |path: &PathBuf| path.to_string_lossy().contains("/vmlinuz-");
        names.into_iter().find(is_kernel).expect("the kernel's package holds a kernel")
    }

    /// Folder of the kernel's modules.
    pub fn modules(&self) -> PathBuf {
        let within = [self.root.join("lib/modules"), self.root.join("usr/lib/modules")];
        let folder = within.iter().find(|folder| folder.is_dir()).expect("modules");
        let mut versions = fs::read_dir(folder).expect("modules");
        versions.next().expect("modules of one kernel").expect("entry").path()
    }
}

/// Folder with the files of one package, without what it depends on, from the cache or the mirror.
///
/// # Panics
/// If the mirror does not give it.
pub fn unpacked(package: &str) -> PathBuf {
    let folder = cache::made(&cache::root(), &format!("package-{package}"), |folder| {
        let apt = Apt::new(folder);
        apt.update();
        fs::rename(apt.unpacked(package), folder.join("root")).expect("the package's files");
        apt.remove();
    });
    folder.join("root")
}

fn fetch(folder: &Path) {
    let apt = Apt::new(folder);
    let backports = apt.update();
    let mut qemu = vec!["--no-install-recommends", "--reinstall", "--download-only", "-y"];
    if let Some(suite) = &backports {
        qemu.extend(["-t", suite]);
    }
    // Libraries that this system has are not fetched: QEMU and the guest use them as they are.
    apt.run("install", &[&qemu[..], &[QEMU]].concat());
    let guest = ["--no-install-recommends", "--reinstall", "--download-only", "-y"];
    apt.run("install", &[&guest[..], GUEST].concat());
    // Of the kernel nothing but its own package is wanted.
    let archives = apt.folder.join("archives");
    succeed(apt.command("download", &[&apt.kernel()]).current_dir(&archives));
    let root = folder.join("root");
    fs::create_dir(&root).expect("folder");
    let mut versions = Vec::new();
    for entry in fs::read_dir(&archives).expect("archives") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            succeed(Command::new("dpkg").arg("-x").arg(&path).arg(&root));
            versions.push(path.file_name().expect("name").to_string_lossy().into_owned());
        }
    }
    versions.sort();
    fs::write(folder.join("versions"), versions.join("\n")).expect("list of versions");
    apt.remove();
}

/// apt with lists and archives of its own, and the mirror of this machine.
pub(super) struct Apt {
    folder: PathBuf,
    codename: String,
    /// Lines of a sources.list.
    sources: Vec<String>,
}

impl Apt {
    /// Keeps its files in a folder within this one.
    pub(super) fn new(within: &Path) -> Self {
        let folder = within.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part)).expect("apt's folder");
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.expect("Debian's name in /etc/os-release").to_owned();
        let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
        let targets = succeed(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
        ]));
        let ours = |line: &&str| {
            let mut words = line.split(' ').skip(1);
            words.next().is_some_and(|suite| suite.starts_with(&codename))
                && words.next() == Some("main")
        };
        let sources: Vec<_> =
            targets.lines().filter(ours).map(|line| format!("deb {line}")).collect();
        assert!(
            !sources.is_empty(),
            "apt knows no mirror of {codename}, component main; the sources of apt need one"
        );
        Self { folder, codename, sources }
    }

    /// Fetches the lists; gives the name of the backports if the mirror has them.
    pub(super) fn update(&self) -> Option<String> {
        let plain = format!(" {} main", self.codename);
        let base = self.sources.iter().find(|line| line.ends_with(&plain));
        let suite = format!("{}-backports", self.codename);
        if let Some(base) = base {
            let mut sources = self.sources.clone();
            sources.push(base.replace(&plain, &format!(" {suite} main")));
            self.write_sources(&sources);
            match self.command("update", &["-q"]).output() {
                Ok(output) if output.status.success() => return Some(suite),
                _ => eprintln!("the mirror has no {suite}; QEMU is taken from {}", self.codename),
            }
        }
        self.write_sources(&self.sources);
        self.run("update", &["-q"]);
        None
    }

    /// Debian's name for this release.
    pub(super) fn codename(&self) -> &str {
        &self.codename
    }

    /// Lines of a list of sources, without backports.
    pub(super) fn sources(&self) -> &[String] {
        &self.sources
    }

    /// Folder with the files of one package, without what it depends on.
    pub(super) fn unpacked(&self, package: &str) -> PathBuf {
        let folder = self.folder.join(package);
        fs::create_dir(&folder).expect("folder");
        succeed(self.command("download", &[package]).current_dir(&folder));
        let file = fs::read_dir(&folder).expect("folder").next().expect("a package");
        succeed(Command::new("dpkg").arg("-x").arg(file.expect("entry").path()).arg(&folder));
        folder
    }

    /// Ends it, with its files.
    pub(super) fn remove(self) {
        fs::remove_dir_all(&self.folder).expect("apt's folder");
    }

    fn write_sources(&self, sources: &[String]) {
        let text = sources.join("\n") + "\n";
        fs::write(self.folder.join("sources.list"), text).expect("list of sources");
    }

    /// Name of the newest kernel.
    fn kernel(&self) -> String {
        let mut command = self.base("apt-cache");
        let names = succeed(command.args(["pkgnames", KERNEL.0]));
        let patch = |name: &str| -> Option<u32> {
            let version = name.strip_prefix(KERNEL.0)?.strip_suffix(KERNEL.1)?;
            version.split_once('+')?.0.parse().ok()
        };
        let newest = names.lines().filter_map(|name| Some((patch(name)?, name))).max();
        let (_, name) = newest.unwrap_or_else(|| {
            panic!(
                "the mirror has no {}*{}: is {}-security among the sources of apt?",
                KERNEL.0, KERNEL.1, self.codename
            )
        });
        name.to_owned()
    }

    fn run(&self, verb: &str, arguments: &[&str]) {
        succeed(&mut self.command(verb, arguments));
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.base("apt-get");
        command.arg(verb).args(arguments);
        command
    }

    fn base(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("")),
            format!("Dir::Cache::archives={}", at("archives")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            // Nothing of the system is changed, so nothing of it need be locked.
            "Debug::NoLocking=true".to_owned(),
        ];
        options.iter().for_each(|option| _ = command.arg("-o").arg(option));
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// Runs a command; gives what it printed.
///
/// # Panics
/// If it fails.
pub(super) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
