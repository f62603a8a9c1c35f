//! Two machines on one device: the one that records is paused under load, the other one takes over,
//! and the first goes on in the middle of what it did.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wirevault_format::limits::CHUNK_BYTES;
use wirevault_media::BlockMedia;
use wirevault_testkit::net::wait_for;
use wirevault_tests::recorder::nothing_is_damaged;
use wirevault_tests::vm::{Disk, Kind, NvmeOptions, Vm};

use crate::faults::newest_segment;
use crate::recorder::*;

const SERIAL: &str = "SHARED";
const DEVICE_BYTES: u64 = 2 << 30;
/// Bytes a second of a device that keeps up with a fifth of the load.
const SLOW_BYTES: u64 = 400_000;
/// Packets that wait then: eight chunks.
const WAITING: u64 = 2000;

/// A machine of that name with the device, and the configuration of its recorder.
fn machine(name: &str, disk: &NvmeOptions, more: &str) -> (Vm, Disk) {
    let mut vm = wired(Kind::Plain);
    vm.ok(&format!("echo {name} >/proc/sys/kernel/hostname; mkdir -p /etc/wirevault/keys"));
    let disk = vm.add_nvme(disk);
    let config = format!(
        "store: {}\nkey_file: {KEY}\n{more}api:\n  socket: /tmp/socket\n\
         buffer:\n  size: 64MiB\ncapture:\n  - interface: va\n    ring: 64MiB\n",
        by_id(SERIAL)
    );
    vm.put("/tmp/wirevault.yaml", &config);
    (vm, disk)
}

fn wait_until_it_is(vm: &mut Vm, state: &str) {
    let ask = "wirevault status --socket /tmp/socket --json >/tmp/status 2>&1";
    let is = format!("grep -q '\"state\": *\"{state}\"' /tmp/status");
    vm.wait_for(state, &format!("{ask}; {is} || {{ tail -3 /tmp/log; false; }}"));
}

/// The bytes of a place on the image, as a machine that starts now would read them.
fn place(image: &Path, place: u32) -> Vec<u8> {
    let label = BlockMedia::open(image).expect("the image").label().expect("a label");
    let mut bytes = vec![0; label.place_bytes as usize];
    let file = File::open(image).expect("the image");
    file.read_exact_at(&mut bytes, label.place_offset(place)).expect("the place");
    bytes
}

#[test]
fn a_paused_machine_is_taken_over_and_what_it_writes_late_is_never_returned() {
    let disk = NvmeOptions::new(SERIAL, DEVICE_BYTES);
    let (mut first, its) = machine("first", &disk, "");
    first.ok(&format!("wirevault init {} --shared --key {KEY}", by_id(SERIAL)));
    let pid = first.spawn("wirevaultd --config /tmp/wirevault.yaml", "/tmp/log");
    wait_until_it_is(&mut first, "recording");
    let disk = NvmeOptions { image: Some(its.image.clone()), ..disk };
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
    let open = newest_segment(&mut first)["place"].as_u64().expect("its place") as u32;
    // More than the device takes comes in: whenever it is paused, writes are under way and wait.
    first.slow(&its, SLOW_BYTES);
    wait_for("chunks to wait for the device", patience(), || {
        let lane = status(&mut first)["lanes"][0].clone();
        let count = |name: &str| lane[name].as_u64().expect("a count");
        (count("received") > count("stored") + WAITING).then_some(())
    });
    first.pause();
    wait_until_it_is(&mut second, "recording");
    send(&mut second, RUN + 1, 2000, RATE);
    wait_until_durable(&mut second, 2000);
    let before = place(&its.image, open);
    first.slow(&its, 0);
    first.go_on();
    first.wait_for("the end of the first", &format!("! [ -d /proc/{pid} ]"));
    let after = place(&its.image, open);
    let late = before.chunks(CHUNK_BYTES).zip(after.chunks(CHUNK_BYTES));
    assert!(late.filter(|(before, after)| before != after).count() > 0, "it wrote late");
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
