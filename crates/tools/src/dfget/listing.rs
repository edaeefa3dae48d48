//! What lies in a directory of an origin, as the daemon lists it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dragonfly_api::dfdaemon::v2::dfdaemon_download_client::DfdaemonDownloadClient;
use dragonfly_api::dfdaemon::v2::{Entry, ListTaskEntriesRequest};
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
/// Most bytes of an answer: about a hundred thousand entries.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What is wanted of a directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) plan: EntryPlan,
    /// By URL, as far as they are known.
    pub(super) lengths: HashMap<String, u64>,
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
    let mut lengths = HashMap::new();
    let plan = match named_files(arguments, directory) {
        // As in Dragonfly v2: who names every file needs no listing, which not every origin has.
        Some(files) => {
            let entries = files.iter().map(|url| (url.as_str(), false));
            EntryPlan::new(directory.as_str(), entries, &filter).map_err(refused)?
        }
        None => {
            let entries = entries_of(arguments, channel, directory, deadline).await?;
            let known = entries.iter().filter(|entry| entry.content_length > 0);
            lengths.extend(known.map(|entry| (entry.url.clone(), entry.content_length)));
            let entries = entries
                .iter()
                .map(|entry| (entry.url.as_str(), entry.is_dir));
            EntryPlan::new(directory.as_str(), entries, &filter).map_err(refused)?
        }
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
    Ok(Listed { plan, lengths })
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

/// The URLs of the included files, if each include names one file and is no pattern.
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
    fn files_that_are_named_need_no_listing() {
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
