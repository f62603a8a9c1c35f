//! Two machines on one device: the one that records is paused under load, the other one takes over,
//! and the first goes on in the middle of what it did.

use wirevault_testkit::net::wait_for;
use wirevault_tests::recorder::nothing_is_damaged;
use wirevault_tests::vm::{Kind, NvmeOptions, Vm};

use crate::recorder::*;

const SERIAL: &str = "SHARED";
const DEVICE_BYTES: u64 = 2 << 30;
const KEY: &str = "/etc/wirevault/keys/store.key";

/// A machine of that name with the device, and the configuration of its recorder.
fn machine(name: &str, disk: &NvmeOptions, more: &str) -> (Vm, std::path::PathBuf) {
    let mut vm = wired(Kind::Plain);
    vm.ok(&format!("echo {name} >/proc/sys/kernel/hostname; mkdir -p /etc/wirevault/keys"));
    let image = vm.add_nvme(disk).image;
    let config = format!(
        "store: {}\nkey_file: {KEY}\n{more}api:\n  socket: /tmp/socket\n\
         buffer:\n  size: 64MiB\ncapture:\n  - interface: va\n    ring: 64MiB\n",
        by_id(SERIAL)
    );
    vm.put("/tmp/wirevault.yaml", &config);
    (vm, image)
}

fn wait_until_it_is(vm: &mut Vm, state: &str) {
    let ask = "wirevault status --socket /tmp/socket --json >/tmp/status 2>&1";
    let is = format!("grep -q '\"state\": *\"{state}\"' /tmp/status");
    vm.wait_for(state, &format!("{ask}; {is} || {{ tail -3 /tmp/log; false; }}"));
}

#[test]
fn a_paused_machine_is_taken_over_and_what_it_writes_late_is_never_returned() {
    let disk = NvmeOptions::new(SERIAL, DEVICE_BYTES);
    let (mut first, image) = machine("first", &disk, "");
    first.ok(&format!("wirevault init {} --shared --key {KEY}", by_id(SERIAL)));
    let pid = first.spawn("wirevaultd --config /tmp/wirevault.yaml", "/tmp/log");
    wait_until_it_is(&mut first, "recording");
    let disk = NvmeOptions { image: Some(image), ..disk };
    let (mut second, _) = machine("second", &disk, "standby: true\n");
    let key = first.ok(&format!("cat {KEY}"));
    second.put(KEY, &key);
    second.ok(&format!("chmod 600 {KEY}"));
    second.spawn("wirevaultd --config /tmp/wirevault.yaml", "/tmp/log");
    wait_until_it_is(&mut second, "standby");

    let load = format!("lab-guest send vb {RUN} 1000000 {RATE} {PACKET_BYTES}");
    let load = first.spawn(&load, "/tmp/sender");
    wait_until_durable(&mut first, 4000);
    let promised = status(&mut first)["lanes"][0]["watermark"].as_u64().expect("a watermark");
    first.pause();
    wait_until_it_is(&mut second, "recording");
    send(&mut second, RUN + 1, 2000, RATE);
    wait_until_durable(&mut second, 2000);
    first.go_on();
    first.wait_for("the end of the first", &format!("! [ -d /proc/{pid} ]"));
    let said = first.ok("cat /tmp/log");
    assert!(said.contains("second took over with epoch 3"), "{said}");
    first.ok(&format!("kill {load}"));

    send(&mut second, RUN + 2, 2000, RATE);
    wait_until_durable(&mut second, 4000);
    let place = "--socket /tmp/socket";
    let (ranges, doubled) = numbers(&mut second, place, RUN);
    let last = ranges.first().map_or(0, |range| range.1);
    assert!(ranges.len() == 1 && ranges[0].0 == 0 && doubled == 0, "{ranges:?}, {doubled}");
    assert!(last + 1 >= promised, "{promised} were acknowledged, {last} is the last one there");
    for run in [RUN + 1, RUN + 2] {
        assert_eq!(numbers(&mut second, place, run), (vec![(0, 1999)], 0));
    }
    // The first machine reads the same, without a recorder.
    let offline = format!("--store {}", by_id(SERIAL));
    assert_eq!(numbers(&mut first, &offline, RUN), (ranges, 0));
    wait_for("the last segments", patience(), || {
        second.ok("kill $(pidof wirevaultd) 2>/dev/null; true");
        (second.run("pidof wirevaultd").code != 0).then_some(())
    });
    let verified = second.run(&format!("wirevault verify {offline} --json 2>/dev/null"));
    nothing_is_damaged(&verified.text);
    first.finish();
    second.finish();
}
