//! A recorder on a small file system that it shares with others: what `du` and `df` say of it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use wirevault_testkit::net::Stamp;
use wirevault_tests::captures::{Packet, write_pcap};
use wirevault_tests::recorder::program;

const DISK_BYTES: u64 = 640 << 20;
const QUOTA_BYTES: u64 = 272 << 20;
/// Some segments of 16 MiB.
const PACKETS: u64 = 60_000;
const PACKET_BYTES: u16 = 1200;

/// A file system in a file, mounted.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// `None` where nothing can be mounted.
    fn mount() -> Option<Self> {
        let disk = Self { folder: tempfile::tempdir().expect("folder") };
        let image = disk.folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(DISK_BYTES)).expect("image");
        fs::create_dir(disk.path()).expect("mount point");
        let did = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        // Without room that only root may use: the numbers are then those of `df`.
        let made = did(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(&image));
        let mounted =
            made && did(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        if !mounted {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "nothing can be mounted here");
            println!("SKIPPED: nothing can be mounted here");
        }
        mounted.then_some(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn free_bytes(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.path()).expect("statvfs");
        stat.blocks_available() * stat.fragment_size()
    }

    fn total_bytes(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(&self.path()).expect("statvfs");
        stat.blocks() * stat.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It fails where nothing was mounted.
        let _ = Command::new("umount").arg(self.path()).output();
    }
}

/// Bytes that the files of a folder occupy, as `du` counts them.
fn du_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("folder");
    files.map(|file| file.expect("file").metadata().expect("metadata").blocks() * 512).sum()
}

fn segments(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).expect("folder");
    let names = files.map(|file| file.expect("file").file_name().into_string().expect("name"));
    names.filter(|name| name.ends_with(".pcapng")).collect()
}

fn run(arguments: &[&str]) {
    let output = Command::new(program("wirevault")).args(arguments).output().expect("wirevault");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_small_disk_holds_no_more_than_the_quota_and_keeps_its_reserve() {
    let Some(disk) = Disk::mount() else { return };
    let (store, capture) = (disk.path().join("store"), disk.folder.path().join("in.pcap"));
    let (store_text, capture_text) = (store.display().to_string(), capture.display().to_string());
    let packet = |number: u64| {
        let bytes = PACKET_BYTES;
        let stamp = Stamp { run: 1, number, sent_ns: 0, flow: 1, bytes, vlan: 0 };
        let ts_ns = 1_700_000_000_000_000_000 + number;
        Packet { ts_ns, orig_len: u32::from(bytes), data: stamp.frame() }
    };
    write_pcap(&capture, &(0..PACKETS).map(packet).collect::<Vec<_>>());
    let quota = QUOTA_BYTES.to_string();
    run(&["init", &store_text, "--quota", &quota, "--plaintext"]);
    let import = || run(&["import", "--store", &store_text, &capture_text]);
    for _ in 0..6 {
        import();
        let bytes = du_bytes(&store);
        assert!(bytes <= QUOTA_BYTES, "{bytes} bytes");
    }
    let whole = segments(&store).len();
    assert!(du_bytes(&store) > QUOTA_BYTES / 2, "the quota was reached");

    // Somebody else takes all but a little.
    let reserve_bytes = disk.total_bytes() / 10;
    let file = File::create(disk.path().join("somebody.else")).expect("file");
    let taken = (disk.free_bytes() - (24 << 20)) as i64;
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, taken).expect("room");
    import();
    let (left, free_bytes) = (segments(&store).len(), disk.free_bytes());
    assert!(left < whole, "{left} of {whole} segments");
    // What was open at its end was cut, so that there is more rather than less.
    assert!(free_bytes >= reserve_bytes, "{free_bytes} bytes are free of {reserve_bytes}");

    drop(file);
    fs::remove_file(disk.path().join("somebody.else")).expect("it was there");
    (0..5).for_each(|_| import());
    assert_eq!(segments(&store).len(), whole, "the share is its own again");
    assert!(du_bytes(&store) <= QUOTA_BYTES);
}
