//! Leaving out the segments that are known to hold no answer, before any of them is opened.

use std::rc::Rc;

use wirevault_index::digest::ask::Told;
use wirevault_packet::bpf::Program;

use crate::completeness::Recorded;
use crate::reading::Reading;
use crate::source::Source;
use crate::stream::Member;

/// Asks what is known of the members that touch the window, for all streams of one link type at
/// once, and marks those that need not be opened. What is known of their gaps is noted.
pub(crate) fn rule_out<'a, S: Source>(
    mut streams: Vec<&mut Vec<Member<'a, S>>>,
    program: &Rc<Program>,
    touches: impl Fn((u64, u64)) -> bool,
    reading: &mut Reading<'a>,
) {
    for members in &mut streams {
        members.sort_by_key(|member| (member.sequences.0, member.source.entry().ordinal));
    }
    let is_asked = |member: &Member<'a, S>| member.opened.is_none() && touches(member.times_ns);
    let members = streams.iter().flat_map(|members| members.iter());
    let asked: Vec<&S> =
        members.filter(|member| is_asked(member)).map(|member| member.source).collect();
    let mut told = S::ask(&asked, program).into_iter();
    for members in streams {
        let mut rest = &mut members[..];
        while !rest.is_empty() {
            let (group, behind) = rest.split_at_mut(overlapping(rest));
            let known: Vec<Option<Told>> = group
                .iter()
                .map(|member| is_asked(member).then(|| told.next().flatten()).flatten())
                .collect();
            let no_answer = |(member, told): (&Member<'a, S>, &Option<Told>)| match told {
                Some(told) => !told.may_match,
                None => !touches(member.times_ns),
            };
            if group.iter().zip(&known).all(no_answer) {
                for (member, told) in group.iter_mut().zip(known) {
                    member.ruled_out = true;
                    told.into_iter().for_each(|told| note(member.source, told, reading));
                }
            }
            rest = behind;
        }
    }
}

/// Members at the start of `members` that go together, because one holds copies of packets of
/// another one.
fn overlapping<S: Source>(members: &[Member<'_, S>]) -> usize {
    let mut end = 0;
    let apart = members.iter().enumerate().position(|(at, member)| {
        let is_apart = at > 0 && member.sequences.0 >= end;
        end = end.max(member.sequences.1);
        is_apart
    });
    apart.unwrap_or(members.len())
}

/// What opening the segment would have told.
fn note<S: Source>(source: &S, told: Told, reading: &mut Reading<'_>) {
    let entry = source.entry();
    let (run, lane) = (entry.run, entry.lane);
    reading.findings.seen.insert(entry.ordinal);
    reading.findings.chunks_considered += u64::from(told.chunks);
    let gaps = told.gaps.into_iter().map(|gap| Recorded { run, lane, gap });
    reading.findings.recorded.extend(gaps);
}
