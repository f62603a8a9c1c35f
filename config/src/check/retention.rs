//! The rules of `retention`.

use super::choice;
use crate::section::Section;
use crate::settings::{RetentionAction, RetentionRule};

/// All rules, in the order of the file.
pub(super) fn rules(root: &Section<'_>) -> Vec<RetentionRule> {
    let mut rules: Vec<RetentionRule> = Vec::new();
    for section in root.sections("retention") {
        let rule = rule(&section);
        if !rule.name.is_empty() && rules.iter().any(|other| other.name == rule.name) {
            let problem = format!("a rule before it is named {} as well", rule.name);
            section.fault("name", problem, "give each rule a name of its own".to_owned());
        }
        if rule.size_bytes.is_some() && rule.action == RetentionAction::Keep {
            let problem = "what is kept has no size to keep to".to_owned();
            let way_out = "remove it, or write a rule with `action: delete` behind this one";
            section.fault("size", problem, way_out.to_owned());
        }
        rules.push(rule);
    }
    rules
}

fn rule(section: &Section<'_>) -> RetentionRule {
    RetentionRule {
        name: section.text("name").unwrap_or_default(),
        action: choice(section, "action", RetentionAction::from_name, RetentionAction::Delete),
        age: section.has("age").then(|| section.duration("age")),
        size_bytes: section.has("size").then(|| section.number("size")),
        interface: section.text("interface"),
        flows: section.text("flows"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::check::tests::{MINIMAL, faults, read};

    use super::*;

    #[test]
    fn rules_stand_in_the_order_of_the_file() {
        let text = format!(
            "{MINIMAL}\nretention:\n  - name: dns\n    action: keep\n    flows: port 53\n  \
             - name: month\n    action: delete\n    age: 30days\n    size: 0B\n"
        );
        let rules = read(&text).retention;
        assert_eq!(rules.len(), 2);
        let RetentionRule { action, age, size_bytes, flows, .. } = &rules[0];
        assert_eq!((*action, *age, *size_bytes), (RetentionAction::Keep, None, None));
        assert_eq!(flows.as_deref(), Some("port 53"));
        let month = Duration::from_secs(30 * 24 * 3600);
        assert_eq!((rules[1].age, rules[1].size_bytes), (Some(month), Some(0)));
    }

    #[test]
    fn names_are_unique_and_sizes_only_delete() {
        let faults = faults(&format!(
            "{MINIMAL}\nretention:\n  - name: a\n    action: keep\n    size: 1GiB\n  \
             - name: a\n    action: delete\n"
        ));
        assert_eq!(faults.len(), 2, "{faults:#?}");
        assert!(faults[0].contains("no size to keep to") && faults[1].contains("named a as well"));
    }
}
