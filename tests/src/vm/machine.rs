//! A virtual machine: started, saved, restored, asked.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use wirevault_testkit::net::{now_ns, wait_for};

use super::cache;
use super::image::{Image, found, programs_disk};
use super::packages::Packages;
use super::qmp::Qmp;
use crate::recorder::program;

/// Longest wait for anything but a boot: the processor is emulated, and hosts are busy.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Longest wait for a boot.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// PCIe ports for devices; the last one is for the disk with our programs.
const PORTS: usize = 8;
/// Memory of the machine.
const MEMORY_MIB: u32 = 768;
/// What stands before the number and the exit code of a command that has ended.
const RECORD_SEPARATOR: u8 = 0x1e;

/// What a machine has beside processors, memory and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// An I/O memory management unit, for drivers outside of the kernel.
    Iommu,
}

impl Kind {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Iommu => &["-device", "intel-iommu,intremap=on"],
        }
    }

    /// The kernel, and so our own driver, gives up on a silent device later than any test ends: its
    /// reset would have QEMU wait for what it holds back itself.
    ///
    /// Its clock ticks all the time: QEMU arms a periodic timer again by itself. With one-shot
    /// timers a processor of a busy machine lost its interrupt once, and slept for good.
    fn command_line(self) -> String {
        let own = match self {
            Self::Plain => "nvme.poll_queues=1",
            Self::Iommu => "intel_iommu=on iommu=on",
        };
        let common = "console=ttyS0 panic=-1 quiet nohz=off highres=off nvme_core.io_timeout=600";
        format!("{common} {own}")
    }
}

/// What a command in the guest printed, and its exit code.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output and error.
    pub text: String,
}

/// A running machine. Dropping it kills it.
pub struct Vm {
    qemu: Child,
    pub(super) qmp: Qmp,
    agent: BufReader<UnixStream>,
    folder: TempDir,
    asked: u64,
    ports: Vec<usize>,
}

impl Vm {
    /// A machine with our programs, restored from the saved one; that is made first if need be.
    ///
    /// # Panics
    /// If a part of the laboratory cannot be had; the message names the way out.
    pub fn restore(kind: Kind) -> Self {
        let packages = Packages::get();
        let image = Image::get(&packages);
        let saved = saved(kind, &packages, &image);
        let mut vm = Self::start(kind, &packages, &image, Some(&saved.join("state")));
        wait_for("the restored machine", PATIENCE, || {
            let status = vm.qmp.run("query-status", json!({}));
            (status["status"] != "inmigrate").then_some(())
        });
        vm.qmp.run("cont", json!({}));
        // The saved machine's clock stood still.
        vm.ok(&format!("date -s @{} >/dev/null", now_ns() / 1_000_000_000));
        vm.add_programs();
        vm
    }

    fn start(kind: Kind, packages: &Packages, image: &Image, state: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("folder of the machine");
        let at = |name: &str| folder.path().join(name).display().to_string();
        // A test that is killed takes its machine along.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(packages.file("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", packages.libraries());
        for folder in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(packages.file(folder));
        }
        // Where the host is a virtual machine itself, its KVM may open and still not run a kernel.
        command.args(["-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max", "-smp", "2"]);
        command.args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-display", "none"]);
        command.arg("-no-reboot");
        // Machines restored from one state must not draw the same random numbers.
        command.args(["-device", "vmgenid,guid=auto"]);
        command.arg("-serial").arg(format!("file:{}", at("serial")));
        command.arg("-chardev").arg(format!("socket,id=agent,path={},server=on,wait=off", at("a")));
        command.args(["-serial", "chardev:agent"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", at("q")));
        command.args(kind.arguments());
        for port in 0..PORTS {
            let number = port + 1;
            let options = format!("pcie-root-port,id=port{port},slot={number},chassis={number}");
            command.arg("-device").arg(options);
        }
        command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.first_files());
        command.arg("-append").arg(kind.command_line());
        if let Some(state) = state {
            command.arg("-incoming").arg(format!("exec:cat '{}'", state.display()));
        }
        let said = fs::File::create(folder.path().join("said")).expect("log of QEMU");
        command.stdin(Stdio::null()).stdout(said.try_clone().expect("log")).stderr(said);
        let mut qemu = command.spawn().expect("`setpriv` of util-linux starts QEMU");
        let mut connected = |name: &str| {
            let path = folder.path().join(name);
            wait_for("a socket of QEMU", PATIENCE, || {
                if let Some(status) = qemu.try_wait().expect("wait") {
                    let said = fs::read_to_string(folder.path().join("said")).unwrap_or_default();
                    panic!("QEMU ended at once, {status}: {said}");
                }
                UnixStream::connect(&path).ok()
            })
        };
        let agent = connected("a");
        agent.set_read_timeout(Some(PATIENCE)).expect("time limit");
        drop(connected("q"));
        let control = folder.path().join("q");
        let qmp = wait_for("QEMU", PATIENCE, || Qmp::connect(&control).ok());
        let ports = (0..PORTS - 1).rev().collect();
        Self { qemu, qmp, agent: BufReader::new(agent), folder, asked: 0, ports }
    }

