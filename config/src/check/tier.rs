//! The object tier, and the rules that need it.

use wirevault_media::Address;

use super::choice;
use crate::section::Section;
use crate::settings::{RetentionAction, RetentionRule, Tier, TierFlows};

/// The tier, if the file names one.
pub(super) fn tier(root: &Section<'_>, retention: &[RetentionRule]) -> Option<Tier> {
    if !root.has("tier") {
        let is_tier = |rule: &RetentionRule| rule.action == RetentionAction::Tier;
        if let Some(rule) = retention.iter().find(|rule| is_tier(rule)) {
            let problem =
                format!("the rule {} moves segments to a tier, and there is none", rule.name);
            root.fault("retention", problem, "add `tier.url`, or take another action".to_owned());
        }
        return None;
    }
    let section = root.section("tier");
    let url = section.text("url").unwrap_or_default();
    if let Some(Err(error)) = (!url.is_empty()).then(|| url.parse::<Address>()) {
        let way_out = "docs/OPERATIONS.md has an example of each".to_owned();
        section.fault("url", error.to_string(), way_out);
    }
    let rate_bytes = section.has("rate").then(|| section.number("rate"));
    let flows = choice(&section, "flows", TierFlows::from_name, TierFlows::Off);
    Some(Tier { url, rate_bytes, keep_local: section.switch("keep_local"), flows })
}

#[cfg(test)]
mod tests {
    use crate::TierFlows;
    use crate::check::tests::{MINIMAL, faults, read};

    const RULE: &str = "retention:\n  - name: cold\n    action: tier\n";

    #[test]
    fn a_tier_has_a_place() {
        assert_eq!(read(MINIMAL).tier, None);
        let text = format!("{MINIMAL}\n{RULE}tier:\n  url: file:///mnt/t\n  rate: 1MiB\n");
        let tier = read(&text).tier.unwrap();
        assert_eq!((tier.url.as_str(), tier.rate_bytes), ("file:///mnt/t", Some(1 << 20)));
        assert!(tier.keep_local && tier.flows == TierFlows::Off);
        let text = format!("{MINIMAL}\ntier:\n  url: file:///mnt/t\n  flows: parquet\n");
        assert_eq!(read(&text).tier.map(|tier| tier.flows), Some(TierFlows::Parquet));
        let url = "s3://bucket/a?region=eu-central-1&endpoint=http://127.0.0.1:1";
        assert_eq!(read(&format!("{MINIMAL}\ntier:\n  url: {url}\n")).tier.unwrap().url, url);
    }

    #[test]
    fn rules_do_not_move_to_nowhere() {
        let told = faults(&format!("{MINIMAL}\n{RULE}"));
        assert!(told.len() == 1 && told[0].contains("the rule cold"), "{told:#?}");
        for url in ["/mnt/t", "file:///", "file://t", "ftp://host/t", "s3://b", "s3://bucket?x=1"] {
            let told = faults(&format!("{MINIMAL}\ntier:\n  url: {url}\n"));
            assert!(told.len() == 1 && told[0].contains("file:///PATH"), "{told:#?}");
        }
    }
}
