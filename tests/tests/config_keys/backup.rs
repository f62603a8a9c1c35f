//! The starts of the daemon for the keys of `backup`, with AWS Backup on loopback.

use serde_json::Value;
use wirevault_testkit::net::wait_for;
use wirevault_tests::captures::write_pcap;
use wirevault_tests::vault::{ROLE, VAULT, VOLUME, Vault};

use crate::runs::{PATIENCE, file_packets, site};

/// What the other run asks for.
pub(crate) const OTHER_VAULT: &str = "elsewhere";
pub(crate) const OTHER_ROLE: &str = "arn:aws:iam::123456789012:role/other";
pub(crate) const OTHER_VOLUME: &str = "arn:aws:ec2:us-east-1:123456789012:volume/vol-0fedcba9";

/// The orders of two runs.
pub(crate) struct Backed {
    /// With nothing but what must be there, until the first was done.
    pub(crate) plain: Vec<Value>,
    /// With everything else, until there was a second one.
    pub(crate) changed: Vec<Value>,
}

impl Backed {
    pub(crate) fn make() -> Self {
        let plain = orders(&[VAULT, ROLE, VOLUME], "", 1);
        let more = "  every: 1s\n  retention: 2days\n";
        let changed = orders(&[OTHER_VAULT, OTHER_ROLE, OTHER_VOLUME], more, 2);
        Self { plain, changed }
    }
}

fn orders(names: &[&str; 3], more: &str, wanted: usize) -> Vec<Value> {
    let [vault_name, role, resource] = names;
    let vault = Vault::start(&["COMPLETED"]);
    vault.script(&[VAULT, OTHER_VAULT], &[ROLE, OTHER_ROLE], &["COMPLETED"], None);
    let mut site = site(1);
    site.set_environment(vault.environment());
    let (file, folder) = (site.file("in.pcap"), site.file("state"));
    write_pcap(&file, &file_packets()[..10]);
    let recorder = site.record_from(&format!(
        "snapshots:\n  folder: {}\nbackup:\n  vault: {vault_name}\n  role: {role}\n  \
         resource: {resource}\n{more}replay:\n  file: {}\n",
        folder.display(),
        file.display()
    ));
    wait_for("orders", PATIENCE, || (vault.jobs().len() >= wanted).then_some(()));
    assert!(recorder.terminate().success());
    vault.jobs()
}
