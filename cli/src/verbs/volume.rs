//! `wirevault volume`: devices that are volumes, or could be.

use std::error::Error;
use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use wirevault_daemon::api::{self, ReplaceBody, Replaced};
use wirevault_daemon::lifecycle::Notes;
use wirevault_daemon::volumes::devices::{self, Device, Eraser, Use};
use wirevault_format::StoreId;
use wirevault_index::{IndexError, KeySource, Volume};
use wirevault_lifecycle::audit::Event;
use wirevault_media::block::Sampled;
use wirevault_media::{BlockMedia, Media, MediaError, open_volume};
use wirevault_storage::{Adoption, Announce, Space, adopt, plan, replace};
use wirevault_telemetry::clock::SystemClock;

use super::retire::retire;
use crate::args::{Place, VolumeVerb};
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{count_text, put, put_json, size_text, table, table_text, tell};
use crate::place::{self, key_source};

/// Blocks that are looked at after a device was erased.
const SAMPLES: u64 = 256;

/// Carries a verb out.
pub(crate) fn volume(verb: &VolumeVerb) -> Result<Outcome, CliError> {
    match verb {
        VolumeVerb::List { json } => list(*json),
        VolumeVerb::Format { device, force } => format(device, *force),
        VolumeVerb::Adopt { volume, store, yes } => take_in(volume, store, *yes),
        VolumeVerb::Replace { number, volume, place, yes } => {
            put_in_place(*number, volume, place, *yes)
        }
        VolumeVerb::Release => release(),
        VolumeVerb::Retire { device, store, erase } => retire(device, *store, *erase),
    }
}

/// What stands on a device.
pub(super) enum Content {
    Nothing,
    /// Volume of this number of a store, and how many of its places are bad.
    Volume(StoreId, u16, u64),
    /// A label without a volume that opens, and why.
    Broken(String),
    Foreign(&'static str),
    /// It cannot be read, and why.
    Unknown(String),
}

impl Content {
    pub(super) fn of(path: &Path) -> Self {
        let media = match BlockMedia::open(path) {
            Ok(media) => media,
            Err(error) => return Self::Unknown(cause(&error)),
        };
        match (media.foreign(), media.label()) {
            (Err(error), _) => Self::Unknown(cause(&error)),
            (Ok(Some(what)), _) => Self::Foreign(what),
            (Ok(None), None) => Self::Nothing,
            // Whose volume it is stands there in the clear.
            (Ok(None), Some(_)) => match Volume::read(Arc::new(media), &KeySource::Recorded) {
                Ok(it) => {
                    let bad = it.segments.entries.iter().filter(|entry| entry.bad).count() as u64;
                    Self::Volume(it.superblock.store, it.superblock.number, bad)
                }
                Err(error) => Self::Broken(error.to_string()),
            },
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Nothing => "empty".to_owned(),
            Self::Volume(store, number, 0) => format!("volume {number} of store {store}"),
            Self::Volume(store, number, bad) => {
                let places = count_text(*bad, "bad place");
                format!("volume {number} of store {store}, {places}")
            }
            Self::Broken(why) => format!("a volume that does not open: {why}"),
            Self::Foreign(what) => (*what).to_owned(),
            Self::Unknown(why) => format!("unknown: {why}"),
        }
    }

    /// The same as a part of a sentence on the device.
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Nothing => "it is empty".to_owned(),
            Self::Unknown(why) => why.clone(),
            other => format!("it holds {}", other.text()),
        }
    }
}

/// What an error comes from: the device stands beside it anyway.
fn cause(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}

