//! Where heads of the audit log are kept.

use crate::audit::{Anchor, Audit};
use crate::section::{Section, Value};

pub(super) fn audit(section: &Section<'_>) -> Audit {
    let mut anchors = Vec::new();
    for item in section.list("anchor") {
        let Value::Text(text) = &item.value else { continue };
        let anchor = Anchor::from(text.as_str());
        let is_place = match &anchor {
            Anchor::File(path) => path.is_absolute(),
            Anchor::Objects(_) => true,
            Anchor::Key(key) => !key.is_empty(),
        };
        match is_place && !anchors.contains(&anchor) {
            true => anchors.push(anchor),
            false => {
                let problem = format!("{text} is no place for heads, or stands there twice");
                let way_out = "write /ABSOLUTE/PATH of a file, a URL, or kms:KEY";
                section.fault("anchor", problem, way_out.to_owned());
            }
        }
    }
    Audit { anchors, anchor_every: section.duration("anchor_every") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::audit::Anchor;
    use crate::check::tests::{MINIMAL, faults, read};

    #[test]
    fn a_place_is_a_file_a_url_or_a_key() {
        assert!(read(MINIMAL).audit.anchors.is_empty());
        let one = read(&format!("{MINIMAL}\naudit:\n  anchor: /a\n")).audit;
        assert_eq!(one.anchors, [Anchor::File("/a".into())]);
        assert_eq!(one.anchor_every, Duration::from_secs(3600));
        let all = "audit:\n  anchor: [/a, 's3://b/c', 'kms:arn:aws:kms:r:1:key/2']\n  \
                   anchor_every: 10s\n";
        let all = read(&format!("{MINIMAL}\n{all}")).audit;
        let key = Anchor::Key("arn:aws:kms:r:1:key/2".into());
        assert_eq!(all.anchors[1..], [Anchor::Objects("s3://b/c".into()), key]);
        let shown: Vec<_> = all.anchors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/a", "s3://b/c", "kms:arn:aws:kms:r:1:key/2"]);
    }

    #[test]
    fn what_is_no_place_is_a_fault() {
        for text in ["heads", "'kms:'", "[/a, /a]"] {
            let told = faults(&format!("{MINIMAL}\naudit:\n  anchor: {text}\n"));
            assert!(told.len() == 1 && told[0].contains("or kms:KEY"), "{text}: {told:#?}");
        }
    }
}
