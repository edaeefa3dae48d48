//! What a request asks for: the fields that the four requests share become a call to a daemon, the hosts it is for and the
//! limits of the work; whatever is out of bounds is refused with the name of its field.
//!
//! What the URL names, and whether any host is there for it, is not looked at here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use dragonfly_api::common::v2::{
    Download, Hdfs, ObjectStorage, Priority, SchedulingPolicy, TaskType,
};
use dragonfly_api::scheduler::v2 as wire;
use prost_wkt_types::Duration as WireDuration;
use protocol::DEFAULT_FILTERED_QUERY_PARAMS;
use registry::{Platform, Platforms};
use runtime::secret::is_secret_header;
use tonic::Status;

use crate::preheat::{Limits, Scope, Selection};
use crate::rpc::validate::{self, invalid};

/// What is meant where a request leaves it out (scheduler sheet, section 7.4).
const CONTENTS_AT_ONCE: usize = 8;
const HOSTS_AT_ONCE: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Longest time that is believed to be meant.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Most headers and filters of a request, and the bytes of all headers.
const HEADERS_MAX: usize = 128;
const HEADER_BYTES_MAX: usize = 64 << 10;
const FILTERS_MAX: usize = 1024;
/// Most addresses that a request may name.
const IPS_MAX: usize = 1000;

/// The fields that the four requests share. Absent ones are empty.
#[derive(Default)]
pub(super) struct Ask {
    pub(super) url: String,
    piece_length: Option<u64>,
    tag: Option<String>,
    application: Option<String>,
    filtered_query_params: Vec<String>,
    pub(super) header: HashMap<String, String>,
    scope: String,
    ips: Vec<String>,
    percentage: Option<u32>,
    count: Option<u32>,
    contents_at_once: Option<i64>,
    hosts_at_once: Option<i64>,
    pub(super) timeout: Option<WireDuration>,
    priority: i32,
    pub(super) certificate_chain: Vec<Vec<u8>>,
    pub(super) insecure_skip_verify: bool,
    pub(super) object_storage: Option<ObjectStorage>,
    pub(super) hdfs: Option<Hdfs>,
}

/// Takes the fields of these names over, and the others as they are written.
macro_rules! ask {
    ($request:ident, [$($same:ident),*], {$($field:ident: $value:expr),*}) => {{
        let mut ask = Self::default();
        $(ask.$same = $request.$same;)*
        $(ask.$field = $value;)*
        ask
    }};
}

