//! The health endpoint: `GET /healthy` answers 200 with an empty body while the process serves.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

/// The route; everything else is 404. Serve it with [`crate::http::spawn`].
pub fn router() -> Router {
    Router::new().route("/healthy", get(async || StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn healthy_is_200_and_empty_and_the_rest_is_404() {
        let shutdown = Shutdown::new();
        let listener =
            crate::listen::tcp("127.0.0.1:0".parse().unwrap(), "health.server.port").unwrap();
        let address = listener.local_addr().unwrap();
        crate::http::spawn("health", listener, router(), &shutdown);
        for (path, status) in [
            ("/healthy", "HTTP/1.1 200 OK"),
            ("/other", "HTTP/1.1 404 Not Found"),
        ] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(status) && answer.ends_with("\r\n\r\n"),
                "{answer}"
            );
        }
        assert_eq!(
            shutdown.drain(Duration::from_secs(20)).await.aborted,
            Vec::<String>::new()
        );
    }
}
