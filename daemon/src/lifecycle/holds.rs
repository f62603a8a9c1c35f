//! Holds: what matches is copied before anything takes it.
//!
//! ```text
//!  closed segments in a hold's window ─► chunks that may match ─► copy ─► entry `held`
//! ```
//! A hold stands until it is released, also for what is still to come: a segment is looked at when
//! it closes. Until it has been, the quota [takes it last](Store::spare), from before the first
//! segment opens. If the copy finds no room it is spared further on, with no more than half of a
//! volume's segments. If the quota takes one all the same that has what a hold wants, the audit log
//! and the status say so; one that nobody has looked at by then is looked at then.
//!
//! Nothing but the list and the copies is remembered: what a crash left undone is found undone, by
//! comparing both. A segment that cannot be held (the budget is used up, a chunk does not read) is
//! deleted by no rule and by nobody's order; the status tells of it.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wirevault_format::table::SegmentState;
use wirevault_format::{LifeId, LinkType};
use wirevault_index::error::chain;
use wirevault_index::{Catalog, Segment};
use wirevault_lifecycle::audit::{Event, Who};
use wirevault_lifecycle::certificate::Certificate;
use wirevault_lifecycle::holds::{Hold, HoldError, HoldList};
use wirevault_lifecycle::retention::Step;
use wirevault_query::QueryError;
use wirevault_query::{filter, matching_chunks};
use wirevault_storage::{Store, Wanted, Witness};

use super::deleting::{BY_HAND, finish};
use super::hold_rows::rows;
use super::rules::closed;
use crate::DaemonError;
use crate::api::{HoldBody, HoldsReport};
use crate::lifecycle::audit::Audit;
use crate::lifecycle::tier::Tier;

/// How often segments that closed are looked at.
pub(super) const PERIOD: Duration = Duration::from_secs(5);
/// Time after which a segment that could not be held is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Segments that are looked at before a start records: at the quota, about as many as its lanes
/// take the places of before there is time for more. Each takes reading its index.
const LOOKED_AT_FIRST: usize = 16;

/// The holds of a store.
pub struct Holds {
    keeping: Mutex<Keeping>,
    /// What the status tells; it never waits for a copy.
    shown: Mutex<Waiting>,
}

/// Segments that are not held yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting {
    pub(crate) segments: u64,
    /// Why one of them is not.
    pub(crate) why: Option<String>,
}

/// The list, and how far its copies are.
pub(super) struct Keeping {
    list: HoldList,
    /// Segments of which all is held that each hold wants.
    settled: HashMap<NonZeroU32, HashSet<LifeId>>,
    /// Where copies may lie, too.
    tier: Option<Arc<Tier>>,
    /// What could not be held, why, and when that was tried.
    failed: HashMap<(NonZeroU32, LifeId), (String, Instant)>,
    /// Segments of which a hold was seen to want something before the start recorded.
    seen: HashSet<LifeId>,
    /// What is asked when the quota takes a segment, while a copy may be going on.
    asked: Arc<Mutex<Vec<Hold>>>,
}

impl Holds {
    /// The holds that are listed in the folder of an audit log.
    ///
    /// # Errors
    /// `Audit`: the list does not read.
    pub fn open(folder: &Path) -> Result<Self, DaemonError> {
        let (settled, tier, failed, seen, asked) = Default::default();
        let list = HoldList::load(folder)?;
        let keeping = Keeping { list, settled, tier, failed, seen, asked };
        Ok(Self { keeping: Mutex::new(keeping), shown: Mutex::default() })
    }

    /// The same, of a store with a tier.
    pub(crate) fn with_tier(self, tier: Option<Arc<Tier>>) -> Self {
        self.lock().tier = tier;
        self
    }

    /// Looks at what the quota takes if it waited for holds, and has the audit log say whether they
    /// lose something by it. What does not read counts as lost.
    pub(crate) fn witness(&self, store: &Store, audit: &Arc<Audit>) -> Witness {
        let asked = Arc::clone(&self.lock().asked);
        let (catalog, audit) = (store.shared_catalog(), Arc::clone(audit));
        Box::new(move |entry, waited| {
            let unheld = waited && {
                let holds = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let catalog = catalog.take(0);
                let segment = catalog.segments.iter().find(|it| it.entry.life == entry.life);
                segment.is_none_or(|segment| {
                    let mut holds = holds.iter().filter(|hold| is_wanted(hold, segment));
                    holds.any(|hold| missing(hold, segment, &catalog) != Ok(Vec::new()))
                })
            };
            audit.deleting(entry, unheld);
            unheld
        })
    }

