//! What the digests say to a question, for many segments at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wirevault_format::Gap;
use wirevault_format::digest::{FACTS_PAGE, GROUP_PLACES, PORTS_HELD, PORTS_PAGE};
use wirevault_format::table::SegmentState;
use wirevault_media::MediaFile;
use wirevault_packet::bpf::{Oracle, Program};

use super::pages::{Digests, Loaded};
use super::{Facts, host_page, may_hold};
use crate::catalog::Segment;
use crate::flows::Shape;
use crate::host_filter::{PREFIXES4, PREFIXES6, key4, key6};
use crate::select::{Question, ShapePlan};

/// Threads that read digests for one question, at least and at most: half of them may wait for the
/// device while the others check and unseal.
const THREADS: RangeInclusive<usize> = 4..=8;

/// Shapes that a thread remembers at most. Traffic has dozens; a flood of random headers has any
/// number.
const PLANS_MAX: usize = 1 << 14;

/// What a digest says of its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// It may hold a packet that the program accepts.
    pub may_match: bool,
    /// Its gaps.
    pub gaps: Vec<Gap>,
    /// Chunks with packets.
    pub chunks: u32,
}

/// Asks the digests of these segments, in any order, whether they may hold a packet that `program`
/// accepts. `None` for a segment without a digest: it must be opened.
pub fn ask(segments: &[&Segment], program: &Program) -> Vec<Option<Told>> {
    let mut answers = vec![None; segments.len()];
    let groups = groups(segments);
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = (2 * threads).clamp(*THREADS.start(), *THREADS.end()).min(groups.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut asking = Asking { program, plans: HashMap::new(), buf: Vec::new() };
        let mut told = Vec::new();
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let of_group: Vec<&Segment> = group.members.iter().map(|at| segments[*at]).collect();
            let answers = asking.group(group, &of_group);
            told.extend(group.members.iter().copied().zip(answers));
        }
        told
    };
    let told: Vec<_> = match threads {
        ..=1 => work(),
        _ => std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            // What a thread did not tell is not known.
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        }),
    };
    told.into_iter().for_each(|(at, answer)| answers[at] = answer);
    answers
}

/// Segments whose pages lie side by side.
struct Group {
    digests: Arc<Digests>,
    file: Arc<dyn MediaFile>,
    /// Where they stand in the question.
    members: Vec<usize>,
}

fn groups(segments: &[&Segment]) -> Vec<Group> {
    let mut by_place: BTreeMap<(u16, u32), Vec<usize>> = BTreeMap::new();
    for (at, segment) in segments.iter().enumerate() {
        if segment.entry.state == SegmentState::Closed && segment.digests.is_some() {
            by_place.entry((segment.volume, segment.place / GROUP_PLACES)).or_default().push(at);
        }
    }
    let mut files: HashMap<u16, Option<Arc<dyn MediaFile>>> = HashMap::new();
    let group = |((volume, _), members): ((u16, u32), Vec<usize>)| {
        let digests = segments[members[0]].digests.clone()?;
        let file = files.entry(volume).or_insert_with(|| digests.file()).clone()?;
        Some(Group { digests, file, members })
    };
    by_place.into_iter().filter_map(group).collect()
}

/// What one thread learns of the program.
struct Asking<'p> {
    program: &'p Program,
    plans: HashMap<Vec<u8>, ShapePlan>,
    buf: Vec<u8>,
}

