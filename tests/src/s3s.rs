//! Amazon S3 on loopback that keeps objects as files: `s3s-fs`, which `./test` installs. It checks
//! signatures, checksums and conditions with code that neither we nor moto wrote.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::aws::{self, ACCESS_KEY, BUCKET, SECRET_KEY};
use crate::readers::missing;

/// A service with one bucket. Dropping it ends it.
pub struct S3s {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl S3s {
    /// Starts it; `None`, loudly, if it is not installed here, which fails where `CI` is set.
    ///
    /// # Panics
    /// If it starts and does not serve.
    pub fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/s3s-fs");
        let mut command = Command::new(&program);
        command.args(["--host", "127.0.0.1", "--port", "0"]);
        command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(folder.path());
        // What it says of its address is of this level.
        command.env("RUST_LOG", "s3s_fs=info").stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return missing(&program.display().to_string(), &error.to_string()),
        };
        let said = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = said.map_while(Result::ok).find_map(|line| {
            let (_, address) = line.split_once("running at http://127.0.0.1:")?;
            address.split(|it: char| !it.is_ascii_digit()).next()?.parse().ok()
        });
        Some(Self { child, port: port.expect("its port"), folder })
    }

    /// What a program needs in its environment to find it.
    pub fn environment(&self) -> [(&'static str, String); 5] {
        aws::environment_of(self.port)
    }

    /// Names of all objects, and the files that they are.
    pub fn objects(&self) -> BTreeMap<String, PathBuf> {
        let bucket = self.folder.path().join(BUCKET);
        let (mut folders, mut objects) = (vec![bucket.clone()], BTreeMap::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder of the bucket") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&bucket).expect("inside of it");
                    objects.insert(name.to_string_lossy().into_owned(), path);
                }
            }
        }
        objects
    }
}

impl Drop for S3s {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