    /// From now on the quota takes last what no hold has had its copy of. Nothing is copied yet, so
    /// that recording need not wait for it.
    pub(crate) fn begin(&self, store: &Store) {
        self.lock().begin(store);
    }

    /// There is none, not even one that was released and whose copies are still there.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().list.holds().is_empty()
    }

    /// Copies what is not held yet, and deletes what was released. What fails is tried again later.
    pub(crate) fn keep(&self, store: &Store, audit: &Audit, stop: &dyn Fn() -> bool) {
        self.lock().keep(store, audit, stop);
        self.show(store);
    }

    /// Adds a hold and copies what is there already.
    pub(crate) fn add(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        body: HoldBody,
        now_ns: u64,
    ) -> Result<HoldsReport, DaemonError> {
        let fits = |link_type| filter::compile(&body.filter, link_type);
        if let Err(source) = fits(LinkType::ETHERNET)
            && fits(LinkType::RAW).is_err()
        {
            return Err(DaemonError::Filter { path: "filter".to_owned(), source });
        }
        if let Some((since_ns, until_ns)) = body.since_ns.zip(body.until_ns)
            && since_ns >= until_ns
        {
            return Err(QueryError::EmptyWindow { since_ns, until_ns }.into());
        }
        let mut keeping = self.lock();
        keeping.list.check(&body.name)?;
        let used = store.holds().keys().max().copied().unwrap_or(0);
        let hold = Hold {
            number: keeping.list.next_number(used),
            name: body.name,
            filter: body.filter,
            since_ns: body.since_ns,
            until_ns: body.until_ns,
            reason: body.reason,
            by: who.clone(),
            added_ns: now_ns,
            released: false,
        };
        let Hold { name, filter, since_ns, until_ns, reason, .. } = hold.clone();
        let number = hold.number.get();
        let event = Event::HoldAdded { hold: number, name, filter, since_ns, until_ns, reason };
        audit.write(who, event)?;
        keeping.list.add(hold)?;
        keeping.keep(store, audit, &|| false);
        drop(keeping);
        Ok(self.report(store))
    }

    /// Releases a hold: its copies are deleted for good.
    pub(crate) fn release(
        &self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        name: &str,
    ) -> Result<HoldsReport, DaemonError> {
        let mut keeping = self.lock();
        let listed = keeping.list.holds().iter().find(|hold| hold.name == name);
        let unlisted = || {
            let number: u32 = name.strip_prefix('#')?.parse().ok()?;
            let there = store.holds().contains_key(&number);
            NonZeroU32::new(number).filter(|_| there && !keeping.is_listed(number))
        };
        let number = listed.map(|hold| hold.number).or_else(unlisted);
        let unknown = || HoldError::Unknown { name: name.to_owned() };
        let number = number.ok_or_else(unknown)?;
        audit.write(who, Event::HoldReleased { hold: number.get(), name: name.to_owned() })?;
        if keeping.is_listed(number.get()) {
            keeping.list.release(name)?;
        }
        let certificates = keeping.forget(store, audit, who, number, name)?;
        drop(keeping);
        Ok(HoldsReport { certificates, ..self.report(store) })
    }

    /// All holds, with what their copies take.
    pub(crate) fn report(&self, store: &Store) -> HoldsReport {
        self.show(store);
        let (keeping, taken, catalog) = (self.lock(), store.holds(), store.catalog(0));
        HoldsReport {
            holds: rows(&keeping.list, taken, |hold| Some(keeping.waiting(hold, &catalog))),
            budget_bytes: Some(store.hold_budget_bytes()),
            used_bytes: store.holds_bytes(),
            certificates: Vec::new(),
        }
    }

    /// What the status tells.
    pub(crate) fn waiting(&self) -> Waiting {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody else copies, adds, releases or deletes meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, Keeping> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, store: &Store) {
        let catalog = store.catalog(0);
        let keeping = self.lock();
        let mut sum = Waiting::default();
        for hold in keeping.list.holds() {
            let waiting = keeping.waiting(hold, &catalog);
            sum.segments += waiting.segments;
            sum.why = sum.why.or(waiting.why);
        }
        drop(keeping);
        let unheld = store.unheld();
        sum.why = sum.why.or_else(|| {
            (unheld > 0).then(|| {
                format!(
                    "the quota took {unheld} segments since the start before a hold had its copy; \
                     give the store more room, or `hold_share` a larger part of it"
                )
            })
        });
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = sum;
    }
}

