//! What lies in a directory of an origin, as the daemon lists it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::{Entry, ListTaskEntriesRequest};
use futures::stream::{self, StreamExt, TryStreamExt};
use protocol::{EntryFilter, EntryPathError, EntryPlan, EntryPlanError};
use runtime::secret::redact_url;
use tonic::Request;
use tonic::transport::Channel;
use url::Url;

use super::arguments::Arguments;
use super::request;
use crate::failure::Failure;

/// How long a listing may take: a large repository needs many requests to its hub. (Dragonfly v2 allows 10 s.)
const LIST_MAX: Duration = Duration::from_secs(120);
/// How many includes are looked at at the same time.
const LISTED_AT_ONCE: usize = 8;
/// Schemes of origins that know no directories, only files below one: where none is, there is nothing.
const PREFIXES_ONLY: [&str; 9] = [
    "s3",
    "gs",
    "abs",
    "oss",
    "obs",
    "cos",
    "hf",
    "modelscope",
    "opencsg",
];
/// Most bytes of an answer: about a hundred thousand entries.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What is wanted of a directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) plan: EntryPlan,
    /// By URL, as far as they are known.
    pub(super) lengths: HashMap<String, u64>,
    /// Why there is nothing, if that is no failure.
    pub(super) note: Option<String>,
}

/// The wanted folders and files below `directory`, whose URL ends with `/`.
pub(super) async fn list(
    arguments: &Arguments,
    channel: &Channel,
    directory: &Url,
    deadline: Instant,
) -> Result<Listed, Failure> {
    let filter =
        EntryFilter::new(&arguments.include_files, &arguments.exclude_files).map_err(|error| {
            Failure::Usage {
                reason: error.to_string(),
            }
        })?;
    let shown = redact_url(directory.as_str());
    let refused = |error: EntryPlanError| {
        let error = match &error {
            EntryPlanError::Entry { url, error } => {
                let advice = match error {
                    EntryPathError::Elsewhere | EntryPathError::NoUrl => "",
                    _ => {
                        ": leave it out with --exclude-files and its path, a * in place of what is odd, or a folder above it"
                    }
                };
                format!("the listing holds {:?}: {error}{advice}", redact_url(url))
            }
            error => error.to_string(),
        };
        Failure::Refused {
            reason: format!("{shown} cannot be downloaded as a directory: {error}"),
        }
    };
    let entries = match named_files(arguments, directory) {
        Some(named) => entries_named(arguments, channel, named, deadline).await?,
        None => entries_of(arguments, channel, directory, deadline).await?,
    };
    let known = entries.iter().filter(|entry| entry.content_length > 0);
    let lengths = known
        .map(|entry| (entry.url.clone(), entry.content_length))
        .collect();
    let listed = entries
        .iter()
        .map(|entry| (entry.url.as_str(), entry.is_dir));
    let plan = EntryPlan::new(directory.as_str(), listed, &filter).map_err(refused)?;
    let note = match plan.files.is_empty() && plan.directories.is_empty() {
        true => Some(nothing_wanted(arguments, directory, &entries)?),
        false => None,
    };
    let count = plan.files.len();
    if count > arguments.max_files {
        return Err(Failure::Refused {
            reason: format!(
                "{shown} has {count} files, which is more than --max-files {}: allow more, or choose with --include-files",
                arguments.max_files
            ),
        });
    }
    Ok(Listed {
        plan,
        lengths,
        note,
    })
}

async fn entries_of(
    arguments: &Arguments,
    channel: &Channel,
    directory: &Url,
    deadline: Instant,
) -> Result<Vec<Entry>, Failure> {
    let limit = LIST_MAX.min(deadline.saturating_duration_since(Instant::now()));
    let access = arguments.origin.of_scheme(directory.scheme());
    let mut request = Request::new(ListTaskEntriesRequest {
        url: directory.to_string(),
        request_header: arguments.headers.iter().cloned().collect(),
        timeout: prost_wkt_types::Duration::try_from(limit).ok(),
        object_storage: access.object_storage,
        hdfs: access.hdfs,
        hugging_face: access.hugging_face,
        model_scope: access.model_scope,
        open_csg: access.open_csg,
        remote_ip: request::own_address(),
        ..ListTaskEntriesRequest::default()
    });
    request.set_timeout(limit);
    let mut client =
        DfdaemonDownloadClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let answer = tokio::time::timeout(limit, client.list_task_entries(request)).await;
    let answer = answer.map_err(|_| Failure::Timeout { limit })?;
    let answer = answer.map_err(|status| Failure::of_status(&status, limit, "-"))?;
    Ok(answer.into_inner().entries)
}

