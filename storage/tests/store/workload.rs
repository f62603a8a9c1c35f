//! The workload of the crash tests.

use std::sync::Arc;

use wirevault_format::footer::CloseReason;
use wirevault_media::sim::SplitMix64;
use wirevault_media::{Media, SimMedia};
use wirevault_storage::StorageError;

use crate::checks::check_quota;
use crate::support::*;

/// Two lanes, chunks of many sizes, segments closed early, more
/// of them than the quota keeps, a second run. Everything follows from the seed. The store works on
/// `through`, which is `media` or stands before it.
pub(crate) fn workload(
    media: &SimMedia,
    through: &Arc<dyn Media>,
    seed: u64,
    ledger: &mut Ledger,
) -> Result<(), String> {
    let clock = clock();
    let mut rng = SplitMix64::new(seed);
    for _ in 0..2 {
        let opened = open_through(Arc::clone(through), Arc::clone(&clock));
        let (store, report) = opened.map_err(|error| error.to_string())?;
        assert!(report.is_clean(), "a store that was closed well: {report:?}");
        let before = std::mem::take(ledger);
        let mut recorder = match Recorder::start(store, Arc::clone(&clock), before, 2) {
            Ok(recorder) => recorder,
            Err(failed) => {
                let (error, before) = *failed;
                *ledger = before;
                return Err(error.to_string());
            }
        };
        let result = record(media, &mut recorder, &mut rng);
        *ledger = recorder.ledger;
        result?;
    }
    Ok(())
}

/// One run of it.
pub(crate) fn record(
    media: &SimMedia,
    recorder: &mut Recorder,
    rng: &mut SplitMix64,
) -> Result<(), String> {
    let text = |error: StorageError| error.to_string();
    for step in 0..26 {
        let lane = rng.below(2) as usize;
        if !recorder.is_open(lane) {
            recorder.open_segment(lane).map_err(text)?;
            check_quota(media, &recorder.store)?;
        }
        for _ in 0..=rng.below(2) {
            let (packets, bytes) = (rng.below(12) as u32, 64 + rng.below(900) as usize);
            let gap = rng.below(4) == 0 || packets == 0;
            let written = recorder.write_chunk(lane, packets, bytes, gap);
            written.expect("a segment has room").map_err(|error| error.to_string())?;
        }
        if rng.below(2) == 0 {
            recorder.sync(lane).map_err(|error| error.to_string())?;
        }
        if step % 9 == 8 {
            recorder.store.heartbeat().map_err(text)?;
        }
        if recorder.chunks(lane) >= 4 {
            recorder.sync(lane).map_err(|error| error.to_string())?;
            recorder.close(lane, CloseReason::Age).map_err(text)?;
        }
    }
    recorder.end().map_err(text)
}
