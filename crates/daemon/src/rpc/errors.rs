//! The one map from what went wrong to what a gRPC caller sees.
//!
//! Codes follow Dragonfly v2, whose clients and schedulers know them. Where an origin answered with an error, the details
//! of the status carry it as v2 does: raw JSON (`message`, `header`, `status_code`), not protobuf.

use bytes::Bytes;
use serde::Serialize;
use source::SourceError;
use tonic::{Code, Status};

use super::convert::RequestError;
use crate::engine::DownloadError;
use crate::output::OutputError;

/// Longest text of a status: it travels in a header.
const MESSAGE_LEN_MAX: usize = 2048;

/// Longest header values that are passed on from an origin's answer: details travel in a header too.
const HEADERS_LEN_MAX: usize = 8192;

/// A request that means nothing.
pub fn request(error: &RequestError) -> Status {
    match error {
        RequestError::Kind => Status::new(Code::Unimplemented, text(error)),
        _ => Status::new(Code::InvalidArgument, text(error)),
    }
}

/// A download that failed.
pub fn download(error: &DownloadError) -> Status {
    match error {
        DownloadError::Source(source) => origin(source),
        DownloadError::Refused {
            message,
            header,
            status_code,
        } => backend(text(error), message, header, Some(*status_code)),
        DownloadError::Range { .. } => Status::new(Code::FailedPrecondition, text(error)),
        DownloadError::Invalid(_) => Status::new(Code::InvalidArgument, text(error)),
        DownloadError::Busy { .. } => Status::new(Code::ResourceExhausted, text(error)),
        DownloadError::Stopping => Status::new(Code::Unavailable, text(error)),
        _ => Status::new(Code::Internal, text(error)),
    }
}

/// An origin that refused or broke down: INTERNAL with the details that v2 clients read.
pub fn origin(error: &SourceError) -> Status {
    match error {
        SourceError::InvalidUrl { .. }
        | SourceError::UnknownScheme { .. }
        | SourceError::InvalidHeader { .. } => Status::new(Code::InvalidArgument, text(error)),
        _ => {
            let detail = error.detail();
            backend(
                text(error),
                &detail.message,
                &detail.header,
                detail.status_code,
            )
        }
    }
}

fn backend(
    text: String,
    message: &str,
    header: &std::collections::HashMap<String, String>,
    status_code: Option<i32>,
) -> Status {
    let json = BackendDetails {
        message,
        header: bounded(header),
        status_code,
    };
    let bytes = serde_json::to_vec(&json).unwrap_or_default();
    Status::with_details(Code::Internal, text, Bytes::from(bytes))
}

/// No output file.
pub fn output(error: &OutputError) -> Status {
    let code = match error {
        OutputError::Path { .. } => Code::InvalidArgument,
        OutputError::Exists { .. } => Code::AlreadyExists,
        OutputError::OutsideRoots { .. }
        | OutputError::HardLinkDenied { .. }
        | OutputError::Caller(_) => Code::PermissionDenied,
        OutputError::Folder { error, .. } => match error.kind() {
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                Code::FailedPrecondition
            }
            _ => Code::Internal,
        },
        OutputError::OtherFilesystem { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Status::new(code, text(error))
}

/// The block list forbids it.
pub fn blocked() -> Status {
    Status::permission_denied(
        "this download is on the block list of the cluster: ask its operators",
    )
}

/// A failure inside, with a text for the caller.
pub fn internal(error: impl std::fmt::Display) -> Status {
    Status::new(Code::Internal, text(error))
}

/// An RPC of a task kind that is not here yet.
pub fn not_implemented(method: &str) -> Status {
    Status::unimplemented(format!(
        "{method}: this daemon serves standard tasks; persistent, persistent cache and cache tasks are not implemented"
    ))
}

#[derive(Serialize)]
struct BackendDetails<'a> {
    message: &'a str,
    header: std::collections::BTreeMap<&'a str, &'a str>,
    status_code: Option<i32>,
}

/// The headers that fit, and none that could be a secret.
fn bounded(
    headers: &std::collections::HashMap<String, String>,
) -> std::collections::BTreeMap<&str, &str> {
    let mut left = HEADERS_LEN_MAX;
    let mut sorted: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    sorted.sort_unstable();
    sorted
        .into_iter()
        .filter(|(name, _)| !runtime::secret::is_secret_header(name))
        .filter(|(name, value)| {
            let len = name.len() + value.len();
            let fits = len <= left;
            if fits {
                left -= len;
            }
            fits
        })
        .collect()
}

