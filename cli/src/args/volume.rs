//! `volume`: devices without a file system.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use wirevault_format::StoreId;

use super::Place;

/// What is done with devices.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// List disks: model, serial number, who uses them, what is on them.
    #[command(after_help = "Example: wirevault volume list --json | jq -r '.devices[].path'")]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a device empty, so that `init` takes it. What is mounted is never touched.
    #[command(after_help = "\
Example: wirevault volume format /dev/disk/by-id/nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1A4FC2")]
    Format {
        /// Device.
        #[arg(value_name = "DEV")]
        device: PathBuf,
        /// Erase partitions, file systems and volumes of other stores that are there.
        #[arg(long)]
        force: bool,
    },
    /// Tell a store where one of its volumes is now: moved, or a device under another name.
    #[command(after_help = "\
Example: wirevault volume adopt /dev/disk/by-id/nvme-NEWNAME --store /dev/disk/by-id/nvme-OTHER")]
    Adopt {
        /// The volume, where it is now.
        #[arg(value_name = "DEV")]
        volume: PathBuf,
        /// Another volume of its store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// Record it; without this it is only looked at.
        #[arg(long)]
        yes: bool,
    },
    /// Give a store a new, empty volume for one that is gone with what it held. While it records,
    /// the recorder does it.
    #[command(after_help = "\
Example: wirevault volume replace 1 /dev/disk/by-id/nvme-NEW --yes")]
    Replace {
        /// Number of the volume that is gone.
        #[arg(value_name = "NUMBER")]
        number: u16,
        /// The new one: an empty directory or device.
        #[arg(value_name = "DEV")]
        volume: PathBuf,
        #[command(flatten)]
        place: Place,
        /// Do it: what the old volume held is given up.
        #[arg(long)]
        yes: bool,
    },
    /// Hand back to the kernel devices that a recorder drove itself (`vfio`) when it was killed.
    #[command(after_help = "Example: wirevault volume release")]
    Release,
    /// End a volume: erase its tables and keys, then everything else.
    #[command(after_help = "\
Example: wirevault volume retire /dev/nvme1n1 --store 5f0c0a7c9d1e4b0f8a6b2c3d4e5f6071")]
    Retire {
        /// Device.
        #[arg(value_name = "DEV")]
        device: PathBuf,
        /// Store that it belongs to: so that no other device is hit.
        #[arg(long, value_name = "ID")]
        store: StoreId,
        /// How the rest is erased, beside tables and keys.
        #[arg(long, value_name = "HOW", default_value = "discard")]
        erase: EraseHow,
    },
}

/// How a device is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EraseHow {
    /// The device is told that nothing on it is wanted.
    Discard,
    /// Format NVM, with cryptographic erase where the device offers that.
    Format,
    /// Sanitize, spare areas and caches included; where the device offers it.
    Sanitize,
}