impl Ask {
    pub(super) fn of_preheat_image(it: wire::PreheatImageRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, scope, ips, percentage, count, timeout, priority, insecure_skip_verify], {
            contents_at_once: it.concurrent_task_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    pub(super) fn of_preheat_file(it: wire::PreheatFileRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, scope, ips, percentage, count, timeout, priority, insecure_skip_verify, object_storage, hdfs], {
            contents_at_once: it.concurrent_task_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    pub(super) fn of_stat_image(it: wire::StatImageRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, timeout, insecure_skip_verify], {
            contents_at_once: it.concurrent_layer_count,
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    pub(super) fn of_stat_file(it: wire::StatFileRequest) -> Self {
        ask!(it, [url, piece_length, tag, application, filtered_query_params, header, timeout, insecure_skip_verify, object_storage, hdfs], {
            hosts_at_once: it.concurrent_peer_count,
            certificate_chain: it.certificate_chain
        })
    }

    /// The call to a daemon, but for the URL and the authorization of a content.
    pub(super) fn download(&self, remote_ip: &str) -> Result<Download, Status> {
        validate::absolute_url("url", &self.url)?;
        let piece_length = self.piece_length.filter(|length| *length != 0);
        if piece_length.is_some_and(|length| !validate::PIECE_LEN.contains(&length)) {
            return Err(invalid("piece_length", "a length from 4 MiB to 64 MiB"));
        }
        if Priority::try_from(self.priority).is_err() {
            return Err(invalid("priority", "LEVEL0 to LEVEL6"));
        }
        let header_bytes: usize = self
            .header
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if self.header.len() > HEADERS_MAX || header_bytes > HEADER_BYTES_MAX {
            return Err(invalid("header", "at most 128 headers of 64 KiB together"));
        }
        if self.filtered_query_params.len() > FILTERS_MAX {
            return Err(invalid("filtered_query_params", "at most 1024 names"));
        }
        let storage = self.object_storage.as_ref();
        let empty = |field: Option<&String>| field.is_some_and(String::is_empty);
        if storage.is_some_and(|it| {
            empty(it.access_key_id.as_ref()) || empty(it.access_key_secret.as_ref())
        }) {
            return Err(invalid(
                "object_storage",
                "a key id and secret that are not empty, or none at all,",
            ));
        }
        let filtered_query_params = if self.filtered_query_params.is_empty() {
            DEFAULT_FILTERED_QUERY_PARAMS
                .iter()
                .map(ToString::to_string)
                .collect()
        } else {
            self.filtered_query_params.clone()
        };
        Ok(Download {
            r#type: TaskType::Standard.into(),
            tag: Some(self.tag.clone().unwrap_or_default()),
            application: Some(self.application.clone().unwrap_or_default()),
            priority: self.priority,
            filtered_query_params,
            request_header: self.header.clone(),
            piece_length,
            certificate_chain: self.certificate_chain.clone(),
            object_storage: self.object_storage.clone(),
            hdfs: self.hdfs.clone(),
            remote_ip: Some(remote_ip.to_owned()),
            // Also of small contents the origin gives one copy.
            scheduling_policy: SchedulingPolicy::Always.into(),
            timeout: self.timeout,
            ..Download::default()
        })
    }

    pub(super) fn selection(&self) -> Result<(Scope, Selection), Status> {
        let scope = Scope::of_name(&self.scope)
            .ok_or_else(|| invalid("scope", "single_seed_peer, all_seed_peers or all_peers"))?;
        if self.ips.len() > IPS_MAX {
            return Err(invalid("ips", "at most 1000 addresses"));
        }
        let ips: Vec<IpAddr> = self
            .ips
            .iter()
            .map(|ip| ip.parse().map_err(|_| invalid("ips", "IP addresses")))
            .collect::<Result<_, _>>()?;
        if self.percentage.is_some_and(|it| !(1..=100).contains(&it)) {
            return Err(invalid("percentage", "a number from 1 to 100"));
        }
        if self.count.is_some_and(|it| !(1..=200).contains(&it)) {
            return Err(invalid("count", "a number from 1 to 200"));
        }
        let selection = Selection {
            ips,
            count: self.count.map(|count| count as usize),
            percentage: self.percentage.map(|percentage| percentage as usize),
        };
        Ok((scope, selection))
    }

    pub(super) fn limits(&self) -> Result<Limits, Status> {
        let bounded = |field, value: Option<i64>, default: usize, max: i64| match value {
            None | Some(0) => Ok(default),
            Some(value) if (1..=max).contains(&value) => {
                Ok(usize::try_from(value).unwrap_or(default))
            }
            Some(_) => Err(invalid(field, &format!("a number from 1 to {max}"))),
        };
        let timeout = match self.timeout {
            None => TIMEOUT,
            Some(timeout) if timeout.seconds == 0 && timeout.nanos == 0 => TIMEOUT,
            Some(timeout) => Duration::try_from(timeout)
                .ok()
                .filter(|timeout| *timeout <= TIMEOUT_MAX)
                .ok_or_else(|| invalid("timeout", "a duration of at most 7 days"))?,
        };
        Ok(Limits {
            contents: bounded(
                "concurrent_task_count",
                self.contents_at_once,
                CONTENTS_AT_ONCE,
                100,
            )?,
            hosts: bounded(
                "concurrent_peer_count",
                self.hosts_at_once,
                HOSTS_AT_ONCE,
                1000,
            )?,
            timeout,
        })
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let harmless = self
            .header
            .keys()
            .filter(|name| !is_secret_header(name))
            .count();
        f.debug_struct("Ask")
            .field("harmless_headers", &harmless)
            .finish_non_exhaustive()
    }
}

/// The platforms of a request; without one the scheduler's own, as in Dragonfly v2.
pub(super) fn platforms(text: Option<&str>) -> Result<Platforms, Status> {
    match text {
        None | Some("") => Ok(Platforms::These(vec![Platform::current()])),
        Some(text) => text
            .parse()
            .map_err(|error| Status::invalid_argument(format!("platform: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> wire::PreheatFileRequest {
        wire::PreheatFileRequest {
            url: "https://example.com/file".to_owned(),
            scope: "all_peers".to_owned(),
            ..Default::default()
        }
    }

    fn check(
        change: impl FnOnce(&mut wire::PreheatFileRequest),
    ) -> Result<(Download, Limits, Selection), Status> {
        let mut changed = request();
        change(&mut changed);
        let ask = Ask::of_preheat_file(changed);
        Ok((ask.download("10.0.0.1")?, ask.limits()?, ask.selection()?.1))
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let (download, limits, selection) = check(|it| {
            it.concurrent_task_count = Some(0);
            it.piece_length = Some(0);
            it.timeout = Some(WireDuration::default());
        })
        .unwrap();
        assert_eq!(
            limits,
            Limits {
                contents: 8,
                hosts: 500,
                timeout: TIMEOUT
            }
        );
        assert_eq!(selection, Selection::default());
        assert_eq!(
            download.filtered_query_params.len(),
            DEFAULT_FILTERED_QUERY_PARAMS.len()
        );
        assert!(download.piece_length.is_none() && !download.need_back_to_source);
        assert_eq!(
            (download.tag.as_deref(), download.application.as_deref()),
            (Some(""), Some(""))
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        type Change = fn(&mut wire::PreheatFileRequest);
        let wrong: [(&str, Change); 13] = [
            ("url", |it| it.url = "file".to_owned()),
            ("scope", |it| it.scope = String::new()),
            ("scope", |it| it.scope = "everybody".to_owned()),
            ("ips", |it| it.ips = vec!["here".to_owned()]),
            ("percentage", |it| it.percentage = Some(101)),
            ("percentage", |it| it.percentage = Some(0)),
            ("count", |it| it.count = Some(201)),
            ("concurrent_task_count", |it| {
                it.concurrent_task_count = Some(101)
            }),
            ("concurrent_peer_count", |it| {
                it.concurrent_peer_count = Some(-1)
            }),
            ("piece_length", |it| it.piece_length = Some(1)),
            ("priority", |it| it.priority = 7),
            ("timeout", |it| {
                it.timeout = Some(WireDuration {
                    seconds: -1,
                    nanos: 0,
                })
            }),
            ("header", |it| {
                it.header = HashMap::from([("a".to_owned(), "x".repeat(HEADER_BYTES_MAX))]);
            }),
        ];
        for (field, change) in wrong {
            let status = check(change).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(
                status.message().starts_with(field),
                "{field}: {}",
                status.message()
            );
        }
        assert!(platforms(Some("linux")).is_err());
        assert_eq!(platforms(None).unwrap(), platforms(Some("")).unwrap());
    }
}
