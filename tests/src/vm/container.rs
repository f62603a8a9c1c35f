//! A minimal Debian with systemd, in a container: for what is installed and started there.
//!
//! A container boots in two seconds where an emulated machine takes twenty, and its systemd is as
//! real. The kernel is this system's: what needs another one, or devices, is for [`super::Vm`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;
use tempfile::TempDir;
use wirevault_testkit::net::wait_for;

use super::cache;
use super::machine::{Answer, PATIENCE};
use super::packages::{Apt, succeed};

const START: &str = include_str!("../../vm/container");
/// What it has beside the least that is Debian.
const INCLUDE: &str = "systemd-sysv,systemd-container,libpcap0.8,iproute2";

/// A container that has booted. Dropping it ends it.
pub struct Container {
    start: Child,
    /// Its first process, as this system numbers it.
    first: Pid,
    machine: String,
    folder: TempDir,
}

impl Container {
    /// Boots one that sees this folder as `/packages`.
    ///
    /// # Panics
    /// If it does not boot.
    pub fn boot(packages: &Path) -> Self {
        let root = minimal_debian();
        let folder = tempfile::tempdir().expect("folder");
        let machine = format!("wirevault-{}", std::process::id());
        let shared = folder.path().join("shared");
        fs::create_dir(&shared).expect("folder");
        let console = File::create(folder.path().join("console")).expect("console");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--cgroup", "sh", "-c", START, "sh"]);
        command.arg(root).arg(&shared).arg(&machine).arg(packages).stdin(Stdio::null());
        command.stdout(console.try_clone().expect("console")).stderr(console);
        let mut start = command.spawn().expect("unshare");
        let console = || fs::read_to_string(folder.path().join("console")).unwrap_or_default();
        let first = wait_for("the first process of a container", PATIENCE, || {
            let ended = start.try_wait().expect("wait");
            assert!(ended.is_none(), "no container here, {ended:?}:\n{}", console());
            first_process(start.id())
        });
        let container = Self { start, first, machine, folder };
        wait_for("the end of the boot", PATIENCE, || {
            let state = container.run("systemctl is-system-running");
            ["running", "degraded"].contains(&state.text.trim()).then_some(())
        });
        container
    }

    /// Runs a command of the shell in it.
    pub fn run(&self, command: &str) -> Answer {
        let first = self.first.to_string();
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &first, "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]);
        enter.args(["--wd", "/bin/bash", "-c", command]).stdin(Stdio::null());
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        enter.env_clear().env("PATH", path).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        let output = enter.output().expect("nsenter");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Answer { code: output.status.code().unwrap_or(-1), text }
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn ok(&self, command: &str) -> String {
        let answer = self.run(command);
        assert_eq!(answer.code, 0, "{command}\n{}", answer.text);
        answer.text
    }

    /// Thread of this name in the main process of a service, as this system numbers it.
    pub fn thread(&self, service: &str, name: &str) -> Pid {
        let main = self.ok(&format!("systemctl show --property=MainPID --value {service}"));
        let inside = |folder: &Path, number: &str| {
            let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|all| all.split_whitespace().skip(1).last() == Some(number))
        };
        let groups = format!("/{}/", self.machine);
        let ours = |folder: &PathBuf| {
            let groups_of = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
            groups_of.contains(&groups) && inside(folder, main.trim())
        };
        let process = entries(Path::new("/proc")).into_iter().find(ours);
        let process = process.unwrap_or_else(|| panic!("{service} has no process"));
        let named = |folder: &PathBuf| {
            fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let thread = entries(&process.join("task")).into_iter().find(named);
        number(&thread.unwrap_or_else(|| panic!("{service} has no thread {name}")))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = fs::read_to_string(self.folder.path().join("console"));
            eprintln!("console:\n{}", console.unwrap_or_default());
            eprintln!("{}", self.run("journalctl --no-pager --boot --lines=200").text);
        }
        // Everything in it ends with its first process.
        let _ = nix::sys::signal::kill(self.first, nix::sys::signal::Signal::SIGKILL);
        let _ = self.start.wait();
        remove_groups(&self.machine, &self.folder.path().join("groups"));
    }
}

/// The control groups of a container outlive it, until somebody removes them.
fn remove_groups(machine: &str, at: &Path) {
    let script = "mount -t cgroup2 cgroup2 \"$1\" && \
                  find \"$1\" -depth -type d -path \"*/$2*\" -exec rmdir {} +";
    let _ = fs::create_dir(at);
    let mut remove = Command::new("unshare");
    let _ = remove.args(["--mount", "sh", "-c", script, "sh"]).arg(at).arg(machine).status();
}

/// The child of systemd-nspawn, which is what the command of this number has become.
fn first_process(start: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{start}/task/{start}/children")).ok()?;
    let first = children.split_whitespace().find(|child| {
        fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|it| it.trim() == "systemd")
    });
    first?.parse().ok().map(Pid::from_raw)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).collect()
}

fn number(folder: &Path) -> Pid {
    let name = folder.file_name().and_then(|name| name.to_str()).expect("a number");
    Pid::from_raw(name.parse().expect("a number"))
}

/// Folder of a minimal Debian, from the cache or made from the mirror.
fn minimal_debian() -> PathBuf {
    let name = format!("debian-{}", cache::key(&[INCLUDE]));
    let folder = cache::made(&cache::root(), &name, |folder| {
        let apt = Apt::new(folder);
        apt.update();
        let tool = apt.unpacked("mmdebstrap");
        let mut make = Command::new("perl");
        make.arg(tool.join("usr/bin/mmdebstrap")).args(["--variant=minbase", "--mode=root"]);
        make.arg(format!("--include={INCLUDE}")).args(["--dpkgopt=force-unsafe-io", "--quiet"]);
        make.arg("--aptopt=APT::Sandbox::User \"root\"").stdin(Stdio::null());
        make.arg(apt.codename()).arg(folder.join("root")).args(apt.sources());
        succeed(&mut make);
        apt.remove();
    });
    folder.join("root")
}