fn text(error: impl std::fmt::Display) -> String {
    let mut text = error.to_string();
    if text.len() > MESSAGE_LEN_MAX {
        let end = (0..=MESSAGE_LEN_MAX)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::CallerError;
    use std::sync::Arc;

    fn refused(status_code: u16) -> SourceError {
        let header = [("content-type", "text/plain"), ("set-cookie", "secret")];
        SourceError::Status {
            url: source::Redacted::text("http://origin/f?token=secret"),
            status_code,
            header: header
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            retry_after: None,
        }
    }

    #[test]
    fn an_origins_refusal_carries_v2_details() {
        let status = download(&DownloadError::Source(Arc::new(refused(404))));
        assert_eq!(status.code(), Code::Internal);
        let details: serde_json::Value = serde_json::from_slice(status.details()).unwrap();
        assert_eq!(details["status_code"], 404);
        assert_eq!(details["header"]["content-type"], "text/plain");
        assert!(details["message"].as_str().unwrap().contains("404"));
        assert!(
            !String::from_utf8_lossy(status.details()).contains("secret"),
            "{details}"
        );
        let mut keys: Vec<&String> = details.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["header", "message", "status_code"]);
    }

    #[test]
    fn details_without_an_answer_have_a_null_status() {
        let error = SourceError::Connect {
            url: source::Redacted::text("http://origin/f"),
            reason: "refused".into(),
        };
        let details: serde_json::Value = serde_json::from_slice(origin(&error).details()).unwrap();
        assert!(
            details["status_code"].is_null() && details["header"].as_object().unwrap().is_empty()
        );
    }

    #[test]
    fn codes_of_downloads_are_pinned() {
        let task_id: protocol::TaskId = "abc".parse().unwrap();
        for (error, code) in [
            (
                DownloadError::Range {
                    range: "x".into(),
                    content_length: 1,
                },
                Code::FailedPrecondition,
            ),
            (DownloadError::Invalid("x".into()), Code::InvalidArgument),
            (DownloadError::Busy { count: 1 }, Code::ResourceExhausted),
            (DownloadError::Stopping, Code::Unavailable),
            (
                DownloadError::NoParents {
                    task_id,
                    reason: "x".into(),
                },
                Code::Internal,
            ),
        ] {
            assert_eq!(download(&error).code(), code, "{error}");
        }
        let url = source::Redacted::text("x");
        let error = SourceError::InvalidUrl {
            url,
            reason: "x".into(),
        };
        assert_eq!(origin(&error).code(), Code::InvalidArgument);
    }

    #[test]
    fn codes_of_outputs_are_pinned() {
        let path = std::path::PathBuf::from("/x");
        let folder = |kind| OutputError::Folder {
            path: path.clone(),
            uid: 1,
            error: std::io::Error::from(kind),
        };
        for (error, code) in [
            (
                OutputError::Path {
                    path: path.clone(),
                    reason: "x",
                },
                Code::InvalidArgument,
            ),
            (
                OutputError::Exists { path: path.clone() },
                Code::AlreadyExists,
            ),
            (
                OutputError::OutsideRoots { path: path.clone() },
                Code::PermissionDenied,
            ),
            (
                OutputError::HardLinkDenied {
                    path: path.clone(),
                    uid: 1,
                },
                Code::PermissionDenied,
            ),
            (
                OutputError::Caller(CallerError::OtherUser {
                    daemon: 1,
                    caller: 2,
                }),
                Code::PermissionDenied,
            ),
            (
                folder(std::io::ErrorKind::PermissionDenied),
                Code::PermissionDenied,
            ),
            (
                folder(std::io::ErrorKind::NotFound),
                Code::FailedPrecondition,
            ),
            (folder(std::io::ErrorKind::StorageFull), Code::Internal),
            (
                OutputError::OtherFilesystem { path: path.clone() },
                Code::FailedPrecondition,
            ),
        ] {
            assert_eq!(output(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn requests_and_texts_are_bounded() {
        assert_eq!(
            request(&RequestError::NoDownload).code(),
            Code::InvalidArgument
        );
        assert_eq!(request(&RequestError::Kind).code(), Code::Unimplemented);
        assert_eq!(
            internal("ä".repeat(10_000)).message().len(),
            MESSAGE_LEN_MAX
        );
    }
}
