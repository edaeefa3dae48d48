//! A real server and a real client on loopback and on a unix socket.

use super::*;
use crate::shutdown::Shutdown;
use std::time::Duration;
use tonic::service::Routes;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn health_is_served_on_tcp_and_ends_with_the_shutdown() {
    let shutdown = Shutdown::new();
    let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap(), "port").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (reporter, service) = health();
    let server = server(&ServerOptions::default()).unwrap();
    spawn_tcp("grpc", server, Routes::new(service), listener, &shutdown);

    let channel = channel(&address, &ClientOptions::default()).unwrap();
    assert!(is_serving(channel.clone(), "", LONG).await);
    reporter
        .set_service_status("", tonic_health::ServingStatus::NotServing)
        .await;
    assert!(!is_serving(channel.clone(), "", LONG).await);
    assert_eq!(shutdown.drain(LONG).await.aborted, Vec::<String>::new());
    assert!(!is_serving(channel, "", LONG).await);
}

#[tokio::test]
async fn health_is_served_on_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let shutdown = Shutdown::new();
    let listener = crate::listen::unix(&path, "socketPath").unwrap();
    let server = server(&ServerOptions::default()).unwrap();
    spawn_unix("grpc", server, Routes::new(health().1), listener, &shutdown);
    let channel = channel_unix(&path, &ClientOptions::default()).unwrap();
    assert!(is_serving(channel, "", LONG).await);
    assert_eq!(shutdown.drain(LONG).await.aborted, Vec::<String>::new());
}

#[tokio::test]
async fn calls_beyond_the_rate_are_refused_with_resource_exhausted() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    let shutdown = Shutdown::new();
    let listener = crate::listen::tcp("127.0.0.1:0".parse().unwrap(), "port").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let routes = RateLimit::new(0.001, 0).around(Routes::new(health().1));
    spawn_tcp(
        "grpc",
        server(&ServerOptions::default()).unwrap(),
        routes,
        listener,
        &shutdown,
    );
    let mut client = HealthClient::new(channel(&address, &ClientOptions::default()).unwrap());
    client.check(HealthCheckRequest::default()).await.unwrap();
    let refused = client
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("requestRateLimit"), "{refused}");
    shutdown.drain(LONG).await;
}

#[test]
fn a_wrong_address_is_an_error_that_shows_the_form() {
    let error = channel("http://", &ClientOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("expected such as http://10.0.0.1:8002"),
        "{error}"
    );
}
