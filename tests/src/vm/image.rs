//! What a machine starts from: the kernel, its first files, and a disk with our programs.
//!
//! The first files are saved with the machine, so our programs are not among them: they come on a
//! disk of their own, which each test adds. A change of them costs no boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache;
use super::packages::{Packages, succeed};

/// First process of the guest.
const INIT: &str = include_str!("../../vm/init");
/// Modules, in any order; what they depend on comes with them.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "veth", "vfio_pci", "vfio_iommu_type1", "loop", "dm_log_writes"];
/// Programs of this system that the guest has.
const TOOLS: &[&str] = &["ip", "mke2fs", "blkdiscard"];
/// Bytes of the disk with our programs. Sparse; what is not used is never written.
const PROGRAMS_BYTES: u64 = 768 << 20;

/// Kernel and first files.
#[derive(Debug, Clone)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// From the cache, or made of the packages.
    pub fn get(packages: &Packages) -> Self {
        let parts = [packages.versions(), INIT, &MODULES.join(" "), &TOOLS.join(" ")];
        let name = format!("image-{}", cache::key(&parts));
        let folder = cache::made(&cache::root(), &name, |folder| {
            let kernel = fs::read(packages.kernel()).expect("kernel");
            fs::write(folder.join("vmlinux"), uncompressed(&kernel)).expect("kernel");
            fs::write(folder.join("first"), first_files(packages)).expect("first files");
        });
        cache::keep_newest(&cache::root(), "image-", 3);
        Self { folder }
    }

    /// The kernel as an ELF file: it starts sooner than a compressed one.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// Archive of the first files.
    pub fn first_files(&self) -> PathBuf {
        self.folder.join("first")
    }

    /// Changes with whatever is in the image.
    pub fn key(&self) -> String {
        self.folder.file_name().expect("name").to_string_lossy().into_owned()
    }
}

/// An ext4 image with these programs in `bin` and their libraries in `lib`.
pub fn programs_disk(programs: &[PathBuf]) -> PathBuf {
    let facts = |program: &PathBuf| {
        let facts = fs::metadata(program).unwrap_or_else(|error| {
            panic!(
                "{}: {error}: cargo build -p wirevault-cli -p wirevault-daemon",
                program.display()
            )
        });
        let changed = facts.modified().expect("time of change");
        format!("{} {} {changed:?}", program.display(), facts.len())
    };
    let facts: Vec<_> = programs.iter().map(facts).collect();
    let within = cache::target().join("vm");
    let name = format!("programs-{}", cache::key(&[&facts.join("\n")]));
    let folder = cache::made(&within, &name, |folder| {
        let files = folder.join("files");
        let (bin, lib) = (files.join("bin"), files.join("lib"));
        for part in [&bin, &lib] {
            fs::create_dir_all(part).expect("folder");
        }
        for program in programs {
            let copy = bin.join(program.file_name().expect("name"));
            succeed(Command::new("strip").arg("-o").arg(&copy).arg(program));
            for library in libraries(program, "") {
                fs::copy(&library, lib.join(library.file_name().expect("name"))).expect("library");
            }
        }
        let image = folder.join("disk");
        let disk = fs::File::create(&image).expect("disk");
        disk.set_len(PROGRAMS_BYTES).expect("length");
        let options = ["-q", "-t", "ext4", "-F", "-O", "^has_journal", "-d"];
        succeed(Command::new("mke2fs").args(options).arg(&files).arg(&image));
        fs::remove_dir_all(files).expect("folder");
    });
    cache::keep_newest(&within, "programs-", 2);
    folder.join("disk")
}

/// The ELF file in a kernel as packages have it (boot protocol of x86: payload offset and length at
/// 0x248 and 0x24c, from behind the setup sectors; the last four bytes are the length inside).
fn uncompressed(kernel: &[u8]) -> Vec<u8> {
    let u32_at =
        |at: usize| u32::from_le_bytes(kernel[at..at + 4].try_into().expect("four bytes")) as usize;
    let from = (usize::from(kernel[0x1f1]) + 1) * 512 + u32_at(0x248);
    let payload = &kernel[from..from + u32_at(0x24c) - 4];
    assert!(payload.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]), "the kernel is not packed with zstd");
    zstd::decode_all(payload).expect("a kernel packed with zstd")
}

fn first_files(packages: &Packages) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("init", INIT.as_bytes(), 0o755);
    let busybox = packages.file("bin/busybox");
    archive.add_file("bin/busybox", &busybox);
    archive.add_link("bin/sh", "busybox");
    let tools = TOOLS.iter().map(|tool| found(tool));
    for program in tools.chain([packages.file("usr/sbin/nvme")]) {
        let name = program.file_name().expect("name").to_string_lossy().into_owned();
        archive.add_file(&format!("usr/local/bin/{name}"), &program);
        for library in libraries(&program, &packages.libraries()) {
            let name = library.file_name().expect("name").to_string_lossy().into_owned();
            archive.add_file(&format!("usr/local/lib/{name}"), &library);
            if name.starts_with("ld-linux") {
                archive.add_file(&format!("lib64/{name}"), &library);
            }
        }
    }
    let modules = Modules::read(&packages.modules(), &busybox);
    let mut order = Vec::new();
    MODULES.iter().for_each(|name| modules.in_order(name, &mut order));
    for name in &order {
        archive.add(&format!("lib/modules/{name}.ko"), &modules.bytes(name), 0o644);
    }
    let order: String = order.iter().map(|name| format!("{name}.ko\n")).collect();
    archive.add("lib/modules/order", order.as_bytes(), 0o644);
    for folder in ["dev", "proc", "sys"] {
        archive.add_folder(folder);
    }
    archive.finish()
}

