//! Checkpoints of the recorder's state.

use std::path::PathBuf;

use crate::section::Section;
use crate::settings::Snapshots;

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
