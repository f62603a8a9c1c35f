//! The Debian package: what lintian says, and its life under real systemd: installed, started,
//! watched, upgraded, removed, and installed again over what is left.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use serde_json::Value;
use wirevault_testkit::net::wait_for;
use wirevault_tests::recorder::program;
use wirevault_tests::vm::Container;
use wirevault_tests::vm::machine::PATIENCE;
use wirevault_tests::vm::packages;

const UNIT: &str = "wirevaultd.service";
const CONFIG: &str = "/etc/wirevault/wirevault.yaml";
/// The ten lines of the documentation.
const EXAMPLE: &str = include_str!("../../config/examples/appliance.yaml");
/// Packets to one port.
const PACKETS: u64 = 100;

/// A package of the programs beside this test.
fn package(out: &Path, revision: &str) {
    let programs = program("wirevaultd");
    let programs = programs.parent().expect("target folder");
    let mut xtask = Command::new(program("xtask"));
    xtask.args(["deb", "--revision", revision, "--programs"]).arg(programs);
    let output = xtask.arg("--out").arg(out).output().expect("xtask");
    assert!(output.status.success(), "{output:?}");
}

/// What Debian asks of packages; wishes of a lower degree are not looked at.
fn lintian(out: &Path) {
    let package = fs::read_dir(out).expect("packages").next().expect("a package").expect("entry");
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning"]).arg(package.path());
    let output = lintian.output().expect("lintian: apt-get install lintian");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// udev gives disks to the recorder's group. There are none of EC2's local disks here, so a copy of
/// the rules names a disk that this machine has, instead of their model.
fn udev_rules(container: &Container) {
    let disk = container.ok("ls /sys/block | head -n 1");
    let disk = disk.trim();
    container.ok(&format!(
        "mkdir -p /etc/udev/rules.d && sed 's/ATTRS\\?{{model}}==\"[^\"]*\"/KERNEL==\"{disk}\"/' \
         /lib/udev/rules.d/60-wirevault.rules >/etc/udev/rules.d/60-wirevault.rules"
    ));
    let said = container.ok(&format!("/packages/udevadm test --action=add /sys/block/{disk} 2>&1"));
    let group = container.ok("getent group wirevault | cut -d: -f3");
    for line in [format!("60-wirevault.rules:5 GROUP {}", group.trim()), ":5 MODE 0660".to_owned()]
    {
        assert!(said.contains(&line), "{line} is not in\n{said}");
    }
    container.ok("rm /etc/udev/rules.d/60-wirevault.rules");
}

fn property(container: &Container, name: &str) -> String {
    let said = container.ok(&format!("systemctl show --property={name} --value {UNIT}"));
    said.trim().to_owned()
}

fn found(container: &Container, port: u16) -> u64 {
    let said = container.run(&format!("wirevault query --count 'udp port {port}'"));
    said.text.lines().find_map(|line| line.trim().parse().ok()).unwrap_or(0)
}

/// Nothing is on its way, and every packet is accounted for.
fn books_balance(container: &Container) {
    wait_for("balanced books", PATIENCE, || {
        let status: Value = serde_json::from_str(&container.ok("wirevault status --json")).ok()?;
        let count = |field: &str| status["lanes"][0][field].as_u64().expect(field);
        let settled = count("stored") + count("shed") + count("dropped");
        assert_eq!(count("received"), settled + count("in_flight"), "{status}");
        (count("in_flight") == 0).then_some(())
    });
}

/// The unit refused the calls with which the recorder gives up rights, files and other calls: it
/// kept all that the unit gave it, and said so in the log.
fn gives_up_the_rest(container: &Container) {
    let status: Value =
        serde_json::from_str(&container.ok("wirevault status --json")).expect("a status");
    let sandbox = &status["sandbox"];
    assert_eq!(sandbox["seccomp"], true, "{sandbox}");
    let left = sandbox["rights"].as_array().expect("rights");
    assert!(left.iter().all(|right| right != "CAP_SYS_ADMIN"), "{sandbox}");
    // Whether there is Landlock is a matter of this machine's kernel, and not of the unit.
    let doctor = Command::new(program("wirevault")).args(["doctor", "--json"]).output();
    let outside: Value = serde_json::from_slice(&doctor.expect("wirevault").stdout).expect("JSON");
    let mut findings = outside["findings"].as_array().expect("findings").iter();
    let outside = findings.find(|it| it["about"] == "sandbox").expect("a word on the sandbox");
    let has_landlock = outside["verdict"] == "ok";
    assert_eq!(sandbox["landlock_abi"].is_u64(), has_landlock, "{outside}, and {sandbox}");
    let why_not = sandbox["why_not"].as_array().expect("reasons");
    assert_eq!(why_not.len(), usize::from(!has_landlock), "{outside}, and {sandbox}");
    let allowed = property(container, "SystemCallFilter");
    for call in ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] {
        assert!(allowed.contains(call), "{call} in {allowed}");
    }
    // Who insists on it gets it.
    if has_landlock {
        container.ok(&format!("echo \"sandbox: 'on'\" >>{CONFIG}; systemctl restart {UNIT}"));
        records(container, 7007);
    }
}

