//! How volumes and store are, looked at a few times a second: what status and metrics tell, and a
//! line in the log for each change, those of the pressure ladder included.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use wirevault_pipeline::{Pipeline, Shares, VolumeView};
use wirevault_storage::condition::{
    Condition, PRESSURE_PERMILLE, StoreSigns, Threshold, VolumeSigns, Watched,
};
use wirevault_storage::{StoreStatus, Verdict, VolumeStatus};

use crate::report::status::bad_places;

use crate::report::rungs::Rungs;

/// The conditions of a running recorder.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    watched: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    volumes: Vec<Watched>,
    store: Watched,
    pressure: Threshold,
    rungs: Rungs,
}

impl Conditions {
    /// Takes a new look. Never waits for the store. `not_held` is why something is not held that
    /// should be.
    pub(crate) fn look(&self, pipeline: &Pipeline, not_held: Option<String>) {
        let store = pipeline.store().status();
        let trouble = store.key_trouble.clone().or(not_held);
        let pressure = pipeline.pressure();
        let mut inner = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        inner.look(&store, pipeline.volumes(), (pressure, trouble), Instant::now());
        inner.rungs.look(pipeline.lanes(), |lane| pipeline.pressure_on(lane));
    }

    /// The store's condition, and those of its volumes.
    pub(crate) fn told(&self) -> (Condition, Vec<Condition>) {
        let inner = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.store.told(), inner.volumes.iter().map(Watched::told).collect())
    }
}

impl Inner {
    /// `trouble` is what is wrong with no one volume.
    fn look(
        &mut self,
        store: &StoreStatus,
        views: &[VolumeView],
        (pressure, trouble): (Shares, Option<String>),
        now: Instant,
    ) {
        self.volumes.resize(store.volumes.len(), Watched::default());
        let mut seen = Vec::with_capacity(store.volumes.len());
        for (number, (volume, watched)) in store.volumes.iter().zip(&mut self.volumes).enumerate() {
            let view = views.get(number);
            let stalled = view.is_some_and(|view| view.shared.stalled.load(Ordering::Relaxed));
            let condition = signs(volume, stalled).condition();
            if let Some(before) = watched.look(now, condition) {
                let why = reason(volume, stalled);
                tell(&format!("volume {}", volume.path), before, condition, &why);
            }
            seen.push(condition);
        }
        let (share, cause) = pressure.largest();
        let pressed = self.pressure.look((share * 1000.0) as u64, PRESSURE_PERMILLE);
        let signs = StoreSigns::of(&seen, trouble.is_some(), pressed);
        if let Some(before) = self.store.look(now, signs.condition()) {
            let why = trouble.unwrap_or_else(|| {
                let names: Vec<_> = seen.iter().map(|condition| condition.name()).collect();
                let (names, percent) = (names.join(", "), share * 100.0);
                format!("volumes {names}, a pressure of {percent:.0} % ({})", cause.name())
            });
            tell("the store", before, signs.condition(), &why);
        }
    }
}

fn signs(volume: &VolumeStatus, stalled: bool) -> VolumeSigns {
    let in_doubt = volume.suspect.is_some() || volume.hangs || stalled;
    VolumeSigns {
        failed: volume.failed.is_some() || volume.verdict() == Verdict::Spent,
        refused: volume.refused.is_some(),
        in_doubt: in_doubt || volume.verdict() == Verdict::Worn,
        squeezed: volume.squeezed,
    }
}

fn reason(volume: &VolumeStatus, stalled: bool) -> String {
    let bad = (volume.verdict() != Verdict::Sound).then(|| bad_places(volume));
    let told =
        [&volume.failed, &volume.refused, &bad, &volume.suspect].into_iter().flatten().next();
    match (told, stalled, volume.squeezed) {
        (Some(why), _, _) => why.clone(),
        (None, true, _) => "its device does not answer".to_owned(),
        (None, false, true) => "others' files leave it less than its quota".to_owned(),
        (None, false, false) => "nothing is wrong with it any more".to_owned(),
    }
}

fn tell(what: &str, before: Condition, now: Condition, why: &str) {
    let (from, to) = (before.name(), now.name());
    match now > before {
        true => tracing::warn!(from, to, "{what} is {to}: {why}"),
        false => tracing::info!(from, to, "{what} is {to}: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wirevault_format::StoreId;
    use wirevault_storage::condition::CALM;

    use super::*;

    #[test]
    fn volumes_and_store_are_told_together() {
        let volume = |path: &str| VolumeStatus { path: path.to_owned(), ..VolumeStatus::default() };
        let mut status = StoreStatus {
            id: StoreId::default(),
            sealed: true,
            volumes: vec![volume("/a"), volume("/b")],
            reserve_percent: 10,
            budgets: Vec::new(),
            key_trouble: None,
        };
        let begin = Instant::now();
        let mut inner = Inner::default();
        let [calm, pressed] = [0.1, 0.6].map(|share| Shares::new([share, 0.0, 0.0]));
        let told = |inner: &Inner| {
            let volumes: Vec<_> = inner.volumes.iter().map(|it| it.told().name()).collect();
            (inner.store.told().name(), volumes.join(" "))
        };
        inner.look(&status, &[], (calm, None), begin);
        assert_eq!(told(&inner), ("healthy", "healthy healthy".into()));
        inner.look(&status, &[], (pressed, None), begin);
        assert_eq!(told(&inner), ("pressured", "healthy healthy".into()));
        status.volumes[0].refused = Some("no room".into());
        status.volumes[1].squeezed = true;
        inner.look(&status, &[], (pressed, None), begin);
        assert_eq!(told(&inner), ("degraded", "full pressured".into()));
        status.volumes[1].failed = Some("gone".into());
        inner.look(&status, &[], (pressed, None), begin);
        assert_eq!(told(&inner), ("full", "full failed".into()));
        status.volumes = vec![volume("/a"), volume("/b")];
        inner.look(&status, &[], (calm, None), begin);
        assert_eq!(told(&inner), ("full", "full failed".into()), "not yet believed");
        inner.look(&status, &[], (calm, None), begin + CALM + Duration::from_millis(1));
        assert_eq!(told(&inner), ("healthy", "healthy healthy".into()));
        inner.look(&status, &[], (calm, Some("no room for a hold".into())), begin);
        assert_eq!(told(&inner), ("degraded", "healthy healthy".into()));
    }
}
