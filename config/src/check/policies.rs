//! The policies of `policies` and the rungs of `pressure`.

use crate::input::{Input, LiveSource};
use crate::policies::{Policy, PolicyAction, Rung};
use crate::section::Section;

/// Keys that belong to one action each.
const OF_ACTION: [(&str, &str); 3] =
    [("cutoff", "flow_bytes"), ("sample", "one_in"), ("snaplen", "snaplen")];

/// Both, in the order of the file.
pub(super) fn policies(root: &Section<'_>, input: &Input) -> (Vec<Policy>, Vec<Rung>) {
    let mut names = Vec::new();
    let mut standing = Vec::new();
    for section in root.sections("policies") {
        let interface = section.text("interface");
        let policy = Policy { interface, ..policy(&section, &mut names) };
        known_interface(&section, &policy, input);
        standing.push(policy);
    }
    let mut ladder: Vec<Rung> = Vec::new();
    for section in root.sections("pressure") {
        let rung = rung(&section, &mut names);
        below_the_last(&section, &rung, ladder.last());
        ladder.push(rung);
    }
    for name in ["policies", "pressure"] {
        if root.has(name) && matches!(input, Input::Replay(_)) {
            let problem = "a file is recorded whole: it waits for the disk".to_owned();
            root.fault(name, problem, "remove it, or `replay`".to_owned());
        }
    }
    (standing, ladder)
}

/// What policies and rungs have in common.
fn policy(section: &Section<'_>, names: &mut Vec<String>) -> Policy {
    let name = section.text("name").unwrap_or_default();
    if names.contains(&name) && !name.is_empty() {
        let problem = format!("another policy or rung is named {name} as well");
        section.fault("name", problem, "give each a name of its own".to_owned());
    }
    names.push(name.clone());
    let action = section.text("action").unwrap_or_default();
    for (of_action, key) in OF_ACTION {
        // A rung has no `one_in`: a key that does not exist there cannot stand there.
        if of_action == action && !section.has(key) {
            let problem = format!("`{action}` needs it");
            section.fault(key, problem, format!("add `{key}`"));
        } else if of_action != action && section.has(key) {
            let problem = format!("it belongs to `action: {of_action}`");
            section.fault(key, problem, "remove it".to_owned());
        }
    }
    let given = |key| if section.has(key) { section.number(key) } else { 0 };
    Policy {
        path: section.path.clone(),
        name,
        filter: section.text("filter"),
        interface: None,
        action: match action.as_str() {
            "drop" => PolicyAction::Drop,
            "cutoff" => PolicyAction::Cutoff { flow_bytes: given("flow_bytes") },
            // The table keeps both far below the limits of their types.
            "sample" => PolicyAction::Sample { one_in: given("one_in") as u32 },
            "snaplen" => PolicyAction::Snaplen { bytes: given("snaplen") as u32 },
            "coarse_index" => PolicyAction::CoarseIndex,
            _ => PolicyAction::Keep,
        },
    }
}

fn known_interface(section: &Section<'_>, policy: &Policy, input: &Input) {
    let (Some(name), Input::Live(inputs)) = (&policy.interface, input) else { return };
    let is_it = |source: &LiveSource| match source {
        LiveSource::Capture(capture) => capture.interface == *name,
        LiveSource::PcapOverIp(_) | LiveSource::MirrorTarget(_) => false,
    };
    // Without any input that is what is at fault.
    if !inputs.is_empty() && !inputs.iter().any(|live| is_it(&live.source)) {
        let problem = format!("`{name}` is not captured");
        section.fault("interface", problem, "name an interface of `capture`".to_owned());
    }
}

fn rung(section: &Section<'_>, names: &mut Vec<String>) -> Rung {
    let percent = |name| section.number(name).try_into().unwrap_or(u8::MAX);
    let rung = Rung {
        policy: policy(section, names),
        enter_percent: percent("enter"),
        leave_percent: percent("leave"),
    };
    if rung.policy.action == PolicyAction::CoarseIndex && rung.policy.filter.is_some() {
        let problem = "a chunk is indexed coarsely as a whole".to_owned();
        section.fault("filter", problem, "remove it".to_owned());
    }
    if rung.leave_percent > rung.enter_percent {
        let problem = format!("{}% is above `enter`", rung.leave_percent);
        section.fault("leave", problem, "write a share below that of `enter`".to_owned());
    }
    rung
}

