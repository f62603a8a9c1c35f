//! `wirevaultd`: the recorder as a service, in the foreground.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use wirevault_config::{Anchor, Config};
use wirevault_daemon::cloud::keys;
use wirevault_daemon::cloud::publisher;
use wirevault_daemon::probe::{self, Level};
use wirevault_daemon::reload::{self, ConfigFile};
use wirevault_daemon::serve::{self, Services};
use wirevault_daemon::{DaemonError, Exit};
use wirevault_index::KeySource;
use wirevault_seal::MacService;
use wirevault_telemetry::log;
use wirevault_telemetry::publish::MetricSink;

/// Records packets into a Wirevault store until SIGTERM or SIGINT, and answers questions on a unix
/// socket meanwhile.
#[derive(Debug, Parser)]
#[command(
    name = "wirevaultd",
    version,
    after_help = Exit::HELP,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Directory of the store; goes before `store` of the file. May be repeated.
    #[arg(long, value_name = "DIR")]
    store: Vec<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks a configuration file and whether this machine can do what it asks; changes nothing.
    #[command(after_help = Exit::HELP)]
    Validate {
        /// The configuration file.
        file: PathBuf,
        /// Directory of the store; goes before `store` of the file. May be repeated.
        #[arg(long, value_name = "DIR")]
        store: Vec<PathBuf>,
    },
    /// Writes the manual page, as a package has it below /usr/share.
    #[command(hide = true)]
    Generate {
        /// Folder that stands for /usr/share.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let exit = match arguments {
        Arguments { command: Some(Command::Validate { file, store }), .. } => {
            validate(&file, store)
        }
        Arguments { command: Some(Command::Generate { folder }), .. } => manual(&folder),
        Arguments { config: Some(file), store, .. } => record(&file, store),
        // clap has asked for one of the two.
        Arguments { config: None, .. } => Exit::Usage,
    };
    exit.into()
}

fn record(file: &Path, store: Vec<PathBuf>) -> Exit {
    let file = ConfigFile::new(file, store);
    let ended = file.load().and_then(|config| {
        log::init(reload::level(config.log))?;
        let services =
            Services { key: key(&config)?, metrics: metrics(&config)?, macs: macs(&config)? };
        serve::run(&config, &file, &services)
    });
    match ended {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("wirevaultd: {}", error.chain());
            error.exit()
        }
    }
}

fn validate(file: &Path, store: Vec<PathBuf>) -> Exit {
    let config = match ConfigFile::new(file, store).load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{}", error.chain());
            return error.exit();
        }
    };
    let key = match metrics(&config).and_then(|_| key(&config)) {
        Ok(key) => key,
        Err(error) => {
            eprintln!("{}", error.chain());
            return error.exit();
        }
    };
    let findings = probe::all(&config, &key);
    for finding in &findings {
        let word = match finding.level {
            Level::Fault => "fault",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        println!("{word}: {finding}");
    }
    let faults = findings.iter().filter(|finding| finding.level == Level::Fault);
    let worst = faults.map(|finding| finding.exit).max().unwrap_or(Exit::Ok);
    if worst == Exit::Ok {
        println!("{}: the recorder can start with it", file.display());
    }
    worst
}

fn manual(folder: &Path) -> Exit {
    let write = || {
        let pages = folder.join("man/man8");
        std::fs::create_dir_all(&pages)?;
        let mut page = std::fs::File::create(pages.join("wirevaultd.8"))?;
        clap_mangen::Man::new(Arguments::command()).section("8").render(&mut page)
    };
    match write() {
        Ok(()) => Exit::Ok,
        Err(error) => {
            eprintln!("wirevaultd: {}: {error}", folder.display());
            Exit::Failed
        }
    }
}

fn key(config: &Config) -> Result<KeySource, DaemonError> {
    let endpoint = config.kms.endpoint.as_deref();
    if let Some(endpoint) = endpoint {
        tracing::warn!("epoch keys come from {endpoint}, not from the region's own address");
    }
    let what = "making a client of the key service";
    let service = wirevault_cloud::key_service(endpoint);
    let service = service.map_err(|source| DaemonError::System { what, source })?;
    Ok(keys::source(config, service)?)
}

/// Who makes codes of heads of the audit log, if the configuration names a key for that.
fn macs(config: &Config) -> Result<Option<Arc<dyn MacService>>, DaemonError> {
    if !config.audit.anchors.iter().any(|anchor| matches!(anchor, Anchor::Key(_))) {
        return Ok(None);
    }
    let what = "making a client of the key service";
    let service = wirevault_cloud::mac_service(config.kms.endpoint.as_deref());
    service.map_err(|source| DaemonError::System { what, source })
}

fn metrics(config: &Config) -> Result<Option<Arc<dyn MetricSink>>, DaemonError> {
    let Some(options) = publisher::options(&config.cloudwatch) else { return Ok(None) };
    if let Some(endpoint) = &options.endpoint {
        tracing::warn!("metrics go to {endpoint}, not to the region's own address");
    }
    let what = "making a client of CloudWatch";
    let sink = wirevault_cloud::metric_sink(options);
    match sink.map_err(|source| DaemonError::System { what, source })? {
        None => Err(publisher::no_service()),
        sink => Ok(sink),
    }
}
