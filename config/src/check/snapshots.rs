//! Checkpoints of the recorder's state.

use std::path::PathBuf;

use crate::section::Section;
use crate::settings::{Backup, Snapshots};

/// `None` without the section, and if there is a fault.
pub(super) fn snapshots(root: &Section<'_>, stores: &[PathBuf]) -> Option<Snapshots> {
    let section = root.has("snapshots").then(|| root.section("snapshots"))?;
    let (every, keep) = (section.duration("every"), section.number("keep") as usize);
    let folder = section.path("folder")?;
    if stores.iter().any(|store| folder.starts_with(store)) {
        let problem = "it is within a volume, and goes with it".to_owned();
        section.fault("folder", problem, "name a folder outside of the store".to_owned());
    }
    Some(Snapshots { folder, every, keep })
}

/// `None` without the section, and if there is a fault.
pub(super) fn backup(root: &Section<'_>) -> Option<Backup> {
    let section = root.has("backup").then(|| root.section("backup"))?;
    if !root.has("snapshots") {
        let problem = "there is nothing to back up as long as no checkpoints are taken".to_owned();
        root.fault("backup", problem, "add the section `snapshots`".to_owned());
    }
    for name in ["role", "resource"] {
        if section.text(name).is_some_and(|text| !text.starts_with("arn:")) {
            let way_out = "write the whole ARN; `aws ec2 describe-volumes` shows ids only";
            section.fault(name, "it is no ARN".to_owned(), way_out.to_owned());
        }
    }
    let [vault, role, resource] = ["vault", "role", "resource"].map(|name| section.text(name));
    let every = section.duration("every");
    let retention = section.has("retention").then(|| section.duration("retention"));
    Some(Backup { vault: vault?, role: role?, resource: resource?, every, retention })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use crate::check::tests::{MINIMAL, faults, read};
    use crate::{Given, parse_with};

    fn faults_of_folder(folder: &str) -> Vec<String> {
        let text = format!("{MINIMAL}\nsnapshots:\n  folder: {folder}\n");
        let given = Given { store: vec!["/a".into()] };
        let read = parse_with(&text, "t", &given);
        read.err()
            .map_or(Vec::new(), |faults| faults.faults().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn backups_need_checkpoints_and_whole_names() {
        let section = "backup:\n  vault: v\n  role: arn:1\n  resource: arn:2\n";
        let with = format!("{MINIMAL}\nsnapshots:\n  folder: /state\n{section}");
        let backup = read(&with).backup.unwrap();
        assert_eq!((backup.every, backup.retention), (Duration::from_secs(24 * 3600), None));
        let without = faults(&format!("{MINIMAL}\n{section}"));
        assert!(without.len() == 1 && without[0].contains("snapshots"), "{without:#?}");
        let bare = faults(&with.replace("arn:2", "vol-0123"));
        assert!(bare.len() == 1 && bare[0].contains("no ARN"), "{bare:#?}");
    }

    #[test]
    fn checkpoints_need_a_folder_and_have_defaults() {
        assert_eq!(read(MINIMAL).snapshots, None);
        let text = format!("{MINIMAL}\nsnapshots:\n  folder: /state\n");
        let snapshots = read(&text).snapshots.unwrap();
        assert_eq!((&*snapshots.folder, snapshots.keep), (Path::new("/state"), 24));
        assert_eq!(snapshots.every, Duration::from_secs(15 * 60));
        let faults = faults(&format!("{MINIMAL}\nsnapshots:\n  keep: 1\n"));
        assert_eq!(faults.len(), 2, "{faults:#?}");
        let within = faults_of_folder("/a/state");
        assert!(within.len() == 1 && within[0].contains("within a volume"), "{within:#?}");
        assert!(faults_of_folder("/ab").is_empty());
    }
}