impl Keeping {
    /// See [`Holds::begin`]. The oldest segments go first if all may be wanted, and an earlier
    /// start will have seen to most of them: of these it is known which are.
    fn begin(&mut self, store: &Store) {
        let catalog = store.catalog(0);
        for segment in closed(&catalog).take(LOOKED_AT_FIRST) {
            let life = segment.entry.life;
            for hold in self.list.holds().iter().filter(|hold| is_wanted(hold, segment)) {
                if missing(hold, segment, &catalog) == Ok(Vec::new()) {
                    self.settled.entry(hold.number).or_default().insert(life);
                } else {
                    self.seen.insert(life);
                }
            }
        }
        self.spare_waiting(store);
    }

    /// See [`Holds::keep`].
    pub(super) fn keep(&mut self, store: &Store, audit: &Audit, stop: &dyn Fn() -> bool) {
        self.spare_waiting(store);
        self.copy_waiting(store, audit, stop);
        self.spare_waiting(store);
    }

    /// Has the quota take last what is not held yet, and what closes until the next time.
    fn spare_waiting(&self, store: &Store) {
        let holds: Vec<&Hold> = self.list.holds().iter().filter(|it| !it.released).collect();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) =
            holds.iter().copied().cloned().collect();
        let wanted = |segment: &Segment| {
            let waits = |hold: &&&Hold| is_wanted(hold, segment) && !self.is_settled(hold, segment);
            let life = segment.entry.life;
            let is_known = |hold: &Hold| {
                self.seen.contains(&life) || self.failed.contains_key(&(hold.number, life))
            };
            let mut waiting = holds.iter().filter(waits).peekable();
            if segment.entry.state != SegmentState::Closed || waiting.peek().is_none() {
                Wanted::Nothing
            } else if waiting.any(|hold| is_known(hold)) {
                Wanted::Packets
            } else {
                Wanted::Unseen
            }
        };
        store.spare(!holds.is_empty(), &store.catalog(0), wanted);
    }

    fn copy_waiting(&mut self, store: &Store, audit: &Audit, stop: &dyn Fn() -> bool) {
        for hold in self.list.holds().to_vec() {
            if hold.released {
                let done = self.forget(store, audit, &Who::Recorder, hold.number, &hold.name);
                if let Err(error) = done {
                    let error = error.chain();
                    tracing::error!("copies of the hold {} cannot be deleted: {error}", hold.name);
                }
                continue;
            }
            let catalog = store.catalog(0);
            for segment in wanted(&hold, &catalog) {
                if stop() {
                    return;
                }
                self.settle(store, audit, &hold, &catalog, segment);
            }
            let there: HashSet<LifeId> = closed(&catalog).map(|it| it.entry.life).collect();
            self.settled.entry(hold.number).or_default().retain(|life| there.contains(life));
            self.failed.retain(|(_, life), _| there.contains(life));
            self.seen.retain(|life| there.contains(life));
        }
    }

    /// Of these steps those that no hold stands in the way of.
    ///
    /// # Errors
    /// `Held` if one of them was somebody's order.
    pub(super) fn spare(
        &self,
        catalog: &Catalog,
        steps: &[Step],
    ) -> Result<Vec<Step>, DaemonError> {
        let mut in_the_way: HashMap<String, (u64, &str)> = HashMap::new();
        for hold in self.list.holds() {
            let waits = |it: &&Arc<Segment>| !self.is_settled(hold, it);
            for segment in wanted(hold, catalog).filter(waits) {
                let entry = &segment.entry;
                in_the_way.insert(entry.life.to_string(), (entry.ordinal, hold.name.as_str()));
            }
        }
        let ordered = steps.iter().filter(|step| step.reason == BY_HAND);
        if let Some((segment, hold)) = ordered.filter_map(|it| in_the_way.get(&it.life)).next() {
            return Err(DaemonError::Held { segment: *segment, hold: (*hold).to_owned() });
        }
        let free = |step: &&Step| !in_the_way.contains_key(&step.life);
        Ok(steps.iter().filter(free).cloned().collect())
    }

    fn settle(
        &mut self,
        store: &Store,
        audit: &Audit,
        hold: &Hold,
        catalog: &Catalog,
        segment: &Segment,
    ) {
        let life = segment.entry.life;
        let key = (hold.number, life);
        let tried = self.failed.get(&key).is_some_and(|(_, at)| at.elapsed() < RETRY);
        if tried || self.is_settled(hold, segment) {
            return;
        }
        let held = missing(hold, segment, catalog).and_then(|chunks| match chunks.is_empty() {
            true => Ok(()),
            false => copy(store, audit, hold, segment, &chunks),
        });
        match held {
            Ok(()) => {
                self.failed.remove(&key);
                self.settled.entry(hold.number).or_default().insert(life);
            }
            Err(why) => {
                tracing::error!("segment {} is not held for {}: {why}", segment.name(), hold.name);
                self.failed.insert(key, (why, Instant::now()));
            }
        }
    }

    fn forget(
        &mut self,
        store: &Store,
        audit: &Audit,
        who: &Who,
        number: NonZeroU32,
        name: &str,
    ) -> Result<Vec<Certificate>, DaemonError> {
        let reason = format!("hold {name} released");
        let certificates = match &self.tier {
            Some(tier) => tier.forget_hold(store, audit, who, &reason, number)?,
            None => finish(store, audit, who, &reason, &store.forget_hold(number)?)?,
        };
        self.list.remove(number)?;
        self.settled.remove(&number);
        self.failed.retain(|(hold, _), _| *hold != number);
        Ok(certificates)
    }

    /// The tier of the store.
    pub(super) fn tier(&self) -> Option<&Tier> {
        self.tier.as_deref()
    }

    fn is_listed(&self, number: u32) -> bool {
        self.list.holds().iter().any(|hold| hold.number.get() == number)
    }

    fn is_settled(&self, hold: &Hold, segment: &Segment) -> bool {
        let settled = self.settled.get(&hold.number);
        settled.is_some_and(|settled| settled.contains(&segment.entry.life))
    }

    fn waiting(&self, hold: &Hold, catalog: &Catalog) -> Waiting {
        let waiting: Vec<_> =
            wanted(hold, catalog).filter(|segment| !self.is_settled(hold, segment)).collect();
        let why = waiting.iter().find_map(|segment| {
            let (why, _) = self.failed.get(&(hold.number, segment.entry.life))?;
            Some(format!("segment {} is not held for {}: {why}", segment.name(), hold.name))
        });
        Waiting { segments: waiting.len() as u64, why }
    }
}

