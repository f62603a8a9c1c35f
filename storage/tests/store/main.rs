//! A store on simulated disks and in directories: crashes, quotas, devices that fail.

mod adopt;
mod bad_places;
mod checks;
mod crash;
mod directory;
mod every_byte;
mod faults;
mod forgetting;
mod holding;
mod outage;
mod quota;
mod recovery_table;
mod rejoin;
mod replace;
mod room;
mod rotation;
mod support;
mod takeover;
mod watched;
mod workload;