/// Rungs are entered from the first to the last and left the other way.
fn below_the_last(section: &Section<'_>, rung: &Rung, last: Option<&Rung>) {
    let Some(last) = last else { return };
    let marks = [
        ("enter", rung.enter_percent, last.enter_percent),
        ("leave", rung.leave_percent, last.leave_percent),
    ];
    for (name, percent, before) in marks {
        if percent < before {
            let problem = format!("{percent}% is below that of the rung before it, {before}%");
            let way_out = format!("write {before}% or more, or change their order");
            section.fault(name, problem, way_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::check::tests::{MINIMAL, faults, one_fault, read};

    use super::*;

    #[test]
    fn policies_and_rungs_stand_in_the_order_of_the_file() {
        let config = read(&format!(
            "{MINIMAL}policies:\n  - {{name: dns, action: keep, filter: port 53}}\n  \
             - {{name: bulk, action: cutoff, flow_bytes: 1MiB, interface: eth0}}\n  \
             - {{name: some, action: sample, one_in: 100}}\n\
             pressure:\n  - {{name: coarse, action: coarse_index, enter: 40%, leave: 35%}}\n  \
             - {{name: heads, action: snaplen, snaplen: 128B, enter: 60%, leave: 35%}}\n"
        ));
        let [dns, bulk, some] = &config.policies[..] else { panic!("{:?}", config.policies) };
        assert_eq!((dns.action, dns.filter.as_deref()), (PolicyAction::Keep, Some("port 53")));
        assert_eq!(bulk.action, PolicyAction::Cutoff { flow_bytes: 1 << 20 });
        assert_eq!((bulk.interface.as_deref(), bulk.path.as_str()), (Some("eth0"), "policies[1]"));
        assert_eq!(some.action, PolicyAction::Sample { one_in: 100 });
        let [coarse, heads] = &config.pressure[..] else { panic!("{:?}", config.pressure) };
        assert_eq!(coarse.policy.action, PolicyAction::CoarseIndex);
        assert_eq!(heads.policy.action, PolicyAction::Snaplen { bytes: 128 });
        assert_eq!((heads.enter_percent, heads.leave_percent), (60, 35));
    }

    #[test]
    fn keys_fit_their_action_and_names_are_unique() {
        let faults = faults(&format!(
            "{MINIMAL}policies:\n  - {{name: a, action: cutoff}}\n  \
             - {{name: a, action: drop, snaplen: 64B}}\n  \
             - {{name: b, action: keep, interface: eth7}}\n\
             pressure:\n  - {{name: b, action: coarse_index, filter: tcp, enter: 50%, \
             leave: 60%}}\n"
        ));
        let parts = [
            "policies[0].flow_bytes: `cutoff` needs it",
            "policies[1].name: another policy or rung is named a",
            "policies[1].snaplen: it belongs to `action: snaplen`",
            "policies[2].interface: `eth7` is not captured",
            "pressure[0].name: another policy or rung is named b",
            "pressure[0].filter: a chunk is indexed coarsely",
            "pressure[0].leave: 60% is above `enter`",
        ];
        assert_eq!(faults.len(), parts.len(), "{faults:#?}");
        for part in parts {
            assert!(faults.iter().any(|fault| fault.contains(part)), "{part}: {faults:#?}");
        }
    }

    #[test]
    fn rungs_do_not_fall_and_a_file_has_none() {
        let rungs = "pressure:\n  - {name: a, action: drop, enter: 60%, leave: 40%}\n  \
                     - {name: b, action: drop, enter: 50%, leave: 40%}\n";
        let fault = one_fault(&format!("{MINIMAL}{rungs}"));
        assert!(
            fault.contains("pressure[1].enter: 50% is below that of the rung before"),
            "{fault}"
        );
        let file = "store: /a\nreplay: {file: /x}\npolicies: [{name: a, action: drop}]\n";
        assert!(one_fault(file).contains("policies: a file is recorded whole"));
    }
}