impl Asking<'_> {
    fn group(&mut self, group: &Group, segments: &[&Segment]) -> Vec<Option<Told>> {
        let Group { digests, file, .. } = group;
        if self.plans.len() > PLANS_MAX {
            self.plans.clear();
        }
        let unknown: Vec<_> = segments.iter().map(|segment| (*segment, None)).collect();
        let loaded = digests.load(&**file, FACTS_PAGE, &unknown, &mut self.buf);
        let mut answers = vec![None; segments.len()];
        // Segments that the addresses and ports decide, and what is asked of these.
        let mut unsure: Vec<(usize, Facts<'_>)> = Vec::new();
        for (at, page) in loaded.iter().enumerate() {
            let read = page.as_ref().and_then(|page| Facts::read(&page.bytes).ok());
            let Some((facts, gaps)) = read.and_then(|facts| facts.gaps().map(|it| (facts, it)))
            else {
                continue;
            };
            let plans = facts.shapes.iter().map(|shape| self.plan(shape).without_values());
            let verdict = plans.max_by_key(|verdict| verdict.unwrap_or(true));
            let verdict = verdict.unwrap_or(Some(false));
            let may_match = verdict.unwrap_or(true);
            answers[at] = Some(Told { may_match, gaps, chunks: facts.chunks });
            if verdict.is_none() && facts.has_values {
                unsure.push((at, facts));
            }
        }
        if let Some(host_pages) = digests.host_pages() {
            let of_unsure: Vec<(&Segment, Option<&Loaded>)> =
                unsure.iter().map(|(at, _)| (segments[*at], loaded[*at].as_deref())).collect();
            let wanted: BTreeSet<u16> = unsure
                .iter()
                .flat_map(|(_, facts)| &facts.shapes)
                .filter_map(|shape| self.plans.get(*shape))
                .flat_map(ShapePlan::questions)
                .filter_map(|question| page_of(question, host_pages))
                .collect();
            let load = |page| (page, digests.load(&**file, page, &of_unsure, &mut self.buf));
            let pages: BTreeMap<u16, Vec<Option<Arc<Loaded>>>> =
                wanted.into_iter().map(load).collect();
            for (number, (at, facts)) in unsure.iter().enumerate() {
                let page = |page: u16| pages.get(&page)?.get(number)?.as_deref();
                let values = Known { page: &page, host_pages };
                let may_match = facts.shapes.iter().any(|shape| self.may_match(shape, &values));
                if let Some(told) = &mut answers[*at] {
                    told.may_match = may_match;
                }
            }
        }
        answers
    }

    fn plan(&mut self, shape: &[u8]) -> &ShapePlan {
        if !self.plans.contains_key(shape) {
            let plan = ShapePlan::new(&Shape::new(shape.to_vec()), self.program);
            self.plans.insert(shape.to_vec(), plan);
        }
        &self.plans[shape]
    }

    fn may_match(&mut self, shape: &[u8], values: &Known<'_>) -> bool {
        let plan = self.plans.get_mut(shape);
        plan.is_none_or(|plan| plan.may_match(values, self.program))
    }
}

/// The page that answers a question, if one does.
fn page_of(question: &Question, host_pages: u16) -> Option<u16> {
    match *question {
        Question::Host4(addr, bits) => held(&PREFIXES4, bits).map(|held| key4(addr, held)),
        Question::Host6(addr, bits) => held(&PREFIXES6, bits).map(|held| key6(addr, held)),
        Question::Port(_, high) => return (u32::from(high) < PORTS_HELD).then_some(PORTS_PAGE),
    }
    .map(|key| host_page(key, host_pages))
}

/// The longest prefix held that a question covers.
fn held(prefixes: &[u8], asked: u8) -> Option<u8> {
    prefixes.iter().copied().find(|held| *held <= asked)
}

/// What the pages of one segment know of addresses and ports.
struct Known<'a> {
    page: &'a dyn Fn(u16) -> Option<&'a Loaded>,
    host_pages: u16,
}

impl Known<'_> {
    fn maybe(&self, key: Option<u64>) -> bool {
        let Some(key) = key else { return true };
        let page = (self.page)(host_page(key, self.host_pages));
        page.is_none_or(|page| may_hold(&page.bytes, page.probes, key))
    }
}

impl Oracle for Known<'_> {
    fn host4(&self, addr: [u8; 4], prefix_len: u8) -> bool {
        self.maybe(held(&PREFIXES4, prefix_len).map(|held| key4(addr, held)))
    }

    fn host6(&self, addr: [u8; 16], prefix_len: u8) -> bool {
        self.maybe(held(&PREFIXES6, prefix_len).map(|held| key6(addr, held)))
    }

    fn port(&self, mut range: RangeInclusive<u16>) -> bool {
        let Some(page) = (self.page)(PORTS_PAGE) else { return true };
        range.any(|port| {
            let byte = page.bytes.get(usize::from(port) / 8);
            byte.is_none_or(|byte| byte & (1 << (port % 8)) != 0)
        })
    }
}