fn list(json: bool) -> Result<Outcome, CliError> {
    let found = devices::discover()?;
    let name = |device: &Device| device.by_id.as_ref().unwrap_or(&device.node).clone();
    let uses = |device: &Device| {
        let uses: Vec<String> = device.uses.iter().map(Use::to_string).collect();
        uses.join(", ")
    };
    if json {
        let row = |device: &Device| {
            json!({
                "path": name(device), "node": device.node, "kind": device.kind.name(),
                "model": device.model, "serial": device.serial, "bytes": device.bytes,
                "uses": device.uses.iter().map(Use::to_string).collect::<Vec<_>>(),
                "content": Content::of(&device.node).text(),
            })
        };
        put_json(&json!({"devices": found.iter().map(row).collect::<Vec<_>>()}))?;
    } else {
        let mut rows =
            table(&["path", "kind", "model", "serial", "bytes", "used by", "content"], &[4]);
        for device in &found {
            rows.add_row([
                name(device).display().to_string(),
                device.kind.to_string(),
                device.model.clone(),
                device.serial.clone(),
                size_text(device.bytes),
                uses(device),
                Content::of(&device.node).text(),
            ]);
        }
        put(&table_text(&rows, ""))?;
    }
    Ok(if found.is_empty() { Outcome::Nothing } else { Outcome::Found })
}

/// Makes a device empty, so that `wirevault init` takes it.
fn format(path: &Path, force: bool) -> Result<Outcome, CliError> {
    let uses = uses(path)?;
    let in_use = |it: &&Use| !matches!(it, Use::Partition(_));
    if let Some(it) = uses.iter().find(in_use) {
        return Err(refused(path, &format!("it {it}; end that use first")));
    }
    let told = |what: &str| refused(path, &format!("{what}; --force erases it"));
    if let Some(it) = uses.first().filter(|_| !force) {
        return Err(told(&format!("it {it}")));
    }
    match Content::of(path) {
        Content::Unknown(why) => return Err(refused(path, &why)),
        Content::Nothing => {}
        content if force => put(&format!("erasing {}\n", content.text()))?,
        content => return Err(told(&content.sentence())),
    }
    erase(path, None, || Ok(()))?;
    let bytes = BlockMedia::open(path)?.total_bytes().map_err(CliError::file(path))?;
    let path = path.display();
    put(&match plan(None, 1, &[Space { bytes, device: true, shared: false }]) {
        Ok(_) => format!("{path} is empty: `wirevault init {path}` takes it\n"),
        Err(why) => format!("{path} is empty, but too small to be a store alone: {why}\n"),
    })?;
    Ok(Outcome::Found)
}

/// Has a store find one of its volumes under its new path.
fn take_in(volume: &Path, store: &Path, yes: bool) -> Result<Outcome, CliError> {
    let path = recorded(volume)?;
    if let Some(what) = no_volume(Path::new(&path)) {
        return Err(refused(
            volume,
            &format!(
                "{what}, so there is nothing to adopt. `wirevault volume replace` gives it to a \
                 store for a volume that is gone, once it is empty (`wirevault volume format` \
                 makes a device so)"
            ),
        ));
    }
    let mut announce = |it: &Adoption| {
        let (volume, was, path) = (it.number, it.was.clone(), path.clone());
        note(it, Event::Adopted { volume, was, path })
    };
    let announce: Option<Announce<'_>> = if yes { Some(&mut announce) } else { None };
    let Adoption { store, number, was, missing, .. } = adopt(store, &path, announce)?;
    put(&format!("volume {number} of store {store}: {was} -> {path}\n"))?;
    for (path, why) in missing {
        tell(&format!("{path} is still missing: {why}"));
    }
    if !yes {
        tell("nothing was recorded; --yes records the new path");
    }
    Ok(Outcome::Found)
}

/// What stands at a path, if that is no volume.
fn no_volume(path: &Path) -> Option<String> {
    if !path.is_dir() {
        let content = Content::of(path);
        let is_none = matches!(content, Content::Nothing | Content::Foreign(_));
        return is_none.then(|| content.sentence());
    }
    let read = Volume::read(open_volume(path).ok()?, &KeySource::Recorded);
    let is_none = matches!(read, Err(IndexError::NotAStore { .. }));
    is_none.then(|| "it is a directory without a volume".to_owned())
}

