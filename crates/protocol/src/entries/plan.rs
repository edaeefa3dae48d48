//! What a whole listing becomes on disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{EntryFilter, EntryPath, EntryPathError};

/// The folders to make and the files to fetch for a listing, both in the order of their paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryPlan {
    /// Every folder that there must be, those above files included and outer ones first.
    pub directories: Vec<EntryPath>,
    /// Every file once, with the URL of its entry.
    pub files: Vec<(EntryPath, String)>,
}

impl EntryPlan {
    /// Plans the entries of the listing of `base` that `filter` admits. Each entry is its URL and whether it is a folder. An entry that is listed
    /// twice counts once, and the base itself does not count.
    ///
    /// # Errors
    /// [`EntryPlanError`]: one bad entry spoils the plan, as a tree with silent gaps would be worse than none; unless `filter` does not
    /// take it, however odd its path is. What lies outside of `base` is always refused.
    pub fn new<'a>(
        base: &str,
        entries: impl IntoIterator<Item = (&'a str, bool)>,
        filter: &EntryFilter,
    ) -> Result<Self, EntryPlanError> {
        let mut directories = BTreeSet::new();
        let mut files: BTreeMap<EntryPath, String> = BTreeMap::new();
        for (url, is_dir) in entries {
            let path = match EntryPath::of(base, url) {
                Ok(path) => path,
                Err(EntryPathError::Base) if is_dir => continue,
                Err(error) => {
                    let read = EntryPath::as_read(base, url);
                    if read.is_some_and(|path| !filter.admits_read(&path, is_dir)) {
                        continue;
                    }
                    return Err(EntryPlanError::Entry {
                        url: url.chars().take(256).collect(),
                        error,
                    });
                }
            };
            if !filter.admits(&path, is_dir) {
                continue;
            }
            directories.extend(path.ancestors());
            if is_dir {
                directories.insert(path);
            } else if let Some(former) = files.get(&path) {
                if former != url {
                    return Err(EntryPlanError::Twice { path });
                }
            } else {
                files.insert(path, url.to_owned());
            }
        }
        if let Some(path) = files.keys().find(|path| directories.contains(*path)) {
            return Err(EntryPlanError::FileAndFolder { path: path.clone() });
        }
        Ok(Self {
            directories: directories.into_iter().collect(),
            files: files.into_iter().collect(),
        })
    }
}

/// Why a listing cannot be laid out as files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryPlanError {
    /// An entry without a safe place.
    #[error("the listing holds {url:?}: {error}")]
    Entry {
        /// Its URL, cut to 256 characters.
        url: String,
        /// Why it has none.
        error: EntryPathError,
    },
    /// Two entries with different URLs and the same path.
    #[error("two different entries of the listing would both become {path}")]
    Twice {
        /// The path.
        path: EntryPath,
    },
    /// A path that is a file and has others below it, as object storages allow.
    #[error(
        "{path} is a file and a folder at the same time, which no file system can hold: exclude one of them"
    )]
    FileAndFolder {
        /// The path.
        path: EntryPath,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(entries: &[&str]) -> Result<EntryPlan, EntryPlanError> {
        let entries = entries.iter().map(|url| (*url, url.ends_with('/')));
        EntryPlan::new("s3://b/d/", entries, &EntryFilter::everything())
    }

    #[test]
    fn folders_come_outer_first_and_empty_ones_stay() {
        let plan = plan(&[
            "s3://b/d/",
            "s3://b/d/x/y/f",
            "s3://b/d/empty/",
            "s3://b/d/x/y/f",
        ])
        .unwrap();
        let directories: Vec<_> = plan.directories.iter().map(EntryPath::as_str).collect();
        assert_eq!(directories, ["empty", "x", "x/y"]);
        assert_eq!(plan.files.len(), 1);
        assert_eq!(plan.files[0].1, "s3://b/d/x/y/f");
    }

    #[test]
    fn what_is_not_wanted_may_be_odd() {
        let entries = [
            "s3://b/d/a",
            "s3://b/d/double//slash",
            "s3://b/d/x/%FF",
            "s3://b/d/y%00",
        ];
        let planned = |include: &[&str], exclude: &[&str]| {
            let filter = EntryFilter::new(include, exclude).unwrap();
            EntryPlan::new("s3://b/d/", entries.map(|url| (url, false)), &filter)
        };
        for (include, exclude) in [
            (&[][..], &["double", "x/*", "y?"][..]),
            (&[], &["double/*", "**/?", "y*"]),
            (&["a"], &[]),
        ] {
            let plan = planned(include, exclude);
            let files = plan.map(|plan| plan.files.len());
            assert!(files.is_ok_and(|files| files <= 1), "{exclude:?}");
        }
        let error = planned(&[], &["x", "y*"]).unwrap_err();
        assert!(error.to_string().contains("double//slash"), "{error}");
        let filter = EntryFilter::new(&["a"], &["*"]).unwrap();
        let outside = [("s3://b/d/../x", false)];
        assert!(EntryPlan::new("s3://b/d/", outside, &filter).is_err());
    }

    #[test]
    fn a_listing_that_no_folder_can_hold_is_refused() {
        assert!(matches!(
            plan(&["s3://b/d/a", "s3://b/d/a/b"]),
            Err(EntryPlanError::FileAndFolder { .. })
        ));
        assert!(matches!(
            plan(&["s3://b/d/a", "s3://b/d/%61"]),
            Err(EntryPlanError::Twice { .. })
        ));
        let error = plan(&["s3://b/d/a", "s3://b/d/../../etc/passwd"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the listing holds \"s3://b/d/../../etc/passwd\": it lies outside of the listed folder"
        );
    }
}
