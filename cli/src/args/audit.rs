//! `audit`: the log of what was done with a store.

use std::path::PathBuf;

use clap::Subcommand;

/// What is done with the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditVerb {
    /// Check the chain of all lines. Exit code 0: whole; 3: something was done to it.
    ///
    /// Lines that are missing at the end show only against heads that were kept elsewhere: in the
    /// places of `audit.anchor`, and in the system's log at each start and end of the recorder.
    #[command(after_help = "\
Example: wirevault audit verify --store /var/lib/wirevault --head $(journalctl -u wirevaultd \
-o cat | grep -o 'head=\"[0-9a-f]*' | tail -1 | cut -d'\"' -f2)")]
    Verify {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR", required_unless_present = "file")]
        store: Option<PathBuf>,
        /// A log that `export --json` wrote, in the place of a store's.
        #[arg(long, value_name = "FILE", conflicts_with = "store")]
        file: Option<PathBuf>,
        /// Hash of a line that must be in the log: 64 hex digits.
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
        /// Where the recorder kept heads (`audit.anchor`): a file, a URL, or kms:KEY, of which KMS
        /// checks the codes in the log. No head may be missing. May be repeated.
        #[arg(long, value_name = "PLACE")]
        anchor: Vec<String>,
        /// Report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write the whole log to a file, as it stands: it is checked as the log itself is.
    #[command(after_help = "\
Example: wirevault audit export --store /var/lib/wirevault -w audit.log; tail -1 audit.log")]
    Export {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// File to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE")]
        write: PathBuf,
        /// As JSON, one object an entry; the last line is a proof of what there was.
        #[arg(long)]
        json: bool,
    },
    /// Show the entries, one a line.
    #[command(after_help = "\
Example: wirevault audit show --store /var/lib/wirevault --json | jq 'select(.event==\"asked\")'")]
    Show {
        /// Directory of the store: its first volume.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// As JSON objects, one a line.
        #[arg(long)]
        json: bool,
    },
}
