//! Reading one figure from a daemon's metrics endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(2);
/// Longest answer that is read, bytes.
const ANSWER_LEN_MAX: u64 = 1024 * 1024;

/// Bytes that a daemon read from the origin so far (`dragonfly_client_download_traffic`, type BACK_TO_SOURCE; daemon
/// sheet, section 12). `None` if it does not answer.
pub(super) async fn origin_bytes(metrics: SocketAddr) -> Option<u64> {
    let text = tokio::time::timeout(WAIT, get(metrics)).await.ok()?.ok()?;
    Some(traffic(&text, "BACK_TO_SOURCE"))
}

async fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LEN_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The value of one traffic type; 0 while there was none. A counter is written as a number that may have a fraction.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a counter of bytes, never negative"
)]
fn traffic(text: &str, kind: &str) -> u64 {
    let name = format!("dragonfly_client_download_traffic{{type=\"{kind}\"}} ");
    text.lines()
        .find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok())
        .map_or(0, |value| value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traffic_of_a_type_is_found() {
        let text = "# TYPE dragonfly_client_download_traffic counter\n\
                    dragonfly_client_download_traffic{type=\"BACK_TO_SOURCE\"} 1073741824\n\
                    dragonfly_client_download_traffic{type=\"REMOTE_PEER\"} 5\n";
        assert_eq!(traffic(text, "BACK_TO_SOURCE"), 1 << 30);
        assert_eq!(traffic(text, "REMOTE_PEER"), 5);
        assert_eq!(traffic(text, "LOCAL_PEER"), 0);
    }
}