/// A program of this system.
pub(super) fn found(name: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let paths = folders.iter().map(|folder| Path::new(folder).join(name));
    let mut paths = paths.filter(|path| path.exists());
    paths
        .next()
        .unwrap_or_else(|| panic!("there is no `{name}` here: ./test installs what it needs"))
}

/// Shared libraries that a program loads, its loader included.
fn libraries(program: &Path, more: &str) -> Vec<PathBuf> {
    let said = succeed(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", more));
    assert!(!said.contains("not found"), "{}: {said}", program.display());
    let words =
        said.lines().filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')));
    words.map(PathBuf::from).collect()
}

/// Modules of one kernel, by name. Packages bring no `modules.dep`: that is made on installing.
struct Modules {
    files: BTreeMap<String, PathBuf>,
    busybox: PathBuf,
}

impl Modules {
    fn read(folder: &Path, busybox: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("modules") {
                let path = entry.expect("entry").path();
                let name = path.file_name().expect("name").to_string_lossy().into_owned();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if let Some((name, "ko" | "ko.xz")) = name.split_once('.') {
                    files.insert(name.replace('-', "_"), path);
                }
            }
        }
        Self { files, busybox: busybox.to_owned() }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let path = &self.files[name];
        if path.extension().is_some_and(|extension| extension == "ko") {
            return fs::read(path).expect("module");
        }
        let mut command = Command::new(&self.busybox);
        let output = command.args(["xz", "-dc"]).arg(path).stdin(Stdio::null()).output();
        let output = output.expect("busybox");
        assert!(output.status.success() && !output.stdout.is_empty(), "{}", path.display());
        output.stdout
    }

    /// Appends the module and all that it needs, those first. A name without a file is built in.
    fn in_order(&self, name: &str, order: &mut Vec<String>) {
        let name = name.replace('-', "_");
        if order.contains(&name) || !self.files.contains_key(&name) {
            return;
        }
        let bytes = self.bytes(&name);
        for needed in depends(&bytes) {
            self.in_order(&needed, order);
        }
        order.push(name);
    }
}

/// Names that a module's information gives as needed: `depends=a,b` among texts closed by zeros.
fn depends(module: &[u8]) -> BTreeSet<String> {
    let texts = module.split(|byte| *byte == 0);
    let lists = texts.filter_map(|text| text.strip_prefix(b"depends="));
    let names = lists.flat_map(|list| list.split(|byte| *byte == b','));
    names.filter(|name| !name.is_empty()).map(|n| String::from_utf8_lossy(n).into_owned()).collect()
}

/// A cpio archive ("newc"), as the kernel unpacks it (initramfs buffer format in its documents).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    fn add_file(&mut self, name: &str, path: &Path) {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mode = fs::metadata(path).map_or(Permissions::from_mode(0o755), |it| it.permissions());
        self.add(name, &bytes, mode.mode() & 0o777);
    }

    fn add(&mut self, name: &str, bytes: &[u8], mode: u32) {
        self.entry(name, bytes, 0o100_000 | mode);
    }

    fn add_link(&mut self, name: &str, to: &str) {
        self.entry(name, to.as_bytes(), 0o120_777);
    }

    fn add_folder(&mut self, name: &str) {
        self.entry(name, &[], 0o040_755);
    }

    fn entry(&mut self, name: &str, bytes: &[u8], mode: u32) {
        if let Some((folder, _)) = name.rsplit_once('/') {
            self.add_folder(folder);
        }
        if self.known.insert(name.to_owned()) {
            self.header(name, bytes, mode);
        }
    }

    fn header(&mut self, name: &str, bytes: &[u8], mode: u32) {
        let size = u32::try_from(bytes.len()).expect("a small file");
        let number = u32::try_from(self.known.len()).expect("few files");
        let name_bytes = u32::try_from(name.len() + 1).expect("a short name");
        // Inode, mode, owner, group, links, time, size, device twice two, name, checksum.
        let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_bytes, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", &[], 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let module = b"\x7fELF\0license=GPL\0depends=virtio,virtio_ring\0depends=\0name=x\0";
        assert_eq!(depends(module).into_iter().collect::<Vec<_>>(), ["virtio", "virtio_ring"]);
    }

    #[test]
    fn an_archive_is_as_cpio_has_it() {
        let mut archive = Archive::default();
        archive.add("a/b", b"12345", 0o644);
        archive.add("a/c", b"", 0o600);
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4, "folder, two files, trailer");
        // Header of 110 bytes, name and its zero, all rounded up to four.
        assert!(text[112..].starts_with("070701"), "{text}");
        assert_eq!(bytes.len() % 4, 0);
    }
}