    /// Runs a line of shell in the guest.
    ///
    /// # Panics
    /// If the guest does not answer.
    pub fn run(&mut self, command: &str) -> Answer {
        assert!(!command.contains('\n'), "the agent takes one line: {command}");
        self.asked += 1;
        let number = self.asked.to_string();
        let line = format!("{number} {command}\n");
        self.agent.get_mut().write_all(line.as_bytes()).expect("the agent's port");
        let answer = self.answer(&number, command);
        if std::env::var_os("WIREVAULT_VM_TRACE").is_some() {
            eprintln!("guest# {command}\n{}[{}]", answer.text, answer.code);
        }
        answer
    }

    /// Runs a line that must succeed; gives what it printed.
    ///
    /// # Panics
    /// If its exit code is not 0.
    pub fn ok(&mut self, command: &str) -> String {
        let answer = self.run(command);
        assert_eq!(answer.code, 0, "in the guest: {command}\n{}", answer.text);
        answer.text
    }

    /// Starts a program in the background; gives its process id. Its output goes to a file.
    pub fn spawn(&mut self, command: &str, log: &str) -> u32 {
        let line = format!("setsid {command} >>{log} 2>&1 & echo $!");
        self.ok(&line).trim().parse().expect("a process id")
    }

    /// Asks until the command succeeds; gives what it printed.
    pub fn wait_for(&mut self, what: &str, command: &str) -> String {
        wait_for(what, PATIENCE, || {
            let answer = self.run(command);
            (answer.code == 0).then_some(answer.text)
        })
    }

    /// Writes a small file in the guest.
    pub fn put(&mut self, path: &str, content: &str) {
        self.ok(&format!(": >{path}"));
        for line in content.lines() {
            let quoted = line.replace('\'', r"'\''");
            self.ok(&format!("printf '%s\\n' '{quoted}' >>{path}"));
        }
    }

    /// Stops its processors, in the middle of whatever they do.
    pub fn pause(&mut self) {
        self.qmp.run("stop", json!({}));
    }

    /// Lets them go on as if nothing had happened; its clock stood still.
    pub fn go_on(&mut self) {
        self.qmp.run("cont", json!({}));
    }

    /// Folder on this side, for images.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the guest's kernel said on its console.
    pub fn console(&self) -> String {
        fs::read_to_string(self.folder.path().join("serial")).unwrap_or_default()
    }

    /// Says that the test came to its end: the guest answers to the last, and its kernel did not
    /// fall over meanwhile. An exit code of QEMU would not tell: a guest that resets gives 0, too.
    pub fn finish(mut self) {
        self.ok("echo laboratory-done >/dev/ttyS0");
        // The console is slower than the agent.
        let console = wait_for("the guest's last word", PATIENCE, || {
            Some(self.console()).filter(|it| it.trim_end().ends_with("laboratory-done"))
        });
        let fell = ["BUG:", "Oops", "Call Trace", "Kernel panic"];
        assert!(!fell.iter().any(|word| console.contains(word)), "{console}");
    }

