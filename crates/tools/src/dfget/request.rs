//! From options to the daemon's request.

use std::net::{IpAddr, UdpSocket};
use std::sync::LazyLock;
use std::time::Duration;

use dragonfly_api::common::v2::{Download, TaskType};
use dragonfly_api::dfdaemon::v2::DownloadTaskRequest;
use protocol::DEFAULT_FILTERED_QUERY_PARAMS;
use url::Url;

use super::arguments::{Arguments, SchedulingPolicy};
use super::destination::Destination;
use crate::failure::Failure;

/// The request for `dfdaemon.v2.DfdaemonDownload/DownloadTask`.
pub(super) fn download(
    arguments: &Arguments,
    url: &Url,
    destination: &Destination,
    timeout: Duration,
) -> Result<DownloadTaskRequest, Failure> {
    let filtered_query_params = match arguments.filtered_query_params.as_slice() {
        [] => DEFAULT_FILTERED_QUERY_PARAMS.map(str::to_owned).to_vec(),
        given => given.to_vec(),
    };
    let output_path = match destination
        .daemon_path()
        .map(|path| path.to_str().ok_or(path))
    {
        Some(Ok(path)) => Some(path.to_owned()),
        Some(Err(path)) => {
            let reason = "its name is not UTF-8, which the daemon cannot be told: use --transfer-from-dfdaemon".to_owned();
            return Err(Failure::Output {
                path: path.to_owned(),
                reason,
            });
        }
        None => None,
    };
    let download = Download {
        url: url.to_string(),
        digest: arguments.digest.as_ref().map(ToString::to_string),
        r#type: TaskType::Standard.into(),
        // Present though empty, as v2 sends them: this adds nothing to the task id.
        tag: Some(arguments.tag.clone()),
        application: Some(arguments.application.clone()),
        priority: arguments.priority,
        filtered_query_params,
        request_header: arguments.headers.iter().cloned().collect(),
        piece_length: arguments.piece_length.map(|length| length.as_u64()),
        output_path,
        timeout: prost_wkt_types::Duration::try_from(timeout).ok(),
        disable_back_to_source: arguments.disable_back_to_source,
        need_piece_content: destination.wants_content(),
        force_hard_link: arguments.force_hard_link && !destination.wants_content(),
        content_for_calculating_task_id: arguments.content_for_calculating_task_id.clone(),
        remote_ip: own_address(),
        // A staged name is new: what is there would be somebody else's.
        overwrite: arguments.overwrite && matches!(destination, Destination::Daemon { .. }),
        scheduling_policy: match arguments.scheduling_policy {
            SchedulingPolicy::Auto => dragonfly_api::common::v2::SchedulingPolicy::Auto.into(),
            SchedulingPolicy::Always => dragonfly_api::common::v2::SchedulingPolicy::Always.into(),
        },
        ..arguments.origin.of_scheme(url.scheme())
    };
    Ok(DownloadTaskRequest {
        download: Some(download),
    })
}

/// The address this host uses towards the outside, for the daemon's log. Nothing is sent: a UDP socket is only told its peer (TEST-NET-1).
pub(super) fn own_address() -> Option<String> {
    // Asked once: it is the same for a thousand files.
    static ADDRESS: LazyLock<Option<String>> =
        LazyLock::new(|| found_address().map(|ip| ip.to_string()));
    ADDRESS.clone()
}

fn found_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn request(line: &str) -> Download {
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let destination = Destination::plan(&arguments, &arguments.output).unwrap();
        download(
            &arguments,
            &arguments.urls[0],
            &destination,
            arguments.timeout,
        )
        .unwrap()
        .download
        .unwrap()
    }

    #[test]
    fn a_plain_download_asks_for_what_v2_asks_for() {
        let download =
            request("dfget http://h/f?a=b -O /tmp/dfget-no-such-file --timeout 90s -H X:y");
        assert_eq!(download.url, "http://h/f?a=b");
        assert_eq!(
            download.output_path.as_deref(),
            Some("/tmp/dfget-no-such-file")
        );
        assert_eq!(
            (download.tag.as_deref(), download.application.as_deref()),
            (Some(""), Some(""))
        );
        assert_eq!(download.priority, 6);
        assert_eq!(
            download.filtered_query_params.len(),
            DEFAULT_FILTERED_QUERY_PARAMS.len()
        );
        assert_eq!(download.timeout.as_ref().unwrap().seconds, 90);
        assert_eq!(download.request_header["X"], "y");
        assert!(
            !download.need_piece_content
                && !download.enable_task_id_based_blob_digest
                && !download.overwrite
        );
        assert!(download.object_storage.is_none() && download.hugging_face.is_none());
    }

    #[test]
    fn standard_output_needs_the_content() {
        let download = request("dfget http://h/f -O - --force-hard-link --filtered-query-param t");
        assert!(download.need_piece_content && !download.force_hard_link);
        assert_eq!(download.output_path, None);
        assert_eq!(download.filtered_query_params, ["t"]);
    }

    #[test]
    fn secrets_go_to_their_own_scheme_only() {
        let secrets = "--storage-access-key-secret s --hf-token t --hdfs-delegation-token d";
        let plain = request(&format!("dfget http://h/f -O - {secrets}"));
        assert!(
            plain.object_storage.is_none() && plain.hugging_face.is_none() && plain.hdfs.is_none()
        );
        let hub = request(&format!("dfget hf://owner/repo/f -O - {secrets}"));
        let hugging_face = hub.hugging_face.unwrap();
        assert_eq!(
            (
                hugging_face.token.as_deref(),
                hugging_face.revision.as_str()
            ),
            (Some("t"), "main")
        );
        assert!(hub.object_storage.is_none());
        let store = request(&format!("dfget s3://bucket/f -O - {secrets}"))
            .object_storage
            .unwrap();
        assert_eq!(store.access_key_secret.as_deref(), Some("s"));
    }
}
