//! Include and exclude patterns.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::EntryPath;

/// Most patterns of each kind; every entry is compared with all of them.
const PATTERNS_MAX: usize = 1024;
/// Longest pattern in bytes.
const PATTERN_LEN_MAX: usize = 4096;

/// Which entries of a listing are wanted.
///
/// A pattern is compared with the whole path below the listed folder, and with each folder above the entry: a pattern that
/// takes a folder takes everything in it. `*` and `?` stop at `/`, `**` as a whole name stands for any number of folders, `[a-z]` and `{a,b}` are choices, and a pattern that ends
/// in `/` takes folders only. An entry is wanted if there are no includes or one of them takes it, and no exclude does.
#[derive(Debug, Clone)]
pub struct EntryFilter {
    include: Option<Patterns>,
    exclude: Patterns,
}

#[derive(Debug, Clone)]
struct Patterns {
    any: GlobSet,
    /// Those that were written with a `/` at the end, without it.
    folders: GlobSet,
}

impl EntryFilter {
    /// Everything is wanted.
    pub fn everything() -> Self {
        Self {
            include: None,
            exclude: Patterns {
                any: GlobSet::empty(),
                folders: GlobSet::empty(),
            },
        }
    }

    /// A filter of these patterns; no include at all includes everything.
    ///
    /// # Errors
    /// [`EntryFilterError`], naming the pattern.
    pub fn new<S: AsRef<str>>(include: &[S], exclude: &[S]) -> Result<Self, EntryFilterError> {
        let include = if include.is_empty() {
            None
        } else {
            Some(Patterns::new(include)?)
        };
        Ok(Self {
            include,
            exclude: Patterns::new(exclude)?,
        })
    }

    /// Whether the entry is wanted.
    pub fn admits(&self, path: &EntryPath, is_dir: bool) -> bool {
        self.admits_read(path.as_str(), is_dir)
    }

    /// The same for the path of any entry, with `/` between its names.
    pub(super) fn admits_read(&self, path: &str, is_dir: bool) -> bool {
        self.include
            .as_ref()
            .is_none_or(|include| include.take(path, is_dir))
            && !self.exclude.take(path, is_dir)
    }
}

impl Patterns {
    fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, EntryFilterError> {
        if patterns.len() > PATTERNS_MAX {
            return Err(EntryFilterError::TooMany {
                count: patterns.len(),
            });
        }
        let (mut any, mut folders) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let (bare, set) = match pattern.strip_suffix('/') {
                Some(bare) => (bare, &mut folders),
                None => (pattern, &mut any),
            };
            let refused = |reason: String| EntryFilterError::Pattern {
                pattern: pattern.chars().take(64).collect(),
                reason,
            };
            if bare.len() > PATTERN_LEN_MAX {
                return Err(refused(format!(
                    "it is longer than {PATTERN_LEN_MAX} bytes"
                )));
            }
            if bare.split('/').any(|name| matches!(name, "" | "." | "..")) {
                return Err(refused(
                    "it must be a relative path without empty, . or .. parts".to_owned(),
                ));
            }
            let glob = GlobBuilder::new(bare)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|error| refused(error.kind().to_string()))?;
            set.add(glob);
        }
        let built = |set: GlobSetBuilder| {
            set.build()
                .map_err(|error| EntryFilterError::TooComplex(error.to_string()))
        };
        Ok(Self {
            any: built(any)?,
            folders: built(folders)?,
        })
    }

    fn take(&self, path: &str, is_dir: bool) -> bool {
        let takes = |path: &str, is_dir: bool| {
            self.any.is_match(path) || (is_dir && self.folders.is_match(path))
        };
        let mut folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        takes(path, is_dir) || folders.any(|folder| takes(folder, true))
    }
}

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFilterError {
    /// It is no pattern.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// Its beginning.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More than the limit.
    #[error("{count} patterns, the limit is {PATTERNS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// All of them together need too much memory.
    #[error("the patterns are too complex together: {0}")]
    TooComplex(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(include: &[&str], exclude: &[&str]) -> Vec<String> {
        let filter = EntryFilter::new(include, exclude).unwrap();
        [
            "a.json",
            "b.bin",
            "docs/",
            "docs/a.json",
            "docs/old/",
            "docs/old/x y.md",
            "empty/",
            "[odd]",
        ]
        .into_iter()
        .filter(|path| {
            let entry = format!("s3://b/{}", path.replace(' ', "%20"));
            let path = EntryPath::of("s3://b/", &entry).unwrap();
            filter.admits(&path, entry.ends_with('/'))
        })
        .map(str::to_owned)
        .collect()
    }

    #[test]
    fn patterns_take_what_they_say() {
        assert_eq!(admitted(&[], &[]).len(), 8);
        assert_eq!(admitted(&["a.json"], &[]), ["a.json"]);
        assert_eq!(admitted(&["*.json"], &[]), ["a.json"]);
        assert_eq!(admitted(&["**/*.json"], &[]), ["a.json", "docs/a.json"]);
        assert_eq!(admitted(&["{a,b}.*"], &[]), ["a.json", "b.bin"]);
        assert_eq!(admitted(&["\\[odd\\]"], &[]), ["[odd]"]);
        assert_eq!(admitted(&["docs/old/x y.md"], &[]), ["docs/old/x y.md"]);
    }

    #[test]
    fn a_folder_is_taken_with_all_in_it() {
        let docs = ["docs/", "docs/a.json", "docs/old/", "docs/old/x y.md"];
        assert_eq!(admitted(&["docs/"], &[]), docs);
        assert_eq!(admitted(&["docs"], &[]), docs);
        assert_eq!(admitted(&["docs/"], &["**/old"]), ["docs/", "docs/a.json"]);
        assert_eq!(admitted(&["b.bin/"], &[]), [""; 0]);
        assert_eq!(admitted(&[], &["*"]), [""; 0]);
        assert_eq!(admitted(&[], &["*/"]), ["a.json", "b.bin", "[odd]"]);
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for pattern in ["", "/", "/a", "a//b", "../a", "a/./b", "a/..", "[a", "{a"] {
            assert!(EntryFilter::new(&[pattern], &[]).is_err(), "{pattern}");
        }
        assert!(EntryFilter::new(&["a"; 1025], &[]).is_err());
    }
}
