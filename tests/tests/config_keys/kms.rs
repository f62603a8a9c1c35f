//! The starts of the daemon for the keys of `kms`: a store whose key an emulated AWS KMS keeps.

use serde_json::{Value, json};
use wirevault_testkit::net::wait_for;
use wirevault_tests::aws::Aws;
use wirevault_tests::captures::write_pcap;
use wirevault_tests::recorder::{Recorder, Site};

use crate::runs::{PATIENCE, file_packets};

/// What status said of the key.
pub(crate) struct Kms {
    /// With defaults, and again some time later.
    pub(crate) plain: [Value; 2],
    /// With short epochs, two ahead, and `stop`; and again when the next epoch had begun.
    pub(crate) changed: [Value; 2],
    /// The same without an answer of KMS, until the epochs were used up.
    pub(crate) exhausted: Value,
    /// The same with a disabled key.
    pub(crate) revoked: Value,
    /// Of a third run, with a public key of this private one, when KMS refused the first key.
    pub(crate) sealed: Value,
    pub(crate) sealing: String,
    /// Calls of the second run: it was told KMS's address by the configuration alone.
    pub(crate) calls: Vec<String>,
}

impl Kms {
    /// Nothing if the emulator is not installed here.
    pub(crate) fn make() -> Option<Self> {
        let aws = Aws::start()?;
        let key = aws.create_key();
        let mut site = Site::with_kms_key(&aws, &key);
        let file = site.file("in.pcap");
        write_pcap(&file, &file_packets()[..10]);
        let input = format!("replay:\n  file: {}\n", file.display());
        let recorder = site.record_from(&input);
        let first = until(&recorder, |key| key["epochs_ahead"] == 3);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        let plain = [first, recorder.status()["key"].clone()];
        recorder.terminate();

        let mut environment = aws.environment().to_vec();
        environment.retain(|(name, _)| *name != "AWS_ENDPOINT_URL");
        site.set_environment(environment);
        aws.calls();
        let more = format!(
            "kms:\n  endpoint: {}\n  epoch_age: 1s\n  epochs_ahead: 2\n  when_exhausted: stop\n  \
             when_revoked: stop\n",
            aws.endpoint()
        );
        let file_input = input.clone();
        let recorder = site.record_from(&(input + &more));
        let first = until(&recorder, |key| key["epochs_ahead"] == 2);
        let later = until(&recorder, |key| key["epoch_since"] != first["epoch_since"]);
        let calls = aws.calls();
        aws.set_faults(&json!([{"op": "*", "code": "KMSInternalException", "status": 500,
                                "count": 1_000_000}]));
        let exhausted = until(&recorder, |key| key["condition"] == "exhausted");
        aws.set_faults(&json!([]));
        until(&recorder, |key| key["condition"] == "ready");
        aws.change_key("DisableKey", &key);
        let revoked = until(&recorder, |key| key["condition"] == "revoked");
        recorder.terminate();

        aws.change_key("EnableKey", &key);
        let (sealing, public) = aws.create_rsa_key();
        let pem = site.file("seal.pem");
        std::fs::write(&pem, public).expect("a PEM file");
        let seal = format!(
            "kms:\n  endpoint: {}\n  when_revoked: seal\n  public_key: {}\n  \
             public_key_of: {sealing}\n",
            aws.endpoint(),
            pem.display()
        );
        let recorder = site.record_from(&(file_input + &seal));
        until(&recorder, |key| key["condition"] == "ready");
        aws.change_key("DisableKey", &key);
        let sealed = until(&recorder, |key| key["one_way"] != Value::Null);
        recorder.terminate();
        Some(Self { plain, changed: [first, later], exhausted, revoked, sealed, sealing, calls })
    }
}

fn until(recorder: &Recorder, is: impl Fn(&Value) -> bool) -> Value {
    wait_for("the key's state", 2 * PATIENCE, || {
        let key = recorder.status()["key"].clone();
        is(&key).then_some(key)
    })
}