/// Gives a store a new volume for one that is gone.
fn put_in_place(number: u16, volume: &Path, place: &Place, yes: bool) -> Result<Outcome, CliError> {
    let path = recorded(volume)?;
    if !yes {
        return Err(CliError::Usage(format!(
            "what volume {number} held is given up for good when {path} takes its place; --yes \
             does that"
        )));
    }
    match &place.store {
        Some(store) => {
            let (media, key) = (open_volume(Path::new(&path))?, key_source(place.key.as_deref())?);
            let mut announce = |it: &Adoption| {
                let (volume, was, path) = (it.number, it.was.clone(), path.clone());
                note(it, Event::Replaced { volume, was, path })
            };
            let clock = Arc::new(SystemClock);
            replace(store, number, (&*media, &path), &key, clock, &mut announce)?;
        }
        None => {
            let endpoint = Endpoint::new(&place.daemon, place.key.as_deref());
            let mut client = Client::connect(&endpoint, &interrupt::watch()?)?;
            let order = ReplaceBody { volume: number, path: path.clone() };
            let _: Replaced = client.have_done(api::REPLACE, &order)?;
        }
    }
    put(&format!(
        "volume {number} is {path} now; what it held before is gone, and answers say so\n"
    ))?;
    Ok(Outcome::Found)
}

/// Writes into the log of a store what comes next.
fn note(it: &Adoption, event: Event) -> Result<(), Box<dyn Error + Send + Sync>> {
    Ok(Notes::open(Path::new(&it.first), it.store)?.write(event)?)
}

/// A path as `init` records it.
fn recorded(volume: &Path) -> Result<String, CliError> {
    let path = match there(volume)?.is_dir() {
        true => std::fs::canonicalize(volume),
        false => std::path::absolute(volume),
    };
    place::text(&path.map_err(CliError::file(volume))?)
}

/// Gives the kernel what killed recorders had taken from it.
fn release() -> Result<Outcome, CliError> {
    let returned = devices::release()?;
    for place in &returned {
        put(&format!("the kernel drives {place} again\n"))?;
    }
    if returned.is_empty() {
        put("no device was left by a recorder that ended\n")?;
    }
    Ok(if returned.is_empty() { Outcome::Nothing } else { Outcome::Found })
}

/// What became of a device.
pub(super) struct Emptied {
    /// Whether it took the order that nothing on it is wanted any more.
    pub(super) discarded: bool,
    /// What some of its blocks read as.
    pub(super) sampled: Sampled,
}

/// Erases a device and looks at some of its blocks.
///
/// Errors: a recorder has it, or it is mounted; whoever is told first, when nobody else has it any
/// more, does not take it.
pub(super) fn erase(
    path: &Path,
    eraser: Option<&Eraser>,
    announce: impl FnOnce() -> Result<(), CliError>,
) -> Result<Emptied, CliError> {
    let media = BlockMedia::open(path)?;
    let _lock = media.lock()?;
    announce()?;
    let failed = |action| {
        let volume = path.display().to_string();
        move |source| MediaError::Io { volume, action, source }
    };
    let discarded = media.erase().map_err(failed("erase it"))?;
    if let Some(eraser) = eraser {
        eraser.carry_out()?;
    }
    let sampled = media.sample(SAMPLES).map_err(failed("look at it after it was erased"))?;
    Ok(Emptied { discarded, sampled })
}

/// Who uses a device. A plain file that stands for one is used by whoever holds its lock.
pub(super) fn uses(path: &Path) -> Result<Vec<Use>, CliError> {
    let metadata = there(path)?;
    let kind = metadata.file_type();
    let refuse = |why| Err(refused(path, why));
    match () {
        () if kind.is_block_device() => Ok(devices::of_path(path)?.uses),
        () if kind.is_dir() => {
            refuse("it is a directory, and no device; `wirevault init` takes an empty one as it is")
        }
        () if !kind.is_file() => {
            refuse("it is neither a block device nor a file; `wirevault volume list` shows disks")
        }
        () if metadata.len() == 0 => {
            refuse("a file that stands for a device has its size, and this one holds no bytes")
        }
        () => Ok(Vec::new()),
    }
}

/// What stands at a path.
///
/// Errors: nothing does, or a recorder took the device from the kernel.
fn there(path: &Path) -> Result<Metadata, CliError> {
    std::fs::metadata(path).map_err(|source| match open_volume(path) {
        Err(error @ (MediaError::Driven { .. } | MediaError::Left { .. })) => error.into(),
        _ => CliError::file(path)(source),
    })
}

pub(super) fn refused(path: &Path, why: &str) -> CliError {
    CliError::Usage(format!("{} is left alone: {why}", path.display()))
}
