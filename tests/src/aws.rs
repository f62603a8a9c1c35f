//! AWS on loopback: `tests/aws/awsfake.py`, and the programs under test pointed at it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use wirevault_testkit::net::now_ns;

use crate::readers::{self, missing};

/// What the programs sign with; the emulator knows no other.
pub(crate) const ACCESS_KEY: &str = "AKIDRECORDER";
pub(crate) const SECRET_KEY: &str = "secret";
/// The region that the programs under test find in their environment.
pub const REGION: &str = "eu-central-1";
/// Name of the bucket that a double has.
pub const BUCKET: &str = "recorder-tier";

/// The emulator. Dropping it ends it.
pub struct Aws {
    child: Child,
    port: u16,
}

impl Aws {
    /// Starts it; `None`, loudly, if its Python packages are not installed here, which fails where
    /// `CI` is set.
    ///
    /// # Panics
    /// If it starts and does not serve.
    pub fn start() -> Option<Self> {
        let python = readers::interpreter();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("aws/awsfake.py");
        let mut command = Command::new(&python);
        command.arg(script).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return missing(&python.display().to_string(), &error.to_string()),
        };
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("its port");
        match line.trim().parse() {
            Ok(port) => Some(Self { child, port }),
            Err(_) => {
                let ended = child.wait().expect("it ended");
                missing("the Python package `moto` with `flask`", &ended.to_string())
            }
        }
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What a program needs in its environment to find it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        environment_of(self.port)
    }

    /// A new key's ARN.
    pub fn create_key(&self) -> String {
        let made = self.kms("CreateKey", &json!({}));
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// ARN of a new key that makes codes of messages, and nothing else.
    pub fn create_mac_key(&self) -> String {
        let usage = json!({ "KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC" });
        let made = self.kms("CreateKey", &usage);
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    }

    /// A new RSA key's ARN, and its public half as PEM.
    pub fn create_rsa_key(&self) -> (String, String) {
        let usage = json!({ "KeySpec": "RSA_4096", "KeyUsage": "ENCRYPT_DECRYPT" });
        let made = self.kms("CreateKey", &usage);
        let arn = made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned();
        let known = self.kms("GetPublicKey", &json!({ "KeyId": arn.rsplit('/').next() }));
        let der = known["PublicKey"].as_str().expect("a public key");
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
        (arn, pem)
    }

    /// Does something to a key, as an administrator would: `DisableKey`, `CancelKeyDeletion` and
    /// such.
    ///
    /// # Panics
    /// If it refuses.
    pub fn change_key(&self, operation: &str, arn: &str) {
        // moto knows keys by their bare ids here.
        self.kms(operation, &json!({ "KeyId": arn.rsplit('/').next() }));
    }

    fn kms(&self, operation: &str, body: &Value) -> Value {
        self.ask("kms", REGION, &format!("TrentService.{operation}"), body)
    }

    /// Asks CloudWatch, in the protocol that the programs under test do not speak.
    ///
    /// # Panics
    /// If it refuses.
    pub fn cloudwatch(&self, region: &str, operation: &str, body: &Value) -> Value {
        self.ask("monitoring", region, &format!("GraniteServiceVersion20100801.{operation}"), body)
    }

    /// Sum of all values of a metric of an appliance.
    pub fn sum(&self, appliance: &str, metric: &str) -> u64 {
        let now_s = now_ns() / 1_000_000_000;
        let answer = self.cloudwatch(
            REGION,
            "GetMetricStatistics",
            &json!({
                "Namespace": "Wirevault", "MetricName": metric, "Period": 60,
                "Dimensions": [{"Name": "Appliance", "Value": appliance}],
                "StartTime": now_s - 3 * 3600, "EndTime": now_s + 60, "Statistics": ["Sum"],
            }),
        );
        let points = answer["Datapoints"].as_array().expect("data points");
        points.iter().map(|point| point["Sum"].as_f64().expect("a sum") as u64).sum()
    }

    fn ask(&self, service: &str, region: &str, target: &str, body: &Value) -> Value {
        let (head, answer) = self.try_ask(service, region, target, body);
        assert!(head[8..].starts_with(" 200"), "{head}\n{answer}");
        answer
    }

    /// The head of the answer, and what it says.
    pub fn try_ask(
        &self,
        service: &str,
        region: &str,
        target: &str,
        body: &Value,
    ) -> (String, Value) {
        let signed = format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20261121/{region}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0"
        );
        let headers = [
            ("X-Amz-Target", target),
            ("Authorization", &signed),
            ("Content-Type", "application/x-amz-json-1.1"),
        ];
        self.exchange("/", &headers, body)
    }

    /// From now on calls meet these faults; see the emulator for their fields.
    pub fn set_faults(&self, faults: &Value) {
        self.post("/_fake/faults", &[], faults);
    }

    /// Names of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<String> {
        let calls = self.post("/_fake/calls", &[], &Value::Null);
        serde_json::from_value(calls).expect("names")
    }

    /// Changes what S3 has, and gives the names of all objects with their bytes; see the emulator.
    pub fn objects(&self, change: &Value) -> BTreeMap<String, u64> {
        let objects = self.post("/_fake/objects", &[], change);
        serde_json::from_value(objects).expect("names and bytes")
    }

    /// A new bucket's name.
    pub fn create_bucket(&self) -> &'static str {
        self.objects(&json!({ "bucket": BUCKET, "region": REGION }));
        BUCKET
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Value {
        http(self.port, &format!("POST {path}"), headers, body)
    }

    fn exchange(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> (String, Value) {
        exchange(self.port, &format!("POST {path}"), headers, body)
    }
}

/// What a program needs in its environment to find a double of AWS on this port.
pub(crate) fn environment_of(port: u16) -> [(&'static str, String); 5] {
    [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// Sends a request (method and path) to a double on loopback, and reads its answer.
///
/// # Panics
/// If it is not 200.
pub(crate) fn http(port: u16, request: &str, headers: &[(&str, &str)], body: &Value) -> Value {
    let (head, answer) = exchange(port, request, headers, body);
    assert!(head[8..].starts_with(" 200"), "{head}\n{answer}");
    answer
}

/// Head and JSON of an answer.
fn exchange(port: u16, request: &str, headers: &[(&str, &str)], body: &Value) -> (String, Value) {
    let body = body.to_string();
    let mut request = format!("{request} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n");
    headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
    request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the double");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    assert!(head.starts_with("HTTP/1."), "{answer}");
    (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

impl Drop for Aws {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
