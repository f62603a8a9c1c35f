//! What devices forget: places of deleted segments, and whole volumes.

use wirevault_tests::vm::{Kind, NvmeOptions, Vm};

use crate::recorder::by_id;

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
