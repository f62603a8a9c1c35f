//! Volumes and the devices below them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which volume to replace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceBody {
    /// Its number. It takes no writes, or no segments.
    pub volume: u16,
    /// The new one: absolute path of an empty directory or device on the recorder's machine.
    pub path: String,
}

/// A volume that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Replaced {
    /// Its number.
    pub volume: u16,
    /// Where it was.
    pub was: String,
    /// Where the new one is.
    pub path: String,
}

/// Places of segments that were given up since the start, by what a few of their blocks read as
/// once the device had been told to forget them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErasedStatus {
    /// Zeros.
    pub zeros: u64,
    /// Something else.
    pub other: u64,
    /// Could not be read.
    pub unread: u64,
    /// The device takes no such order: the sealed bytes stay until they are written over.
    pub kept: u64,
}

/// One volume and its device queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeStatus {
    /// Path.
    pub path: String,
    /// Bytes that it may take.
    pub quota_bytes: u64,
    /// Bytes that it takes: its own file, closed segments, and open ones at full size.
    pub used_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Places for segments.
    pub places: u64,
    /// Of them bad: the device did not take what was written there, and they take nothing more.
    #[serde(default)]
    pub bad_places: u64,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// How it is: `ok`; `suspect` with the reason (a segment failed here, others are opened here
    /// only if no other volume takes them); `worn` (it has so many bad places that the same is
    /// done);
    /// `full` with the reason; `stalled` (its device does not answer at the moment, and segments
    /// that wait for it were given up); `failed` with the reason (it takes no more).
    pub state: String,
    /// The same in one word, as for the store.
    #[serde(default)]
    pub condition: String,
    /// Back end of its queue: `vfio`, `passthrough`, `io_uring`, `thread`; empty offline.
    pub backend: String,
    /// Why it is this one.
    #[serde(default)]
    pub backend_why: String,
    /// Whether writes go past the page cache.
    pub o_direct: bool,
    /// Whether chunks are written from memory that the kernel knows already.
    pub registered_buffers: bool,
    /// Whether files are registered with the kernel.
    pub registered_files: bool,
    /// What was wanted and is not so, with the reason.
    pub why_not: Vec<String>,
    /// Half of the writes took no longer, µs; an upper bound, at most twice too high.
    pub write_p50_us: Option<u64>,
    /// 99 % of the writes took no longer.
    pub write_p99_us: Option<u64>,
    /// Half of the flushes took no longer.
    pub sync_p50_us: Option<u64>,
    /// 99 % of the flushes took no longer.
    pub sync_p99_us: Option<u64>,
    /// Bytes written since the start.
    pub written_bytes: u64,
    /// Chunks that the device did not take, and that were sealed again for another segment or
    /// counted as dropped.
    pub failed_chunks: u64,
    /// The last write or flush that failed.
    pub error: Option<String>,
    /// What became of the bytes of segments that were given up, on volumes that are devices.
    #[serde(default)]
    pub erased: ErasedStatus,
    /// The device below, once it was asked.
    #[serde(default)]
    pub device: Option<DeviceStatus>,
}

/// The device below a volume, as it says of itself. What it does not tell is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// Its node at the moment.
    pub node: String,
    /// `instance_store`, `ebs`, `nvme` or `block`.
    pub kind: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// Firmware.
    pub firmware: String,
    /// Temperature.
    pub celsius: Option<i32>,
    /// Life used, percent of what the maker expects; may exceed 100.
    pub used_percent: Option<u8>,
    /// Spare capacity left, percent.
    pub spare_percent: Option<u8>,
    /// Bytes written to it in its life, by whomever.
    pub life_written_bytes: Option<u64>,
    /// Times that it could not recover data, in its life.
    pub media_errors: Option<u64>,
    /// Entries that its error log has had, in its life.
    #[serde(default)]
    pub error_entries: Option<u64>,
    /// EC2's devices: time in which more was asked of it than its limits allow, µs.
    pub throttled_us: Option<u64>,
    /// EC2's devices: 99 % of the writes took no longer inside the device, µs.
    pub device_write_p99_us: Option<u64>,
    /// What it warns of.
    pub warnings: Vec<String>,
    /// What could not be had, with the reason.
    pub why_not: Vec<String>,
}
