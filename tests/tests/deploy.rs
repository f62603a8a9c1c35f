//! `deploy/`: the template is what CloudFormation takes, its policies name what there is, and an
//! instance starts with a configuration that the recorder takes.
//!
//! Nothing here has seen AWS. cfn-lint and parliament are others' readings of its documents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use wirevault_telemetry::publish::PUBLISHED;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::readers::{interpreter, missing};
use wirevault_tests::recorder::{Site, program};

fn template() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/appliance.yaml")
}

/// What `tests/deploy/check.py` says of a template; `None`, loudly, where its packages are missing.
fn check(verb: &str, template: &Path) -> Option<Output> {
    let python = interpreter();
    let packages = Command::new(&python).args(["-c", "import cfnlint, parliament"]).output();
    if !packages.is_ok_and(|output| output.status.success()) {
        return missing("the Python packages `cfn-lint` and `parliament`", "not installed");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/check.py");
    Some(Command::new(python).arg(script).arg(verb).arg(template).output().expect("Python"))
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// The text between a line that ends with `<<'MARK'` and the line `MARK`.
fn here_document<'a>(script: &'a str, mark: &str) -> &'a str {
    let (_, rest) = script.split_once(&format!("<<'{mark}'\n")).expect("its beginning");
    rest.split_once(&format!("\n{mark}\n")).expect("its end").0
}

#[test]
fn the_template_is_sound_and_a_mistaken_one_is_found_out() {
    let Some(sound) = check("lint", &template()) else { return };
    assert!(sound.status.success(), "{}", said(&sound));
    let folder = tempfile::tempdir().expect("folder");
    let mut text = fs::read_to_string(template()).expect("the template");
    // All in one copy: a run takes seconds of a core.
    let mistakes = [
        ("HttpTokens: required", "HttpToken: required", "'HttpToken' was unexpected"),
        ("Period: 60", "Period: 7", "7 is not one of"),
        ("RuleAction: accept", "RuleAction: allow", "'allow' is not one of"),
        ("'kms:GenerateDataKey'", "'kms:GenerateDataKeys'", "action kms:GenerateDataKeys"),
        ("Resource: !GetAtt Key.Arn", "Resource: '*'", "RESOURCE_STAR: ['kms:Decrypt']"),
    ];
    for (right, wrong, _) in mistakes {
        assert!(text.contains(right), "{right}");
        text = text.replace(right, wrong);
    }
    let file = folder.path().join("wrong.yaml");
    fs::write(&file, text).expect("a copy");
    let output = check("lint", &file).expect("it was there before");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for (_, wrong, told) in mistakes {
        assert!(said(&output).contains(told), "{wrong} is not found out:\n{}", said(&output));
    }
}

#[test]
fn an_instance_starts_with_sound_scripts_and_a_configuration_that_is_taken() {
    let Some(output) = check("user-data", &template()) else { return };
    let script = String::from_utf8(output.stdout).expect("a script");
    let folder = tempfile::tempdir().expect("folder");
    for (name, text) in [("user-data", &*script), ("prepare", here_document(&script, "PREPARE"))] {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("a script");
        let checked = Command::new("bash").arg("-n").arg(&file).output().expect("bash");
        assert!(checked.status.success(), "{name}: {}", said(&checked));
        assert!(!text.contains("${"), "{name} has a variable that CloudFormation would take");
    }
    let site = Site::new("272MiB", 1);
    let config = here_document(&script, "CONFIG");
    assert!(config.contains("store: /dev/null"), "{config}");
    // Lanes want room in the buffer, not in the store; the group is made by the package.
    let config = config
        .replace("store: /dev/null", &format!("store: {}", site.store().display()))
        .replace("groups: [wirevault]", "groups: [root]");
    let file = folder.path().join("wirevault.yaml");
    fs::write(&file, config).expect("a configuration");
    let mut validate = Command::new(program("wirevaultd"));
    let checked = validate.arg("validate").arg(&file).output().expect("wirevaultd");
    assert!(checked.status.success(), "{}", said(&checked));
}

/// An instance that is stopped has empty disks when it starts again: here they are files, a folder
/// in place of `/var/lib` is the state volume, and a recording of a file is what was lost.
const STOPPED_AND_STARTED: &str = r#"
mkdir -p var/wirevault disks
mount --bind var /var/lib
start() {
    truncate -s 4G disks/nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1
    bash prepare
}
start
wirevaultd --config wirevault.yaml &
until wirevault status --socket socket --json 2>/dev/null | grep -q '"stored": *100\b'; do
    kill -0 $!
    sleep 0.1
