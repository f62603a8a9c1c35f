//! `wirevault certificate`: what was deleted, and whether that is so.

use std::path::Path;

use wirevault_index::StoreReader;
use wirevault_lifecycle::certificate::{Certificate, list, read, verify};

use crate::args::CertificateVerb;
use crate::error::CliError;
use crate::outcome::Outcome;
use crate::output::{Paint, put, put_json, tell};
use crate::place;
use crate::verbs::audit::folder;
use crate::verbs::delete::line;

/// What there is to say without certificates.
const NOTHING: &str = "nothing was deleted by rule or by hand";

/// Shows or checks certificates.
pub(crate) fn certificate(verb: &CertificateVerb) -> Result<Outcome, CliError> {
    match verb {
        CertificateVerb::Show { store, json } => show(store, *json),
        CertificateVerb::Verify { store, key, file } => {
            check(store, key.as_deref(), file.as_deref())
        }
    }
}

fn show(store: &Path, json: bool) -> Result<Outcome, CliError> {
    let paths = list(&folder(store)?)?;
    if paths.is_empty() && !json {
        tell(NOTHING);
    }
    let certificates: Vec<Certificate> =
        paths.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    match json {
        true => put_json(&certificates)?,
        false => certificates.iter().try_for_each(|it| put(&line(it)))?,
    }
    Ok(if certificates.is_empty() { Outcome::Nothing } else { Outcome::Found })
}

fn check(store: &Path, key: Option<&Path>, file: Option<&Path>) -> Result<Outcome, CliError> {
    let log = folder(store)?;
    let paths = match file {
        Some(file) => vec![file.to_owned()],
        None => list(&log)?,
    };
    if paths.is_empty() {
        tell(NOTHING);
        return Ok(Outcome::Nothing);
    }
    let reader = place::open(store, key)?;
    let paint = Paint::stdout();
    let mut all_well = true;
    for path in paths {
        let certificate = read(&path)?;
        let wrong = verify(&log, &certificate)?.or_else(|| still_there(&reader, &certificate));
        all_well &= wrong.is_none();
        let verdict = match wrong {
            None => paint.good("so it is"),
            Some(why) => format!("{}: {why}", paint.bad("NOT SO")),
        };
        put(&format!("certificate {}: {verdict}\n", certificate.entry))?;
    }
    Ok(if all_well { Outcome::Found } else { Outcome::Incomplete })
}

/// What is still there of deleted segments; nothing if they are gone.
fn still_there(store: &StoreReader, certificate: &Certificate) -> Option<String> {
    let deleted = |life: String| certificate.erasure.segments.iter().any(|it| it.life == life);
    for volume in &store.volumes {
        let mut entries = volume.segments.entries.iter();
        if let Some(entry) = entries.find(|it| it.is_readable() && deleted(it.life.to_string())) {
            return Some(format!("segment {} is in the table still", entry.ordinal));
        }
        if let Some(Ok(ring)) = &volume.ring
            && let Some(keys) = ring.entries().find(|keys| deleted(keys.life().to_string()))
        {
            return Some(format!("the key of life {} is in the ring still", keys.life()));
        }
    }
    None
}
