//! The local file, for a scheduler without a manager (scheduler sheet, section 8.4).

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use runtime::config::{Document, Section};
use tracing::warn;

use super::{Written, WrittenApplication};

/// What a missing file is made with.
const DEFAULT_FILE: &str = "\
# Dynamic configuration of a scheduler without a manager. Changes take effect within dynConfig.refreshInterval.
applications: []
schedulerClusterConfig:
  candidateParentLimit: 3
  filterParentLimit: 15
schedulerClusterClientConfig:
  loadLimit: 200
seedPeerClusterConfig:
  loadLimit: 2000
";

/// Reads the file; makes it if it is missing.
pub(super) fn read(file: &Path) -> Result<Written, String> {
    if !file.exists()
        && let Err(error) = make(file)
    {
        // A read-only system works with the defaults.
        warn!(file = %file.display(), %error, "default dynamic configuration not written");
        return Ok(Written::default());
    }
    let document = Document::load(file).map_err(|error| error.to_string())?;
    let root = document.root();
    let limits = root.section("schedulerClusterConfig");
    let defaults = Written::default();
    let positive = "a whole number from 1";
    let written = Written {
        candidate_parent_limit: limits.checked(
            "candidateParentLimit",
            defaults.candidate_parent_limit,
            positive,
            |n| *n > 0,
        ),
        filter_parent_limit: limits.checked(
            "filterParentLimit",
            defaults.filter_parent_limit,
            positive,
            |n| *n > 0,
        ),
        applications: root
            .sections("applications")
            .iter()
            .filter_map(application)
            .collect(),
    };
    limits.accept_unused(&["jobRateLimit"]);
    root.accept_unused(&[
        "seedPeerClusterConfig",
        "schedulerClusterClientConfig",
        "seedPeerClusterClientConfig",
        "blockList",
    ]);
    drop((root, limits));
    let loaded = document
        .finish(written)
        .map_err(|error| error.to_string())?;
    Ok(loaded.value)
}

fn application(section: &Section<'_>) -> Option<WrittenApplication> {
    section.accept_unused(&["id", "url", "bio"]);
    let priority = section.section("priority");
    let urls = priority.sections("urls");
    let rules = urls
        .iter()
        .filter_map(|rule| Some((rule.required("regex")?, level(rule))));
    Some(WrittenApplication {
        name: section.required("name")?,
        priority: level(&priority),
        urls: rules.collect(),
    })
}

fn level(section: &Section<'_>) -> i32 {
    section.checked("value", 0, "a level from 0 to 6", |level| {
        (0..=6).contains(level)
    })
}

fn make(file: &Path) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let mut made = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)?;
    made.write_all(DEFAULT_FILE.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_made_with_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made/dynconfig.yaml");
        assert_eq!(read(&file).unwrap(), Written::default());
        assert_eq!(
            read(&file).unwrap(),
            Written::default(),
            "the file that was made says the same"
        );
        assert!(file.exists());
    }

    #[test]
    fn applications_and_limits_are_read_and_mistakes_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dynconfig.yaml");
        let text = "applications:\n- name: a\n  priority:\n    value: 3\n    urls:\n    - {regex: blobs, value: 1}\nschedulerClusterConfig: {candidateParentLimit: 4, filterParentLimit: 20}\n";
        std::fs::write(&file, text).unwrap();
        let application = WrittenApplication {
            name: "a".to_owned(),
            priority: 3,
            urls: vec![("blobs".to_owned(), 1)],
        };
        let expected = Written {
            candidate_parent_limit: 4,
            filter_parent_limit: 20,
            applications: vec![application],
        };
        assert_eq!(read(&file).unwrap(), expected);
        std::fs::write(&file, "schedulerClusterConfig: {candidateParentLimit: 0}\n").unwrap();
        assert!(read(&file).unwrap_err().contains("candidateParentLimit"));
    }
}