done
kill $!
wait $!
rm disks/*
# The first start ends before what was saved is back.
mkdir ends
cat >ends/wirevault <<'ENDS'
#!/bin/bash
[ "$1 $2" != 'snapshot restore' ] || exit 9
PATH=${PATH#*:} exec wirevault "$@"
ENDS
chmod +x ends/wirevault
if (PATH=$PWD/ends:$PATH start); then echo 'it did not end'; exit 1; fi
test -e var/wirevault/restore-owed
start
start
! test -e var/wirevault/restore-owed
store=$(sed -n 's/^store: //p' wirevault.yaml)
wirevault segments --store "$store"
wirevault audit show --store "$store"
wirevault query --store "$store" --count || echo "exit code $?"
"#;

#[test]
fn an_instance_that_was_stopped_says_what_its_disks_held() {
    let Some(output) = check("user-data", &template()) else { return };
    let script = String::from_utf8(output.stdout).expect("a script");
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).expect("a file");
    };
    let here = folder.path().display();
    let mut prepare = here_document(&script, "PREPARE").to_owned();
    for (there, here) in [
        ("/dev/disk/by-id", format!("{here}/disks")),
        ("/etc/wirevault/", format!("{here}/")),
        ("runuser -u wirevault -- ", String::new()),
        ("--kms-key ", format!("--key {here}/key #")),
    ] {
        assert!(prepare.contains(there), "{there}");
        prepare = prepare.replace(there, &here);
    }
    write("prepare", &prepare);
    let config = here_document(&script, "CONFIG");
    assert!(config.contains("  folder: /var/lib/wirevault/checkpoints\n"), "{config}");
    let packets: Vec<_> = (0..100).map(packet).collect();
    write_pcap(&folder.path().join("capture.pcap"), &packets);
    let replay = format!("store: /dev/null\nreplay:\n  file: {here}/capture.pcap\n");
    let more = "snapshots:\n  folder: /var/lib/wirevault/checkpoints\n";
    write("wirevault.yaml", &format!("{replay}api:\n  socket: {here}/socket\n{more}"));

    let programs = program("wirevaultd").parent().expect("a folder").display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let mut run = Command::new("unshare");
    run.args(["--mount", "bash", "-euo", "pipefail", "-c", STOPPED_AND_STARTED]);
    let output = run.current_dir(&folder).env("PATH", path).output().expect("unshare");
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for words in ["lost: instance store", "restored", "exit code 3"] {
        assert!(said.contains(words), "`{words}` in {said}");
    }
}

fn packet(number: u64) -> Packet {
    let data = vec![number as u8; 60];
    Packet { ts_ns: 1_700_000_000_000_000_000 + number, orig_len: data.len() as u32, data }
}

#[test]
fn alarms_are_about_metrics_that_somebody_publishes() {
    let Some(output) = check("metrics", &template()) else { return };
    let metrics = said(&output);
    assert!(!metrics.is_empty());
    // Of AWS itself. Source: the user guides of EC2 and AWS Backup.
    let known = [
        "AWS/EC2 StatusCheckFailed",
        "AWS/Backup NumberOfBackupJobsFailed",
        "AWS/Backup NumberOfBackupJobsCompleted",
    ];
    for metric in metrics.lines() {
        let ours = metric.strip_prefix("Wirevault ");
        let published = |name| PUBLISHED.iter().any(|it| it.name == name && !it.per_device);
        let told = known.contains(&metric) || ours.is_some_and(published);
        assert!(told, "{metric} is published by nobody");
    }
}

/// Of a part that it has not an alarm would be silent for ever.
#[test]
fn alarms_of_the_template_are_about_what_its_configuration_has() {
    let text = fs::read_to_string(template()).expect("the template");
    let (_, config) = text.split_once("<<'CONFIG'\n").expect("its configuration");
    let (config, _) = config.split_once("            CONFIG\n").expect("its end");
    for (section, alarm) in [
        ("snapshots", "CheckpointFailed"),
        ("backup", "BackupOverdue"),
        ("tier", "TierFailed"),
        ("audit", "AuditAnchorAge"),
    ] {
        let configured = config.contains(&format!("            {section}:\n"));
        let alarmed = text.contains(&format!("      MetricName: {alarm}\n"));
        assert_eq!(alarmed, configured, "{alarm} and `{section}`");
    }
    // What devices say in log pages, who may not ask for them never hears.
    let (_, unit) = text.split_once("<<'UNIT'\n").expect("its unit");
    let (unit, _) = unit.split_once("            UNIT\n").expect("its end");
    let may_ask = unit.matches("=CAP_SYS_ADMIN\n").count() == 2;
    for alarm in ["DeviceThrottled", "DeviceWarnings", "DeviceMediaErrors", "DeviceLifeUsed"] {
        let alarmed = text.contains(&format!("      MetricName: {alarm}\n"));
        assert_eq!(alarmed, may_ask, "{alarm} and the rights of the unit");
    }
}

#[test]
fn alarms_and_dashboard_of_the_template_are_those_of_the_tables() {
    let mut print = Command::new(program("wirevault"));
    let printed = print.args(["cloudwatch", "template"]).output().expect("wirevault");
    assert!(printed.status.success(), "{}", said(&printed));
    let wanted = String::from_utf8(printed.stdout).expect("text");
    let text = fs::read_to_string(template()).expect("the template");
    let (begin, end) = (wanted.lines().next().expect("a line"), wanted.lines().last());
    let end = end.expect("a line");
    let (_, rest) = text.split_once(begin).expect("the beginning of what is generated");
    let (held, _) = rest.split_once(end).expect("its end");
    let held = format!("{begin}{held}{end}\n");
    assert!(held == wanted, "put what `wirevault cloudwatch template` prints into the template");
}