/// Closed segments that may have packets of a hold.
fn wanted<'a>(hold: &Hold, catalog: &'a Catalog) -> impl Iterator<Item = &'a Arc<Segment>> {
    closed(catalog).filter(|segment| is_wanted(hold, segment))
}

fn is_wanted(hold: &Hold, segment: &Segment) -> bool {
    let times_ns = segment.entry.times_ns;
    !hold.released && times_ns.is_some_and(|times_ns| hold.touches(times_ns))
}

/// Chunks of a segment that may have packets of the hold and of which it has no copy.
fn missing(hold: &Hold, segment: &Segment, catalog: &Catalog) -> Result<Vec<u32>, String> {
    let (since_ns, until_ns) = (hold.since_ns.unwrap_or(0), hold.until_ns.unwrap_or(u64::MAX));
    let mut chunks = match matching_chunks(segment, &hold.filter, since_ns, until_ns) {
        Ok(chunks) => chunks,
        // The filter is one of another link type.
        Err(QueryError::Filter(_)) => return Ok(Vec::new()),
        Err(error) => return Err(chain(&error)),
    };
    let sequences = |segment: &Segment| -> Result<Vec<u64>, String> {
        let reader = segment.open().map_err(|error| chain(&error))?;
        Ok(reader.with_index(|index| index.chunks().iter().map(|it| it.first_sequence).collect()))
    };
    if chunks.is_empty() {
        return Ok(chunks);
    }
    let mut held = HashSet::new();
    let (first, end) = segment.entry.sequences;
    for copy in catalog.segments.iter().filter(|it| it.entry.hold == hold.number.get()) {
        let overlaps = copy.entry.sequences.0 < end && copy.entry.sequences.1 > first;
        if overlaps && copy.stream() == segment.stream() {
            held.extend(sequences(copy)?);
        }
    }
    let sequences = sequences(segment)?;
    chunks.retain(|number| !sequences.get(*number as usize).is_some_and(|it| held.contains(it)));
    Ok(chunks)
}

fn copy(
    store: &Store,
    audit: &Audit,
    hold: &Hold,
    segment: &Segment,
    chunks: &[u32],
) -> Result<(), String> {
    let copy = store.hold_chunks(hold.number, segment, chunks);
    let copy = copy.map_err(|error| chain(&error))?;
    let event = Event::Held {
        hold: hold.number.get(),
        segment: segment.entry.ordinal,
        copy: copy.ordinal,
        life: copy.life.to_string(),
        packets: copy.packets,
        chunks: copy.chunks,
    };
    // The copy is there, whatever becomes of the entry; the status tells of the log's trouble.
    audit.note(event);
    Ok(())
}
