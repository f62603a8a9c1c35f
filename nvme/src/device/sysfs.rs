//! The walk through /sys.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::NvmeError;

use super::usage::{Part, Users};
use super::{Controller, Device, DeviceKind, Namespace, Roots};

/// Bytes of the unit of `size`, whatever the device's own block is.
const SECTOR_BYTES: u64 = 512;

pub(super) fn devices(roots: &Roots) -> Result<Vec<Device>, NvmeError> {
    let block = roots.sys.join("block");
    let names =
        names_in(&block).map_err(|source| NvmeError::Discover { path: block.clone(), source })?;
    let users = Users::read(&roots.proc)?;
    Ok(names
        .into_iter()
        .filter_map(|name| device(roots, &users, &block.join(&name), name))
        .collect())
}

/// Name of the device that has this number, or a partition of this number.
pub(super) fn device_of(roots: &Roots, (major, minor): (u32, u32)) -> Option<String> {
    let link = roots.sys.join("dev/block").join(format!("{major}:{minor}"));
    let dir = fs::canonicalize(link).ok()?;
    let dir = if dir.join("partition").exists() { dir.parent()? } else { &dir };
    Some(dir.file_name()?.to_str()?.to_owned())
}

/// One device; nothing if it is none of ours, or goes away while we look.
fn device(roots: &Roots, users: &Users, dir: &Path, name: String) -> Option<Device> {
    let bytes = number::<u64>(&dir.join("size"))? * SECTOR_BYTES;
    let is_memory = ["ram", "zram"].iter().any(|prefix| name.starts_with(prefix));
    if bytes == 0 || is_memory || flag(&dir.join("hidden")) {
        return None;
    }
    let node = node_of(roots, &name);
    // The controller, or where several lead to the namespace, the subsystem. Both have a model.
    let parent = dir.join("device");
    let nvme = number::<u32>(&dir.join("nsid")).map(|id| Namespace {
        id,
        generic_node: generic_node(roots, &name),
        wwid: text(&dir.join("wwid")).filter(|it| !it.is_empty()),
        controllers: controllers(roots, &parent),
    });
    let model = text(&parent.join("model")).unwrap_or_default();
    let serial = text(&parent.join("serial")).or_else(|| text(&dir.join("serial")));
    let serial = serial.unwrap_or_default();
    let queue = dir.join("queue");
    let limit = |attribute: &str| number::<u64>(&queue.join(attribute));
    let small = |attribute: &str| number::<u32>(&queue.join(attribute)).filter(|it| *it > 0);
    let lba_bytes = small("logical_block_size")?;
    let parts = parts(dir, &name);
    Some(Device {
        by_id: by_id(roots, &name, &serial),
        number: device_number(dir)?,
        kind: DeviceKind::of(nvme.is_some(), &model, &serial),
        model,
        serial,
        bytes,
        lba_bytes,
        physical_block_bytes: small("physical_block_size").unwrap_or(lba_bytes),
        transfer_bytes_max: limit("max_hw_sectors_kb").unwrap_or_default() << 10,
        volatile_cache: text(&queue.join("write_cache")).is_some_and(|it| it == "write back"),
        fua: flag(&queue.join("fua")),
        polled_queues: flag(&queue.join("io_poll")),
        discard_bytes_max: limit("discard_max_bytes").unwrap_or_default(),
        read_only: flag(&dir.join("ro")),
        numa_node: numa_node(&parent, nvme.as_ref().map(|it| it.controllers.as_slice()), roots),
        uses: users.of(&parts, &roots.dev),
        node,
        name,
        nvme,
    })
}

/// The device itself, then its partitions.
fn parts(dir: &Path, name: &str) -> Vec<Part> {
    let part = |dir: &Path, name: &str, is_whole| {
        Some(Part {
            name: name.to_owned(),
            number: device_number(dir)?,
            holders: names_in(&dir.join("holders")).unwrap_or_default(),
            is_whole,
        })
    };
    let inner = names_in(dir).unwrap_or_default();
    let inner = inner.iter().filter(|it| dir.join(it).join("partition").exists());
    let inner = inner.filter_map(|it| part(&dir.join(it), it, false));
    part(dir, name, true).into_iter().chain(inner).collect()
}

fn controllers(roots: &Roots, parent: &Path) -> Vec<Controller> {
    let controller = |dir: PathBuf, name: String| {
        let attribute = |it: &str| text(&dir.join(it)).unwrap_or_default();
        Controller {
            node: roots.dev.join(&name),
            firmware: attribute("firmware_rev"),
            transport: attribute("transport"),
            address: attribute("address"),
            state: attribute("state"),
            name,
        }
    };
    // A controller has a transport; a subsystem has its controllers instead.
    if parent.join("transport").exists() {
        let name = fs::canonicalize(parent).ok();
        let name = name.as_deref().and_then(Path::file_name).and_then(|it| it.to_str());
        return name.map(|it| controller(parent.to_owned(), it.to_owned())).into_iter().collect();
    }
    let names = names_in(parent).unwrap_or_default();
    let names = names.into_iter().filter(|it| parent.join(it).join("transport").exists());
    names.map(|name| controller(parent.join(&name), name)).collect()
}

/// The node of the bus device below the (first) controller.
fn numa_node(parent: &Path, controllers: Option<&[Controller]>, roots: &Roots) -> Option<u32> {
    let below = controllers.and_then(<[_]>::first).map_or(parent.to_owned(), |first| {
        roots.sys.join("class/nvme").join(&first.name).join("device")
    });
    // -1 stands for a machine with one node.
    number::<i64>(&below.join("numa_node")).and_then(|node| u32::try_from(node).ok())
}

/// `ng0n1` belongs to `nvme0n1`.
fn generic_node(roots: &Roots, name: &str) -> Option<PathBuf> {
    let generic = format!("ng{}", name.strip_prefix("nvme")?);
    let known = roots.sys.join("class/nvme-generic").join(&generic).exists();
    known.then(|| roots.dev.join(generic))
}

/// The shortest link that carries the serial number and leads to this device.
fn by_id(roots: &Roots, name: &str, serial: &str) -> Option<PathBuf> {
    let dir = roots.dev.join("disk/by-id");
    let leads_here = |link: &PathBuf| {
        fs::read_link(link).is_ok_and(|to| to.file_name().is_some_and(|it| it == name))
    };
    let names = names_in(&dir).unwrap_or_default().into_iter();
    // udev writes blanks within a serial number as `_`.
    let serial = serial.replace(' ', "_");
    let links = names.filter(|it| !serial.is_empty() && it.contains(&serial));
    let links = links.map(|it| dir.join(it)).filter(leads_here);
    links.min_by_key(|link| link.as_os_str().len())
}

fn device_number(dir: &Path) -> Option<(u32, u32)> {
    let text = text(&dir.join("dev"))?;
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn node_of(roots: &Roots, name: &str) -> PathBuf {
    // The kernel writes `/` in names of nodes as `!` (cciss!c0d0).
    roots.dev.join(name.replace('!', "/"))
}

/// Names in a folder, sorted.
fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

/// An attribute without the blanks around it: the kernel pads serial numbers to 20 characters.
fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

fn flag(path: &Path) -> bool {
    text(path).is_some_and(|text| text == "1")
}
