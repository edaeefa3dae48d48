//! The options of `dfget`: names, defaults and environment variables are those of Dragonfly v2.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use protocol::{ByteRange, Digest, RangeError};
use url::Url;

use crate::connection::DaemonArguments;
use crate::failure::Failure;
use crate::logging::LogArguments;
use crate::origin::OriginArguments;

const EXIT_CODES: &str = "\
Exit codes:
  0    the file is there, whole; of many all are
  1    the daemon could not do it; of many some are not there
  2    wrong options
  3    no daemon answers on the socket
  4    the origin refused or failed
  5    the output cannot be written
  6    the digest does not match
  7    not done within --timeout
  130  interrupted by Ctrl-C (143: by SIGTERM, 129: by the end of its terminal)";

/// Downloads files through the Dragonfly daemon of this host.
#[derive(Debug, Clone, Parser)]
#[command(name = "dfget", version, about, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Arguments {
    /// Address of the file, or of a directory if it ends with "/"; several may be given.
    #[arg(required = true, value_name = "URL", value_parser = url)]
    pub urls: Vec<Url>,

    /// Where to put it; "-" writes it to standard output. For a directory or several files a folder, which is made if there is none.
    #[arg(short = 'O', long)]
    pub output: PathBuf,

    /// Download directories: the URLs are those of directories, also without "/" at their end.
    #[arg(short, long)]
    pub recursive: bool,

    /// Take the bytes over the socket and write the file here: for containers that share no file system with the daemon.
    #[arg(long, env = "DFGET_TRANSFER_FROM_DFDAEMON")]
    pub transfer_from_dfdaemon: bool,

    /// Replace the output if it exists.
    #[arg(long, env = "DFGET_OVERWRITE")]
    pub overwrite: bool,

    /// Fail if the daemon cannot hard-link its file to the output.
    #[arg(long, env = "DFGET_FORCE_HARD_LINK")]
    pub force_hard_link: bool,

    /// Identify the task by this text instead of by the URL.
    #[arg(long, env = "DFGET_CONTENT_FOR_CALCULATING_TASK_ID")]
    pub content_for_calculating_task_id: Option<String>,

    /// Longest time for the whole download.
    #[arg(long, env = "DFGET_TIMEOUT", default_value = "2h", value_parser = timeout)]
    pub timeout: Duration,

    /// Expected digest of what is written: sha256:HEX, sha512:HEX or crc32:DECIMAL.
    #[arg(long)]
    pub digest: Option<Digest>,

    /// Priority of the download, 0 to 6.
    #[arg(short, long, env = "DFGET_PRIORITY", default_value_t = 6, value_parser = clap::value_parser!(i32).range(0..=6))]
    pub priority: i32,

    /// Length of a piece, at least 4MiB [default: by the length of the file].
    #[arg(long, env = "DFGET_PIECE_LENGTH", value_parser = piece_length)]
    pub piece_length: Option<ByteSize>,

    /// Name of the application; tasks of different applications are kept apart.
    #[arg(long, env = "DFGET_APPLICATION", default_value = "")]
    pub application: String,

    /// Tag; tasks with different tags are kept apart.
    #[arg(long, env = "DFGET_TAG", default_value = "")]
    pub tag: String,

    /// Header for the origin, "Name: value"; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    pub headers: Vec<(String, String)>,

    /// Query parameter that does not identify the file; giving any replaces the default list.
    #[arg(long = "filtered-query-param", value_name = "NAME")]
    pub filtered_query_params: Vec<String>,

    /// Of a directory only what this takes: a path below it, or a pattern with *, ?, [a-z], {a,b}, and **/ for any directories;
    /// a directory is taken with all in it. May be given several times.
    #[arg(short = 'I', long, value_name = "PATTERN")]
    pub include_files: Vec<String>,

    /// Of a directory nothing that this takes; as --include-files, and stronger.
    #[arg(short = 'X', long, value_name = "PATTERN")]
    pub exclude_files: Vec<String>,

    /// Never ask the origin from this host: only peers.
    #[arg(long, env = "DFGET_DISABLE_BACK_TO_SOURCE")]
    pub disable_back_to_source: bool,

    /// Whether small files go through the scheduler too.
    #[arg(long, env = "DFGET_SCHEDULING_POLICY", value_enum, default_value_t = SchedulingPolicy::Auto)]
    pub scheduling_policy: SchedulingPolicy,

    /// Access to origins that are not plain HTTP.
    #[command(flatten)]
    pub origin: OriginArguments,

    /// Most files of a directory; more are refused before anything is downloaded.
    #[arg(long, env = "DFGET_MAX_FILES", default_value_t = 100)]
    pub max_files: usize,

    /// Files at the same time, 1 to 1000.
    #[arg(long, env = "DFGET_MAX_CONCURRENT_REQUESTS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_concurrent_requests: u16,

    /// Of many files, begin no more after one has failed.
    #[arg(long, env = "DFGET_FAIL_FAST")]
    pub fail_fast: bool,

    /// Draw no progress bar.
    #[arg(long, env = "DFGET_NO_PROGRESS")]
    pub no_progress: bool,

    /// Print the outcome as one JSON object: on standard output, or on standard error if that carries the file.
    #[arg(long, env = "DFGET_JSON")]
    pub json: bool,

    /// Where the daemon is.
    #[command(flatten)]
    pub daemon: DaemonArguments,

    /// What is told on the way.
    #[command(flatten)]
    pub logs: LogArguments,
}

