//! Calling daemons: their upload port, `host.ip:host.port`, with the certificates of `seedPeer.tls`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use dragonfly_api::common::v2::Host;
use dragonfly_api::dfdaemon::v2::dfdaemon_upload_client::DfdaemonUploadClient;
use parking_lot::Mutex;
use runtime::grpc::{ClientOptions, channel};
use runtime::tls::TlsMaterial;
use scheduling::SourceFailure;
use serde::Deserialize;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::warn;

/// How long connecting to a daemon may take: less than the time that a seed has to register.
const CONNECT_MAX: Duration = Duration::from_millis(1500);

/// Connections to daemons, each opened when it is first used.
pub(crate) struct Daemons {
    options: ClientOptions,
    channels: Mutex<HashMap<SocketAddr, Channel>>,
}

impl Daemons {
    pub(crate) fn new(tls: Option<TlsMaterial>) -> Self {
        // A call may last as long as a download; what bounds it is written beside each wait.
        Self::with(ClientOptions {
            connect_timeout: CONNECT_MAX,
            request_timeout: None,
            tls,
            ..ClientOptions::default()
        })
    }

    fn with(options: ClientOptions) -> Self {
        Self {
            options,
            channels: Mutex::default(),
        }
    }

    /// The same, without a connection yet: they end with the value.
    pub(crate) fn apart(&self) -> Self {
        Self::with(self.options.clone())
    }

    /// Closes the connections to other daemons than these once their calls have ended.
    pub(crate) fn retain(&self, keep: impl Fn(&SocketAddr) -> bool) {
        self.channels.lock().retain(|address, _| keep(address));
    }

    pub(crate) fn channel(&self, address: SocketAddr) -> Option<Channel> {
        let mut channels = self.channels.lock();
        if let Some(open) = channels.get(&address) {
            return Some(open.clone());
        }
        let opened = channel(&address.to_string(), &self.options);
        match opened {
            Ok(opened) => {
                channels.insert(address, opened.clone());
                Some(opened)
            }
            Err(error) => {
                warn!(%address, %error, "daemon cannot be connected");
                None
            }
        }
    }

    /// The upload service of a host, if its address is one.
    pub(crate) fn upload(&self, host: &Host) -> Option<DfdaemonUploadClient<Channel>> {
        let channel = self.channel(address_of(host)?)?;
        Some(
            DfdaemonUploadClient::new(channel)
                .max_decoding_message_size(runtime::grpc::MESSAGE_LEN_MAX),
        )
    }
}

/// Where a daemon is called.
pub(crate) fn address_of(host: &Host) -> Option<SocketAddr> {
    Some(SocketAddr::new(
        host.ip.parse().ok()?,
        u16::try_from(host.port).ok()?,
    ))
}

/// What a daemon puts into the details of a status when the origin failed it (daemon sheet, section 6.3).
#[derive(Deserialize)]
struct OriginDetails {
    message: String,
    status_code: Option<u16>,
}

/// The origin's failure in a daemon's status, if it is one.
pub(crate) fn origin_failure(status: &Status) -> Option<SourceFailure> {
    let details = serde_json::from_slice::<OriginDetails>(status.details()).ok()?;
    (status.code() == Code::Internal).then_some(SourceFailure {
        status: details.status_code,
        message: details.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origins_failure_is_read_from_the_details() {
        let json = br#"{"message":"gone","header":{"a":"b"},"status_code":404}"#;
        let status = Status::with_details(Code::Internal, "x", json.to_vec().into());
        let failure = SourceFailure {
            status: Some(404),
            message: "gone".to_owned(),
        };
        assert_eq!(origin_failure(&status), Some(failure));
        assert_eq!(origin_failure(&Status::internal("disk full")), None);
    }
}
