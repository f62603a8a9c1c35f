//! The starts of the daemon for the keys of `cloud`: a machine that a cloud tells of itself.

use serde_json::Value;
use wirevault_testkit::net::wait_for;
use wirevault_tests::captures::write_pcap;
use wirevault_tests::imds::Imds;
use wirevault_tests::recorder::{Recorder, Site};

use crate::runs::{PATIENCE, file_packets, site};

/// A recorder of a file on such a machine, with this in the section, and its store.
pub(crate) fn on_instance(imds: &Imds, keys: &str) -> (Recorder, Site) {
    let mut site = site(1);
    site.set_environment(imds.environment());
    let file = site.file("in.pcap");
    write_pcap(&file, &file_packets()[..10]);
    let cloud = if keys.is_empty() { String::new() } else { format!("cloud:\n  {keys}\n") };
    let recorder = site.record_from(&format!("{cloud}replay:\n  file: {}\n", file.display()));
    (recorder, site)
}

/// Waits until status says that of the instance; before it is known it is empty.
pub(crate) fn until(recorder: &Recorder, field: &str) -> Value {
    wait_for("what the cloud tells", PATIENCE, || {
        let instance = recorder.status()["instance"].clone();
        let told = !instance[field].is_null() && instance[field] != "";
        told.then_some(instance)
    })
}