/// Whether small files go through the scheduler (`common.v2.SchedulingPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicy {
    /// Small files come straight from the origin.
    Auto,
    /// Every file goes through the scheduler.
    Always,
}

impl Arguments {
    /// Whether the outcome is more than one file: a folder.
    pub(super) fn wants_folder(&self) -> bool {
        self.recursive || self.urls.len() > 1 || self.urls.iter().any(is_directory)
    }

    /// Whether a part of the file is wanted.
    pub(super) fn wants_range(&self) -> bool {
        self.ranges().next().is_some()
    }

    /// Refuses ranges that mean nothing, and several, which would not be one file.
    pub(super) fn check_range(&self) -> Result<(), Failure> {
        for range in self.ranges() {
            let refused = |why: String| Failure::Usage {
                reason: format!("range {range:?}: {why}"),
            };
            if range.contains(',') {
                return Err(refused("these are several: ask for one".to_owned()));
            }
            if let Err(error @ (RangeError::Unit | RangeError::Syntax)) =
                ByteRange::parse_header(range, u64::MAX)
            {
                return Err(refused(error.to_string()));
            }
        }
        Ok(())
    }

    fn ranges(&self) -> impl Iterator<Item = &str> {
        let headers = self.headers.iter();
        let ranges = headers.filter(|(name, _)| name.eq_ignore_ascii_case("range"));
        ranges.map(|(_, value)| value.as_str())
    }
}

/// Whether a URL names a directory, as in Dragonfly v2.
pub(super) fn is_directory(url: &Url) -> bool {
    url.path().ends_with('/') || url.path().is_empty()
}

/// Schemes whose paths are keys: every part of them means itself.
const OBJECT_STORAGES: [&str; 6] = ["s3", "gs", "abs", "oss", "obs", "cos"];

/// A URL; parsing would silently make another key of one with `.` or `..` in it.
fn url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let is_dots = |name: &str| {
        let name = name.to_ascii_lowercase().replace("%2e", ".");
        name == "." || name == ".."
    };
    if OBJECT_STORAGES.contains(&url.scheme()) && path.split('/').any(is_dots) {
        return Err("a key with . or .. between slashes cannot be asked for over HTTP".to_owned());
    }
    Ok(url)
}

/// The least piece length of Dragonfly v2.
const PIECE_LENGTH_MIN: ByteSize = ByteSize::mib(4);

pub(crate) fn piece_length(text: &str) -> Result<ByteSize, String> {
    let length: ByteSize = text
        .parse()
        .map_err(|_| "write a number of bytes, or one with a unit such as 8MiB".to_owned())?;
    if length < PIECE_LENGTH_MIN {
        return Err("a piece has at least 4MiB".to_owned());
    }
    Ok(length)
}

/// The longest time that clocks and gRPC can both express is a little more.
const TIMEOUT_YEARS_MAX: u64 = 1000;

pub(crate) fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout > Duration::from_secs(TIMEOUT_YEARS_MAX * 365 * 86_400) {
        return Err(format!(
            "at most {TIMEOUT_YEARS_MAX} years can be waited for"
        ));
    }
    Ok(timeout)
}

pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as \"Name: value\"")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_v2() {
        let arguments = parse("dfget http://h/f -O /tmp/f").unwrap();
        assert_eq!(arguments.timeout, Duration::from_secs(7200));
        assert_eq!(
            (
                arguments.priority,
                arguments.max_files,
                arguments.max_concurrent_requests
            ),
            (6, 100, 5)
        );
        assert_eq!(
            (arguments.tag.as_str(), arguments.application.as_str()),
            ("", "")
        );
        assert_eq!(arguments.scheduling_policy, SchedulingPolicy::Auto);
        assert_eq!(
            arguments.origin.storage_predefined_acl.as_deref(),
            Some("publicRead")
        );
        assert_eq!(arguments.origin.ms_revision, "master");
        assert!(!arguments.overwrite && !arguments.no_progress && arguments.digest.is_none());
    }

    #[test]
    fn a_range_is_one_and_well_formed() {
        let checked = |range: &str| {
            let header = format!("range: {range}");
            let line = ["dfget", "http://h/f", "-O", "f", "-H", &header];
            Arguments::try_parse_from(line).unwrap().check_range()
        };
        for range in ["bytes=0-1", "bytes=5-", "bytes=-99999999"] {
            assert_eq!(checked(range), Ok(()), "{range}");
        }
        for (range, told) in [
            ("bytes=0-1,3-4", "several"),
            ("bytes=9-0", "malformed"),
            ("bytes=a", "malformed"),
            ("lines=0-1", "unit"),
        ] {
            let refused = checked(range).unwrap_err();
            assert!(refused.to_string().contains(told), "{refused}");
            assert_eq!(refused.exit_code(), 2);
        }
    }

    #[test]
    fn several_urls_or_a_directory_make_a_folder() {
        for (line, folder) in [
            ("dfget http://h/f -O f", false),
            ("dfget http://h/f http://h/g -O d", true),
            ("dfget http://h/d/ -O d", true),
            ("dfget -r http://h/d -O d", true),
            ("dfget s3://bucket -O d", true),
        ] {
            assert_eq!(parse(line).unwrap().wants_folder(), folder, "{line}");
        }
    }

    #[test]
    fn values_are_read_in_the_forms_of_v2() {
        let arguments = parse(
            "dfget -O - http://h/f --piece-length 8mib --timeout 90s -p 3 -H A:b -H c:d:e --scheduling-policy always --digest crc32:7 --filtered-query-param x",
        )
        .unwrap();
        assert_eq!(arguments.piece_length, Some(ByteSize::mib(8)));
        assert_eq!(arguments.timeout, Duration::from_secs(90));
        assert_eq!(
            arguments.headers,
            [("A".into(), "b".into()), ("c".into(), "d:e".into())]
        );
        assert_eq!(arguments.filtered_query_params, ["x"]);
        assert_eq!(arguments.digest.unwrap().to_string(), "crc32:7");
    }

    #[test]
    fn wrong_values_are_answered_with_the_right_ones() {
        for (line, told) in [
            ("dfget http://h/f", "--output"),
            ("dfget nonsense -O f", "relative URL without a base"),
            ("dfget http://h/f -O f --piece-length 1MiB", "at least 4MiB"),
            ("dfget http://h/f -O f --piece-length lots", "such as 8MiB"),
            ("dfget http://h/f -O f -p 7", "0..=6"),
            (
                "dfget http://h/f -O f --timeout 500000y",
                "at most 1000 years",
            ),
            ("dfget s3://b/a/../f -O f", ". or .. between slashes"),
            ("dfget s3://b/a/%2E%2e/f -O f", ". or .. between slashes"),
            ("dfget http://h/f -O f --timeout soon", "expected number"),
            ("dfget http://h/f -O f -H nonsense", "Name: value"),
            ("dfget http://h/f -O f --digest sha256:12", "64 hex digits"),
            (
                "dfget http://h/f -O f --digest md5:12",
                "use crc32, sha256 or sha512",
            ),
            (
                "dfget http://h/f -O f --scheduling-policy never",
                "auto, always",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn the_exit_codes_stand_in_the_help() {
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains("the digest does not match"), "{help}");
    }
}
