//! Files that the recorder may still open, by Landlock.
//!
//! A rule is about a folder and all beneath it, as it is when the rule is made: a file that is put
//! into its place later is covered, another file system that is mounted *over* the folder is not.
//! What is open already stays open.
//!
//! Source: Linux, Documentation/userspace-api/landlock.rst.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, path_beneath_rules,
};
use wirevault_config::{Config, Input};
use wirevault_lifecycle::audit;
use wirevault_media::notes::NOTES;

use crate::folders;

/// Rights that rules are about: those that there were when this was written. An older kernel knows
/// fewer and enforces these.
const KNOWN: ABI = ABI::V5;
/// What says how the machine is, who its users are, and how names and times are found; libraries
/// that the resolver loads.
const MACHINE: [&str; 10] =
    ["/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/run/systemd", "/run/udev", NOTES];
/// Where devices are handed over by the kernel and back.
const HANDING_OVER: [&str; 3] = ["/sys/bus/pci", "/sys/devices", NOTES];
/// Files that programs of AWS look for credentials in, by the variable that names them.
const CREDENTIALS: [&str; 5] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CA_BUNDLE",
];

/// Folders, and files that stand for themselves.
#[derive(Debug, Default)]
pub(super) struct Reach {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl Reach {
    pub(super) fn of(config: &Config, file: &Path, volumes: &[PathBuf]) -> Self {
        let mut reach = Self::default();
        reach.read.extend(MACHINE.map(PathBuf::from));
        reach.beside(file);
        config.key_file.iter().for_each(|file| reach.beside(file));
        if let Some(tls) = &config.api.tls {
            let shown = [&tls.certificate, &tls.key, &tls.client_ca];
            shown.into_iter().chain(&tls.crl).for_each(|it| reach.beside(it));
        }
        if let Input::Replay(replay) = &config.input {
            reach.beside(&replay.file);
        }
        let named = CREDENTIALS.iter().filter_map(std::env::var_os);
        named.for_each(|file| reach.beside(Path::new(&file)));
        reach.read.extend(std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
        reach.read.extend(std::env::home_dir().map(|home| home.join(".aws")));

        let volumes: Vec<_> = volumes.iter().chain(&config.spares).cloned().collect();
        // A device that comes back is a new file of the old name.
        if volumes.iter().chain(&config.vfio).any(|path| path.starts_with("/dev")) {
            reach.write.push("/dev".into());
        }
        reach.write.extend(volumes);
        reach.write.push(audit::DEVICES_FOLDER.into());
        reach.write.extend(folders::of(config).into_iter().map(|folder| folder.path));
        // The socket is removed at the end.
        reach.write.extend(folders::of_file(&config.api.socket));
        if !config.vfio.is_empty() {
            reach.write.extend(HANDING_OVER.map(PathBuf::from));
        }
        // No rule can be made of what is not there.
        for spare in config.spares.iter().filter(|spare| !spare.exists()) {
            tracing::warn!("{} cannot take a volume's place: it is not there", spare.display());
        }
        reach.write.retain(|path| path.exists());
        reach
    }

    /// Whatever stands beside a file may be read: it is put there anew when it changes.
    fn beside(&mut self, file: &Path) {
        self.read.extend(folders::of_file(file));
        // A link says where the next one is put.
        self.read.extend(std::fs::canonicalize(file).ok().and_then(|it| folders::of_file(&it)));
    }

    /// Where it may write, sorted.
    pub(super) fn written(&self) -> Vec<String> {
        let mut written: Vec<_> = self.write.iter().map(|it| it.display().to_string()).collect();
        written.sort();
        written.dedup();
        written
    }
}

/// Binds this thread, and those that it starts, to these files. Gives the version of Landlock.
///
/// # Errors
/// In words: the kernel has no Landlock, or not for us.
pub(super) fn confine(reach: &Reach) -> Result<u32, String> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    // Devices are asked by ioctl; which of them, their file rights and the unit say.
    let ask = read | AccessFs::IoctlDev;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock;
    let write = AccessFs::from_all(KNOWN) & !never;
    let restrict = || -> Result<_, RulesetError> {
        Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .create()?
            .add_rules(path_beneath_rules(&reach.read, read))?
            .add_rules(path_beneath_rules(["/dev"], ask))?
            .add_rules(path_beneath_rules(&reach.write, write))?
            .restrict_self()
    };
    let status = restrict().map_err(|error| wirevault_index::error::chain(&error))?;
    match (status.ruleset, version(status.landlock)) {
        (RulesetStatus::NotEnforced, Landlock::Version(_)) => Err("nothing is enforced".to_owned()),
        (_, Landlock::Version(version)) => Ok(version),
        (_, Landlock::Absent(why)) => Err(why.to_owned()),
    }
}

/// Whether the kernel can bind a process to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// It can, by this version of the interface.
    Version(u32),
    /// It cannot, and what would have to be done.
    Absent(&'static str),
}

fn version(status: LandlockStatus) -> Landlock {
    match status {
        LandlockStatus::Available { effective_abi, kernel_abi } => {
            let own = effective_abi as u32;
            Landlock::Version(kernel_abi.and_then(|it| u32::try_from(it).ok()).unwrap_or(own))
        }
        LandlockStatus::NotEnabled => Landlock::Absent(
            "Landlock is off; add `landlock` to `lsm=` of the kernel's command line",
        ),
        LandlockStatus::NotImplemented => {
            Landlock::Absent("this kernel has no Landlock, or a filter of system calls hides it")
        }
    }
}

/// Asks the kernel, by a thread that binds itself to nothing and ends.
pub fn landlock() -> Landlock {
    let ask = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::MakeBlock)?;
        Ok::<_, RulesetError>(version(ruleset.create()?.restrict_self()?.landlock))
    };
    let answer = std::thread::scope(|scope| scope.spawn(ask).join());
    answer.ok().and_then(Result::ok).unwrap_or(Landlock::Absent("the kernel refuses to say"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn own_files_are_within_reach_and_no_others() {
        if let Landlock::Absent(why) = landlock() {
            assert!(std::env::var_os("CI").is_none(), "{why}");
            eprintln!("SKIPPED: {why}");
            return;
        }
        let (own, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, spare) = (own.path().join("store"), own.path().join("spare"));
        [&store, &spare].iter().for_each(|folder| fs::create_dir(folder).unwrap());
        fs::write(own.path().join("t.yaml"), "a").unwrap();
        fs::write(foreign.path().join("secret"), "s").unwrap();
        let text = format!(
            "store: {}\nspares: {}\napi:\n  socket: {}/run/socket\ncapture:\n  - interface: lo\n",
            store.display(),
            spare.display(),
            own.path().display()
        );
        let config = wirevault_config::parse(&text, "t").unwrap();
        let reach = Reach::of(&config, &own.path().join("t.yaml"), std::slice::from_ref(&store));
        let bound = || {
            confine(&reach).unwrap();
            let denied = |done: std::io::Result<()>| {
                done.unwrap_err().kind() == std::io::ErrorKind::PermissionDenied
            };
            for folder in [&store, &spare] {
                fs::write(folder.join("a"), "1").unwrap();
                fs::rename(folder.join("a"), folder.join("b")).unwrap();
                fs::remove_file(folder.join("b")).unwrap();
            }
            fs::read(own.path().join("t.yaml")).unwrap();
            fs::read("/proc/self/status").unwrap();
            assert!(denied(fs::read(foreign.path().join("secret")).map(drop)), "foreign file");
            assert!(denied(fs::write(own.path().join("t.yaml"), "b")), "its own configuration");
            assert!(denied(fs::write(foreign.path().join("new"), "b")), "foreign folder");
            let program = std::process::Command::new("/bin/true").status();
            assert!(denied(program.map(drop)), "a program");
        };
        std::thread::scope(|scope| scope.spawn(bound).join().unwrap());
        // Whoever started that thread is not bound.
        fs::read(foreign.path().join("secret")).unwrap();
    }
}
