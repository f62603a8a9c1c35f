//! `wirevault snapshot`: checkpoints of a recorder's state, and putting one back.

use std::path::Path;

use serde::Serialize;
use wirevault_daemon::api::{self, SnapshotStatus};
use wirevault_daemon::lifecycle::snapshots::restore_into;
use wirevault_lifecycle::snapshot::{self, Checkpoint, Manifest};
use wirevault_media::DirMedia;
use wirevault_query::summary::Instant;

use crate::args::SnapshotVerb;
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{count_text, put, put_json, size_text, table, table_text, tell};

const HEADINGS: [&str; 6] = ["checkpoint", "taken", "state", "store", "release", "whole"];

/// A checkpoint as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    checkpoint: u64,
    store: String,
    taken: Option<Instant>,
    bytes: Option<u64>,
    program: Option<String>,
    /// What is wrong with it; nothing if all its bytes are there.
    trouble: Option<String>,
}

/// Takes, lists or restores checkpoints.
pub(crate) fn snapshot(verb: &SnapshotVerb) -> Result<Outcome, CliError> {
    match verb {
        SnapshotVerb::Create { daemon, key, json } => {
            let endpoint = Endpoint::new(daemon, key.as_deref());
            let mut client = Client::connect(&endpoint, &interrupt::watch()?)?;
            let taken: SnapshotStatus = client.have_done(api::SNAPSHOT, &())?;
            match json {
                true => put_json(&taken)?,
                false => put(&line(&taken))?,
            }
            Ok(Outcome::Found)
        }
        SnapshotVerb::List { folder, json } => list(folder, *json),
        SnapshotVerb::Restore { folder, checkpoint, of, store, config } => {
            let media = DirMedia::open(folder)?;
            let manifest = snapshot::newest(&media, of.as_deref(), *checkpoint)?;
            restore(&media, &manifest, store.as_deref(), config.as_deref())
        }
    }
}

fn line(taken: &SnapshotStatus) -> String {
    let number = taken.checkpoint.unwrap_or_default();
    format!("checkpoint {number}, {} in {}\n", size_text(taken.bytes), taken.folder)
}

fn list(folder: &Path, json: bool) -> Result<Outcome, CliError> {
    let media = DirMedia::open(folder)?;
    let rows: Vec<Row> = snapshot::list(&media)?.iter().map(|it| row(&media, it)).collect();
    if json {
        put_json(&rows)?;
    } else if rows.is_empty() {
        tell("there is no checkpoint");
    } else {
        let mut table = table(&HEADINGS, &[0, 2]);
        for row in &rows {
            table.add_row(columns(row));
        }
        put(&table_text(&table, ""))?;
    }
    let whole = rows.iter().any(|row| row.trouble.is_none());
    Ok(match rows.is_empty() {
        true => Outcome::Nothing,
        false if whole => Outcome::Found,
        false => Outcome::Incomplete,
    })
}

fn row(media: &DirMedia, checkpoint: &Checkpoint) -> Row {
    let manifest = checkpoint.manifest.as_ref();
    let trouble = match manifest {
        Ok(manifest) => snapshot::read::check(media, manifest).err().map(|error| error.to_string()),
        Err(why) => Some(why.clone()),
    };
    Row {
        checkpoint: checkpoint.number,
        store: checkpoint.store.clone(),
        taken: manifest.ok().map(|it| it.time_ns.into()),
        bytes: manifest.ok().map(Manifest::bytes),
        program: manifest.ok().map(|it| it.program.clone()),
        trouble,
    }
}

fn columns(row: &Row) -> [String; 6] {
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        row.checkpoint.to_string(),
        known(row.taken.as_ref().map(|taken| taken.utc.clone())),
        known(row.bytes.map(size_text)),
        row.store.clone(),
        known(row.program.clone()),
        row.trouble.clone().unwrap_or_else(|| "yes".to_owned()),
    ]
}

fn restore(
    media: &DirMedia,
    manifest: &Manifest,
    store: Option<&Path>,
    config: Option<&Path>,
) -> Result<Outcome, CliError> {
    let Manifest { number, time_ns, .. } = manifest;
    let mut text =
        format!("checkpoint {number} of store {}, {}\n", manifest.store, Instant::from(*time_ns));
    if let Some(config) = config {
        snapshot::restore_config(media, manifest, config)?;
        text += &format!("configuration  {}\n", config.display());
    }
    if let Some(volume) = store {
        let restored = restore_into(media, manifest, volume)?;
        let lines = count_text(restored.entries, "line");
        text += &format!("audit log      {lines}, head {}\n", restored.head);
        text += &format!("certificates   {}\n", restored.certificates);
        text += match restored.lost {
            true => {
                "segments       of another store: those of its tier are found, the others told as \
                 lost: `wirevault segments`\n"
            }
            false => "segments       as the volumes of the store have them\n",
        };
    }
    put(&text)?;
    Ok(Outcome::Found)
}