/// Sends packets to this port, and finds them in the record.
fn records(container: &Container, port: u16) {
    container.ok(&format!(
        "for n in $(seq {PACKETS}); do echo $n >/dev/udp/10.79.0.2/{port} || exit 1; done"
    ));
    wait_for("all packets are found", PATIENCE, || {
        (found(container, port) == PACKETS).then_some(())
    });
}

#[test]
fn a_package_lives_from_installing_to_purging() {
    let out = tempfile::tempdir().expect("folder");
    package(out.path(), "1");
    lintian(out.path());
    package(out.path(), "2");
    let udevadm = packages::unpacked("udev").join("bin/udevadm");
    fs::copy(udevadm, out.path().join("udevadm")).expect("a copy");
    fs::write(out.path().join("appliance.yaml"), EXAMPLE).expect("a copy");
    let container = Container::boot(out.path());

    container.ok("dpkg --install /packages/wirevault_*-1_*.deb");
    assert_eq!(container.run(&format!("systemctl is-enabled {UNIT}")).text.trim(), "disabled");
    container.ok("ip link add va type veth peer name vb && ip link set va up && \
                  ip link set vb up && ip address add 10.79.0.1/24 dev va && \
                  ip neighbour add 10.79.0.2 lladdr 02:00:00:00:00:02 dev va");
    container.ok(&format!("sed -i s/eth0/va/ {CONFIG}"));
    container.ok("runuser -u wirevault -- wirevault init /var/lib/wirevault --quota 300MiB \
                  --key /etc/wirevault/keys/store.key");
    let complaints = container.ok(&format!("systemd-analyze verify --man=no {UNIT}"));
    assert_eq!(complaints, "");
    udev_rules(&container);
    // In tenths: 2.0 to 5.0 is what it calls OK, and most services have more than 9.
    container.ok(&format!("systemd-analyze security --no-pager --threshold=30 {UNIT}"));
    // A watchdog that barks within the time of a test.
    container.ok(&format!(
        "mkdir /etc/systemd/system/{UNIT}.d && \
         printf '[Service]\\nWatchdogSec=10s\\n' >/etc/systemd/system/{UNIT}.d/test.conf && \
         systemctl daemon-reload"
    ));

    container.ok(&format!("systemctl enable --now {UNIT}"));
    let main = property(&container, "MainPID");
    let status = container.ok(&format!("cat /proc/{main}/status"));
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000008000007000"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    assert!(!status.contains("Uid:\t0"), "it is no root:\n{status}");
    records(&container, 7001);
    gives_up_the_rest(&container);
    container.ok(&format!("wirevault doctor --config {CONFIG}"));

    // An upgrade while packets come: the configuration that was changed stays, the recorder is the
    // new one, and what came while there was none is a gap that answers state.
    let first = property(&container, "MainPID");
    container.ok("systemd-run --quiet --unit=sender bash -c \
                  'while sleep 0.01; do echo x >/dev/udp/10.79.0.2/7000; done'");
    wait_for("the sender", PATIENCE, || (found(&container, 7000) > 0).then_some(()));
    container.ok("dpkg --install /packages/wirevault_*-2_*.deb && dpkg --verify wirevault");
    let second = property(&container, "MainPID");
    assert_ne!(first, second, "an upgrade starts the recorder anew");
    container.ok(&format!("grep -q 'interface: va' {CONFIG}"));
    records(&container, 7002);
    assert_eq!(found(&container, 7001), PACKETS, "what was recorded before");
    container.ok("systemctl stop sender");
    books_balance(&container);
    let answer = container.run("wirevault query --count 'udp port 7000'");
    assert!(answer.code == 3 && answer.text.contains("not_recording"), "{answer:?}");

    // Another configuration without a new start; or none of it.
    let journal = || container.ok(&format!("journalctl --no-pager --unit={UNIT}"));
    let reloaded = |what: &str| {
        wait_for(what, PATIENCE, || journal().contains(what).then_some(()));
    };
    container.ok(&format!("echo 'log: debug' >>{CONFIG}; systemctl reload {UNIT}"));
    reloaded("the configuration was read again");
    container
        .ok(&format!("sed -i 's/interface: va/interface: vb/' {CONFIG}; systemctl reload {UNIT}"));
    reloaded("capture changed, which takes a new start");
    container.ok(&format!("sed -i 's/interface: vb/interface: va/' {CONFIG}; echo x >>{CONFIG}"));
    assert_ne!(container.run(&format!("systemctl reload {UNIT}")).code, 0, "it is validated first");
    container.ok(&format!("sed -i '/^x$/d' {CONFIG}"));
    assert_eq!(property(&container, "MainPID"), second, "it is the same recorder");
    assert_eq!(property(&container, "ActiveState"), "active");

    // A key that root alone can read.
    container.ok("mkdir -p /etc/credstore && chown root: /etc/wirevault/keys/store.key && \
                  mv /etc/wirevault/keys/store.key /etc/credstore/wirevault.key");
    let credential = format!("/run/credentials/{UNIT}/wirevault.key");
    container.ok(&format!("echo 'key_file: {credential}' >>{CONFIG}; systemctl restart {UNIT}"));
    records(&container, 7003);

    // The link was idle for long enough by now, and nobody barked.
    assert_eq!(property(&container, "NRestarts"), "0");
    let lane = container.thread(UNIT, "lane-0");
    ptrace::seize(lane, Options::empty()).expect("a thread can be traced");
    ptrace::interrupt(lane).expect("it can be stopped");
    waitpid(lane, Some(WaitPidFlag::__WALL)).expect("it stops");
    wait_for("the watchdog", PATIENCE, || {
        // Whoever traces a thread must take note of its end, before others learn of it.
        let _ = waitpid(lane, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        (property(&container, "NRestarts") != "0").then_some(())
    });
    let log = container.ok(&format!("journalctl --no-pager --unit={UNIT}"));
    assert!(log.contains("Watchdog timeout"), "{log}");
    wait_for("the next start", PATIENCE, || {
        (property(&container, "ActiveState") == "active").then_some(())
    });
    records(&container, 7004);

    container.ok(&format!("systemctl stop {UNIT}"));
    assert_eq!(property(&container, "Result"), "success");
    container.ok("wirevault verify --store /var/lib/wirevault --key /etc/credstore/wirevault.key");
    container.ok(&format!("systemctl start {UNIT} && dpkg --remove wirevault"));
    assert_eq!(container.run(&format!("systemctl is-active {UNIT}")).text.trim(), "inactive");
    container.ok(&format!("test -f {CONFIG} && ! test -e /usr/bin/wirevaultd"));
    container.ok(&format!("! find /etc/systemd -name {UNIT} | grep ."));
    container.ok("dpkg --purge wirevault");
    container.ok(&format!("! test -e {CONFIG}"));
    container.ok("test -d /etc/wirevault/keys && test -n \"$(ls /var/lib/wirevault)\"");

    // Over what is left: the store goes on where it ended.
    container.ok("dpkg --install /packages/wirevault_*-2_*.deb");
    assert_eq!(container.run(&format!("systemctl is-enabled {UNIT}")).text.trim(), "disabled");
    container.ok("mv /etc/credstore/wirevault.key /etc/wirevault/keys/store.key && \
                  chown wirevault: /etc/wirevault/keys/store.key");
    container.ok(&format!("sed -i s/eth0/va/ {CONFIG} && systemctl start {UNIT}"));
    records(&container, 7005);
    assert_eq!(found(&container, 7001), PACKETS, "what was recorded before");
    appliance(&container);
}

/// The ten lines, far from any cloud: it records, and saves its state where they say. A folder that
/// the unit keeps out is told before the start.
fn appliance(container: &Container) {
    container.ok(&format!("sed s/eth0/va/ /packages/appliance.yaml >{CONFIG}"));
    container.ok(&format!("systemctl restart {UNIT}"));
    records(container, 7006);
    container.ok("wirevault snapshot create");
    container.ok("wirevault snapshot list /var/lib/wirevault-state");
    let warned = |folder: &str| {
        let log = container.ok(&format!("journalctl --no-pager --unit={UNIT}"));
        log.contains(&format!("snapshots.folder: {folder}"))
    };
    assert!(!warned(""), "a folder of the unit is one that it may write");
    container.ok(&format!("sed -i s/wirevault-state/elsewhere/ {CONFIG}"));
    container.ok(&format!("systemctl restart {UNIT}"));
    assert!(warned("/var/lib/elsewhere is not there and cannot be made"), "nothing is said");
}
