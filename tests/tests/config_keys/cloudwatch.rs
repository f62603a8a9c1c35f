//! The starts of the daemon for the keys of `cloudwatch`.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wirevault_testkit::net::{now_ns, wait_for};
use wirevault_tests::aws::Aws;
use wirevault_tests::captures::write_pcap;
use wirevault_tests::recorder::Site;

use crate::runs::{PATIENCE, file_packets};

/// The region that the configuration names; the environment names none.
const REGION: &str = "eu-north-1";

/// What an emulated CloudWatch was told.
pub(crate) struct CloudWatch {
    /// The publisher's status with defaults: there is none.
    pub(crate) plain: Value,
    /// The metrics that arrived with everything else: only the configuration names the place.
    pub(crate) metrics: Vec<Value>,
    /// Seconds of the periods' markers.
    pub(crate) markers_s: BTreeSet<u64>,
}

impl CloudWatch {
    /// Nothing if the emulator is not installed here.
    pub(crate) fn make() -> Option<Self> {
        let aws = Aws::start()?;
        let mut site = Site::new("272MiB", 1);
        let mut environment = aws.environment().to_vec();
        environment.retain(|(name, _)| !["AWS_ENDPOINT_URL", "AWS_REGION"].contains(name));
        site.set_environment(environment);
        let file = site.file("in.pcap");
        write_pcap(&file, &file_packets()[..10]);
        let input = format!("replay:\n  file: {}\n", file.display());
        let recorder = site.record_from(&input);
        let plain = recorder.status()["publish"].clone();
        assert!(recorder.terminate().success());

        let more = format!(
            "cloudwatch:\n  publish: true\n  namespace: Elsewhere\n  appliance: box\n  \
             period: 2s\n  region: {REGION}\n  endpoint: {}\n",
            aws.endpoint()
        );
        let recorder = site.record_from(&(input + &more));
        wait_for("four periods", 3 * PATIENCE, || {
            (recorder.status()["publish"]["sent_periods"].as_u64() >= Some(4)).then_some(())
        });
        let listed = aws.cloudwatch(REGION, "ListMetrics", &json!({}));
        let metrics = listed["Metrics"].as_array().expect("metrics").clone();
        let now_s = now_ns() / 1_000_000_000;
        let asked = json!({
            "Namespace": "Elsewhere", "MetricName": "PeriodsPublished", "Period": 1,
            "StartTime": now_s - 1_000, "EndTime": now_s + 60, "Statistics": ["SampleCount"],
        });
        let markers = aws.cloudwatch(REGION, "GetMetricStatistics", &asked);
        let markers = markers["Datapoints"].as_array().expect("data points").iter();
        let markers_s = markers.map(|marker| marker["Timestamp"].as_f64().expect("a time") as u64);
        Some(Self { plain, metrics, markers_s: markers_s.collect() })
    }
}
