//! What the operators of a cluster do not want downloaded.
//!
//! The list comes as JSON with the dynamic configuration (spec: `client_config` / `seed_client_config` of a scheduler
//! cluster). A list that cannot be read as a whole blocks nothing, as in v2: it is reported where it is read.
//!
//! Only standard tasks are looked at; the lists of other kinds are read when those kinds exist.

use std::collections::HashSet;

use regex::{RegexSet, RegexSetBuilder};
use serde::Deserialize;

/// Longest JSON that is read, in bytes.
const TEXT_LEN_MAX: usize = 1 << 20;

/// Memory that the compiled expressions may take, in bytes: the text comes off the network.
const REGEX_SIZE_MAX: usize = 4 << 20;

/// A compiled block list; the default blocks nothing.
#[derive(Debug, Clone, Default)]
pub struct BlockList {
    download: Rules,
}

/// Why a block list could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockListError {
    /// Longer than any real one.
    #[error(
        "block list of {len} bytes, the limit is {TEXT_LEN_MAX}: nothing is blocked; shorten it"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not the JSON that is expected.
    #[error("block list is not valid JSON: {0}: nothing is blocked; correct it at the manager")]
    Json(#[from] serde_json::Error),
    /// An expression that does not compile.
    #[error(
        "block list has a bad regular expression: {0}: nothing is blocked; correct it at the manager"
    )]
    Regex(#[from] regex::Error),
}

/// What a download is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The whole URL.
    pub url: &'a str,
    /// `Download.application`.
    pub application: Option<&'a str>,
    /// `Download.tag`.
    pub tag: Option<&'a str>,
    /// `Download.priority`.
    pub priority: i32,
}

#[derive(Debug, Clone, Default)]
struct Rules {
    applications: HashSet<String>,
    urls: RegexSet,
    tags: HashSet<String>,
    priorities: HashSet<i32>,
}

impl BlockList {
    /// Reads the `client_config` JSON of a scheduler cluster. Empty text and an absent list block nothing.
    ///
    /// # Errors
    /// The text is no such JSON, is too long, or has an expression that does not compile.
    pub fn parse(json: &[u8]) -> Result<Self, BlockListError> {
        if json.len() > TEXT_LEN_MAX {
            return Err(BlockListError::TooLong { len: json.len() });
        }
        if json.is_empty() {
            return Ok(Self::default());
        }
        let written: Written = serde_json::from_slice(json)?;
        let download = written
            .block_list
            .and_then(|list| list.task)
            .and_then(|task| task.download);
        Ok(Self {
            download: download
                .map(Rules::compile)
                .transpose()?
                .unwrap_or_default(),
        })
    }

    /// Whether any rule forbids to download `subject`.
    pub fn blocks_download(&self, subject: Subject<'_>) -> bool {
        let rules = &self.download;
        subject
            .application
            .is_some_and(|name| rules.applications.contains(name))
            || subject.tag.is_some_and(|tag| rules.tags.contains(tag))
            || rules.priorities.contains(&subject.priority)
            || rules.urls.is_match(subject.url)
    }
}

impl Rules {
    fn compile(written: WrittenRules) -> Result<Self, regex::Error> {
        Ok(Self {
            applications: written
                .applications
                .unwrap_or_default()
                .into_iter()
                .collect(),
            urls: RegexSetBuilder::new(written.urls)
                .size_limit(REGEX_SIZE_MAX)
                .build()?,
            tags: written.tags.unwrap_or_default().into_iter().collect(),
            priorities: written.priorities.unwrap_or_default().into_iter().collect(),
        })
    }
}

#[derive(Deserialize)]
struct Written {
    #[serde(alias = "blockList")]
    block_list: Option<WrittenList>,
}

#[derive(Deserialize)]
struct WrittenList {
    task: Option<WrittenTask>,
}

#[derive(Deserialize)]
struct WrittenTask {
    download: Option<WrittenRules>,
}

#[derive(Deserialize)]
struct WrittenRules {
    applications: Option<Vec<String>>,
    /// `null` makes the whole list unreadable, as in v2.
    #[serde(default)]
    urls: Vec<String>,
    tags: Option<Vec<String>>,
    priorities: Option<Vec<i32>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'a>(url: &'a str, application: &'a str, tag: &'a str, priority: i32) -> Subject<'a> {
        Subject {
            url,
            application: Some(application),
            tag: Some(tag),
            priority,
        }
    }

    #[test]
    fn any_criterion_blocks() {
        let json = br#"{"block_list": {"task": {"download": {
            "applications": ["app"], "urls": ["evil\\.example", "^ftp:"], "tags": ["tag"], "priorities": [6]}}}, "other": 1}"#;
        let list = BlockList::parse(json).unwrap();
        for (blocked, subject) in [
            (false, subject("http://good.example/f", "a", "t", 0)),
            (true, subject("http://good.example/f", "app", "t", 0)),
            (true, subject("http://good.example/f", "a", "tag", 0)),
            (true, subject("http://good.example/f", "a", "t", 6)),
            (true, subject("http://evil.example/f", "a", "t", 0)),
            (true, subject("ftp://good.example/f", "a", "t", 0)),
        ] {
            assert_eq!(list.blocks_download(subject), blocked, "{subject:?}");
        }
    }

    #[test]
    fn other_spellings_and_absent_parts_are_read() {
        let json =
            br#"{"blockList": {"task": {"download": {"applications": null, "tags": ["x"]}}}}"#;
        assert!(
            BlockList::parse(json)
                .unwrap()
                .blocks_download(subject("u", "a", "x", 0))
        );
        for nothing in [
            &b""[..],
            b"{}",
            br#"{"block_list": null}"#,
            br#"{"block_list": {"persistent_task": {}}}"#,
        ] {
            assert!(
                !BlockList::parse(nothing)
                    .unwrap()
                    .blocks_download(subject("u", "a", "x", 0))
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for bad in [
            &b"not json"[..],
            br#"{"block_list": {"task": {"download": {"urls": null}}}}"#,
            br#"{"block_list": {"task": {"download": {"urls": ["("]}}}}"#,
            br#"{"block_list": {"task": {"download": {"urls": ["(a{1000}){1000}"]}}}}"#,
        ] {
            assert!(
                BlockList::parse(bad).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
        assert!(matches!(
            BlockList::parse(&vec![b' '; TEXT_LEN_MAX + 1]),
            Err(BlockListError::TooLong { .. })
        ));
    }
}