/// Why nothing is wanted of a listing: a note where a directory may be empty, else a failure.
fn nothing_wanted(
    arguments: &Arguments,
    directory: &Url,
    entries: &[Entry],
) -> Result<String, Failure> {
    let shown = redact_url(directory.as_str());
    let is_whole = directory.path().trim_matches('/').is_empty();
    if entries.is_empty() && PREFIXES_ONLY.contains(&directory.scheme()) && !is_whole {
        return Err(Failure::Origin {
            status_code: None,
            message: format!("nothing is at {shown}: check the path"),
        });
    }
    if !arguments.include_files.is_empty() {
        return Err(Failure::Refused {
            reason: format!(
                "nothing in {shown} is what --include-files takes: correct the patterns"
            ),
        });
    }
    // The directory itself is not in it.
    let is_empty = entries.iter().all(|entry| {
        entry.is_dir && entry.url.trim_end_matches('/') == directory.as_str().trim_end_matches('/')
    });
    Ok(match is_empty {
        true => format!("{shown} is empty"),
        false => format!("--exclude-files leaves nothing of {shown}"),
    })
}

/// What `named` are: directories with all in them where the origin lists such, else files. Only they are looked at, and an origin that lists
/// nothing gives files.
async fn entries_named(
    arguments: &Arguments,
    channel: &Channel,
    named: Vec<Url>,
    deadline: Instant,
) -> Result<Vec<Entry>, Failure> {
    let found = stream::iter(named).map(|url| async move {
        let mut directory = url.clone();
        directory.set_path(&format!("{}/", url.path()));
        match entries_of(arguments, channel, &directory, deadline).await {
            Ok(mut entries) if !entries.is_empty() => {
                entries.push(entry(&directory, true));
                Ok(entries)
            }
            Err(failure) if failure.is_busy() || matches!(failure, Failure::Timeout { .. }) => {
                Err(failure)
            }
            Ok(_) | Err(_) => Ok(vec![entry(&url, false)]),
        }
    });
    let found = found.buffered(LISTED_AT_ONCE);
    found.try_concat().await
}

fn entry(url: &Url, is_dir: bool) -> Entry {
    Entry {
        url: url.to_string(),
        is_dir,
        ..Entry::default()
    }
}

/// The URLs of the includes, if each is a path and no pattern.
fn named_files(arguments: &Arguments, directory: &Url) -> Option<Vec<Url>> {
    let is_plain = |include: &String| {
        !include.ends_with('/') && !include.contains(['*', '?', '[', ']', '{', '}', '\\'])
    };
    let includes = &arguments.include_files;
    if includes.is_empty() || !includes.iter().all(is_plain) {
        return None;
    }
    let url_of = |include: &String| {
        let mut url = directory.clone();
        url.set_query(None);
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend(include.split('/'));
        Some(url)
    };
    includes.iter().map(url_of).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn named(includes: &[&str]) -> Option<Vec<String>> {
        let mut line = vec!["dfget", "-r", "http://h/d/", "-O", "/tmp"];
        for include in includes {
            line.extend(["-I", include]);
        }
        let arguments = Arguments::try_parse_from(line).unwrap();
        let files = named_files(&arguments, &arguments.urls[0])?;
        Some(files.into_iter().map(String::from).collect())
    }

    #[test]
    fn includes_that_are_paths_are_asked_for_by_name() {
        assert_eq!(
            named(&["a.json", "sub/b c%.bin"]).unwrap(),
            ["http://h/d/a.json", "http://h/d/sub/b%20c%25.bin"]
        );
        for pattern in ["*.json", "sub/", "a?", "[a]", "{a,b}"] {
            assert_eq!(named(&["a.json", pattern]), None, "{pattern}");
        }
        assert_eq!(named(&[]), None);
    }
}