    pub(super) fn take_port(&mut self) -> usize {
        self.ports.pop().expect("a free port: a machine takes seven devices")
    }

    pub(super) fn give_port(&mut self, port: usize) {
        self.ports.push(port);
    }

    fn add_programs(&mut self) {
        let programs =
            ["wirevaultd", "wirevault", "lab-guest", "lab-queues", "lab-vfio"].map(program);
        // Busybox's own takes no other user's rights.
        let disk = programs_disk(&[&programs[..], &[found("setpriv")]].concat());
        let file = json!({"driver": "file", "filename": disk, "read-only": true});
        let node = json!({"driver": "raw", "node-name": "programs", "read-only": true,
            "file": file});
        self.qmp.run("blockdev-add", node);
        let port = format!("port{}", PORTS - 1);
        let device = json!({"driver": "virtio-blk-pci", "id": "programs", "bus": port,
            "drive": "programs"});
        self.qmp.run("device_add", device);
        self.wait_for("the disk with our programs", "[ -b /dev/vda ]");
        self.ok("mount -t ext4 -o ro /dev/vda /lab");
    }

    fn answer(&mut self, number: &str, command: &str) -> Answer {
        let mut bytes = Vec::new();
        let mut code = String::new();
        for (until, into) in [(RECORD_SEPARATOR, &mut bytes), (b'\n', &mut Vec::new())] {
            if let Err(error) = self.agent.read_until(until, into) {
                let said = String::from_utf8_lossy(into).into_owned();
                panic!("the guest does not answer to {command}: {error}\n{said}");
            }
            assert_eq!(into.pop(), Some(until), "the guest ended in {command}");
            code = String::from_utf8_lossy(into).into_owned();
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (of, code) = code.split_once(' ').expect("number and exit code");
        assert_eq!(of, number, "an answer to {command}: {text}");
        Answer { code: code.parse().expect("exit code"), text }
    }

    /// Waits for the agent of a machine that boots.
    fn booted(&mut self) {
        let began = Instant::now();
        let mut ready = Vec::new();
        loop {
            match self.agent.read_until(b'\n', &mut ready) {
                Ok(bytes) if bytes > 0 && ready.ends_with(b"ready 0\n") => return,
                Err(_) if began.elapsed() < BOOT_PATIENCE => {}
                other => panic!("the machine does not boot: {other:?}\n{}", self.console()),
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("console of the guest:\n{}", self.console());
        }
    }
}

/// Folder of a saved machine: booted, with its agent waiting, without devices.
fn saved(kind: Kind, packages: &Packages, image: &Image) -> PathBuf {
    let (arguments, memory) = (kind.arguments().join(" "), MEMORY_MIB.to_string());
    let sizes = format!("{memory} {PORTS}");
    let parts = [&image.key(), packages.versions(), &arguments, &kind.command_line(), &sizes];
    let name = format!("saved-{}", cache::key(&parts));
    let folder = cache::made(&cache::root(), &name, |folder| {
        let mut vm = Vm::start(kind, packages, image, None);
        vm.booted();
        vm.ok("sync; echo 3 >/proc/sys/vm/drop_caches");
        vm.qmp.run("stop", json!({}));
        let uri = format!("exec:cat > '{}'", folder.join("state").display());
        vm.qmp.run("migrate", json!({"uri": uri}));
        wait_for("the machine to be saved", PATIENCE, || {
            let state = vm.qmp.run("query-migrate", json!({}));
            assert_ne!(state["status"], Value::from("failed"), "{state}");
            (state["status"] == "completed").then_some(())
        });
        fs::write(folder.join("console"), vm.console()).expect("console of the boot");
    });
    cache::keep_newest(&cache::root(), "saved-", 4);
    folder
}
