//! What devices forget: places of deleted segments, and whole volumes.

use wirevault_tests::vm::{Kind, NvmeOptions, Vm};

use crate::faults::segments;
use crate::recorder::*;

#[test]
fn a_volume_is_erased_by_its_device_or_refused() {
    let mut vm = Vm::restore(Kind::Plain);
    let disk = vm.add_nvme(&NvmeOptions::new("ERASED", 512 << 20));
    let device = by_id("ERASED");
    let made = vm.ok(&format!("wirevault init {device} --plaintext"));
    let id = made.split_whitespace().nth(1).expect("the store's id").to_owned();
    let retire = |how: &str| format!("wirevault volume retire {device} --store {id} --erase {how}");

    // QEMU's devices offer Format and no Sanitize.
    let refused = vm.run(&retire("sanitize"));
    assert_eq!(refused.code, 2, "{}", refused.text);
    assert!(refused.text.contains("SANICAP is 0"), "{}", refused.text);
    vm.ok(&format!("wirevault verify --store {device}"));

    // Behind the volume's own parts, where nothing but the device's own erasing reaches.
    vm.ok(&format!(
        "tr '\\0' x </dev/zero | dd of={} bs=1M count=1 seek=300 iflag=fullblock oflag=direct",
        disk.block
    ));
    let said = vm.ok(&retire("format"));
    assert!(said.contains("the rest: Format NVM with "), "{said}");
    assert!(said.contains("256 blocks that were read afterwards 256 hold zeros"), "{said}");
    let left = "bs=1M count=1 skip=300 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c";
    assert_eq!(vm.ok(&format!("dd if={} {left}", disk.block)).trim(), "0");

    // What is mounted stays, whatever is asked.
    vm.ok(&format!("mke2fs -q -F {0} && mount -t ext4 {0} /mnt", disk.block));
    for verb in [retire("format"), format!("wirevault volume format {device} --force")] {
        let refused = vm.run(&verb);
        assert!(refused.code == 2 && refused.text.contains("mounted"), "{}", refused.text);
    }
    vm.finish();
}

/// A device that is written over under load: what is the oldest gives its place up, the device
/// forgets it, and the place is used again. One segment is deleted. What is left is found whole.
#[test]
fn a_device_is_written_round_under_load_and_forgets_what_is_given_up() {
    /// As small as a volume can be: sixteen places of 16 MiB, and what it has of its own.
    const SMALL_BYTES: u64 = 320 << 20;
    const LARGE_PACKET_BYTES: u64 = 8000;
    const RATE: u64 = 800;
    /// Packets of each run, whose answer has to fit into the guest's memory.
    const PACKETS: u64 = 5500;
    const RUNS: u16 = 8;
    let (mut vm, _) = site_of(Kind::Plain, &[NvmeOptions::new("ROUND", SMALL_BYTES)]);
    vm.ok("for i in va vb; do /usr/local/bin/ip link set $i mtu 9000; done");
    start(&mut vm);
    let load = |vm: &mut Vm, run: u16| {
        vm.ok(&format!("lab-guest send vb {run} {PACKETS} {RATE} {LARGE_PACKET_BYTES}"));
        wait_until_durable(vm, u64::from(run) * PACKETS);
    };
    let erased = |vm: &mut Vm| {
        let erased = status(vm)["volumes"][0]["erased"].clone();
        for wrong in ["other", "unread", "kept"] {
            assert_eq!(erased[wrong], 0, "{erased}");
        }
        erased["zeros"].as_u64().expect("a count")
    };
    load(&mut vm, 1);
    let before = erased(&mut vm);
    (2..=RUNS).for_each(|run| load(&mut vm, run));
    is_written_by(&mut vm, "passthrough");
    let forgotten = erased(&mut vm);
    assert!(forgotten > before, "{forgotten}, {before}");
    let live = "--socket /tmp/socket";
    // Packets of all runs, numbered through.
    let found = |vm: &mut Vm| {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for run in 1..=RUNS {
            let (found, doubled) = numbers(vm, live, run);
            assert_eq!(doubled, 0, "run {run}");
            let sent = u64::from(run - 1) * PACKETS;
            for (first, last) in found.iter().map(|(first, last)| (first + sent, last + sent)) {
                match ranges.last_mut().filter(|range| range.1 + 1 == first) {
                    Some(range) => range.1 = last,
                    None => ranges.push((first, last)),
                }
            }
        }
        ranges
    };
    let kept = found(&mut vm);
    let &[(first, last)] = kept.as_slice() else { panic!("{kept:?}") };
    assert!(first > 0 && last + 1 == u64::from(RUNS) * PACKETS, "{kept:?}");
    let kept_bytes = (last + 1 - first) * LARGE_PACKET_BYTES;
    assert!((SMALL_BYTES / 2..SMALL_BYTES).contains(&kept_bytes), "{kept_bytes}");
    let all = vm.run(&format!("wirevault query {live} udp --count 2>&1"));
    assert_eq!(all.code, 0, "what the quota took is no loss: {}", all.text);

    let rows = segments(&mut vm);
    let middle = rows.iter().filter(|row| row["state"] == "closed").nth(4);
    let middle = middle.expect("a closed segment");
    vm.ok(&format!("wirevault delete {live} --segment {} --yes", middle["ordinal"]));
    let left = found(&mut vm);
    let &[(_, before), (behind, _)] = left.as_slice() else { panic!("{left:?}") };
    assert_eq!(behind - before - 1, middle["packets"], "{left:?}");
    assert_eq!(erased(&mut vm), forgotten + 1);

    load(&mut vm, RUNS + 1);
    vm.ok("kill $(pidof wirevaultd)");
    vm.wait_for("the end of the recorder", "! pidof wirevaultd");
    let offline = format!("--store {}", by_id("ROUND"));
    assert_eq!(numbers(&mut vm, &offline, RUNS + 1), (vec![(0, PACKETS - 1)], 0));
    vm.ok(&format!("wirevault verify {offline}"));
    vm.finish();
}
