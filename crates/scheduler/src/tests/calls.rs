//! The unary calls, health, reflection, metrics and the limit.

use std::time::Duration;

use dragonfly_api::common::v2::Host;
use dragonfly_api::scheduler::v2::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use super::fake::{Running, TASK, download, host};

#[tokio::test]
async fn hosts_are_announced_listed_and_deleted() {
    let running = Running::with(|config| config.cluster_id = 7).await;
    let mut client = running.client.clone();
    running.announce(host("a")).await;
    running
        .announce(Host {
            r#type: 1,
            ..host("s")
        })
        .await;
    let mut list = async |r#type| {
        let hosts = client
            .list_hosts(ListHostsRequest { r#type })
            .await
            .unwrap()
            .into_inner()
            .hosts;
        let mut names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
        names.sort();
        assert!(hosts.iter().all(|host| host.scheduler_cluster_id == 7));
        names
    };
    assert_eq!(list(None).await, ["a", "s"]);
    assert_eq!(list(Some(0)).await, ["a"]);
    assert_eq!(list(Some(1)).await, ["s"]);
    assert!(list(Some(2)).await.is_empty());
    let mut client = running.client.clone();
    client
        .delete_host(DeleteHostRequest {
            host_id: "host-a".to_owned(),
        })
        .await
        .unwrap();
    let again = client
        .delete_host(DeleteHostRequest {
            host_id: "host-a".to_owned(),
        })
        .await;
    assert_eq!(again.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn announcements_keep_the_rules() {
    let running = Running::start().await;
    let wrong = [
        (
            Host {
                ip: "here".to_owned(),
                ..host("a")
            },
            "host.ip",
        ),
        (
            Host {
                port: 80,
                ..host("a")
            },
            "host.port",
        ),
        (
            Host {
                id: String::new(),
                ..host("a")
            },
            "host.id",
        ),
        (
            Host {
                hostname: String::new(),
                ..host("a")
            },
            "host.hostname",
        ),
        (
            Host {
                r#type: 4,
                ..host("a")
            },
            "host.type",
        ),
    ];
    for (host, field) in wrong {
        let request = AnnounceHostRequest {
            host: Some(host),
            interval: None,
        };
        let status = running
            .client
            .clone()
            .announce_host(request)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{status}");
    }
}

#[tokio::test]
async fn peers_and_tasks_are_told_and_deleted() {
    let running = Running::start().await;
    let mut client = running.client.clone();
    let mut order = download();
    order.request_header = [
        ("Authorization".to_owned(), "secret".to_owned()),
        ("Accept".to_owned(), "x".to_owned()),
    ]
    .into();
    let mut a = running.register("a", order).await;
    a.origin().await;
    let stat = StatPeerRequest {
        peer_id: "a".to_owned(),
        ..Default::default()
    };
    let peer = client.stat_peer(stat.clone()).await.unwrap().into_inner();
    assert_eq!(
        (peer.state.as_str(), peer.concurrent_piece_count),
        ("ReceivedNormal", Some(8))
    );
    let headers = peer.task.unwrap().request_header;
    assert_eq!(
        headers.into_iter().collect::<Vec<_>>(),
        [("Accept".to_owned(), "x".to_owned())]
    );
    let task = StatTaskRequest {
        host_id: String::new(),
        task_id: TASK.to_owned(),
    };
    assert_eq!(
        client
            .stat_task(task.clone())
            .await
            .unwrap()
            .into_inner()
            .peer_count,
        1
    );
    let unknown = DeleteTaskRequest {
        host_id: "nobody".to_owned(),
        task_id: TASK.to_owned(),
    };
    assert_eq!(
        client.delete_task(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    client
        .delete_task(DeleteTaskRequest {
            host_id: "host-a".to_owned(),
            task_id: TASK.to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(a.refused().await.code(), Code::Aborted);
    assert_eq!(
        client.stat_peer(stat).await.unwrap_err().code(),
        Code::NotFound
    );
    assert_eq!(
        client
            .stat_task(task)
            .await
            .unwrap()
            .into_inner()
            .peer_count,
        0
    );
    let gone = DeletePeerRequest {
        peer_id: "a".to_owned(),
        ..Default::default()
    };
    client
        .delete_peer(gone)
        .await
        .expect("deleting what is gone is fine");
    let missing = StatTaskRequest {
        host_id: String::new(),
        task_id: "another".to_owned(),
    };
    assert_eq!(
        client.stat_task(missing).await.unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let running = Running::start().await;
    let mut client = running.client.clone();
    let persistent = client
        .stat_persistent_task(StatPersistentTaskRequest::default())
        .await
        .unwrap_err();
    assert_eq!(persistent.code(), Code::FailedPrecondition);
    assert!(persistent.message().contains("redis is not enabled"));
    let cache = client
        .stat_cache_task(StatCacheTaskRequest::default())
        .await
        .unwrap_err();
    assert_eq!(cache.code(), Code::Unimplemented);
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let running = Running::start().await;
    let channel = tonic::transport::Endpoint::from_shared(format!(
        "http://{}",
        running.scheduler.grpc_addr()
    ));
    let channel = channel.unwrap().connect().await.unwrap();
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(health.into_inner().status, 1);
    let question = MessageRequest::FileContainingSymbol("scheduler.v2.Scheduler".to_owned());
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(question))
        .await;
    let answer = answers
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    assert!(format!("{:?}", answer.message_response).contains("FileDescriptorResponse"));
}

#[tokio::test]
async fn metrics_have_the_names_of_dragonfly_v2() {
    let running = Running::with(|config| config.metrics_per_host = true).await;
    running.register("a", download()).await.read_origin().await;
    let mut stream = tokio::net::TcpStream::connect(running.scheduler.metrics_addr().unwrap())
        .await
        .unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let peer = "{host_type=\"normal\",priority=\"LEVEL0\",task_type=\"STANDARD\"}";
    for line in [
        format!("dragonfly_scheduler_register_peer_total{peer} 1"),
        format!("dragonfly_scheduler_download_peer_back_to_source_started_total{peer} 1"),
        format!("dragonfly_scheduler_download_peer_finished_total{peer} 1"),
        "dragonfly_scheduler_traffic{host_type=\"normal\",task_type=\"STANDARD\",type=\"BACK_TO_SOURCE\"} 4194304".to_owned(),
        "dragonfly_scheduler_announce_peer_total 1".to_owned(),
        "dragonfly_scheduler_host_traffic{host_id=\"host-a\",host_ip=\"127.0.0.1\",host_name=\"a\",host_type=\"normal\"".to_owned(),
        "dragonfly_scheduler_download_peer_duration_milliseconds_count{task_size_level=\"7\"} 1".to_owned(),
        "dragonfly_scheduler_schedule_duration_milliseconds_count 1".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn more_calls_than_the_limit_are_refused() {
    let running = Running::with(|config| config.server.request_rate_limit = 3.0).await;
    let mut refused = None;
    for _ in 0..20 {
        let answer = running
            .client
            .clone()
            .list_hosts(ListHostsRequest { r#type: None })
            .await;
        refused = refused.or(answer.err());
    }
    assert_eq!(
        refused.expect("the limit is reached").code(),
        Code::ResourceExhausted
    );
    tokio::time::timeout(Duration::from_secs(20), async {
        while running
            .client
            .clone()
            .list_hosts(ListHostsRequest { r#type: None })
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the bucket fills again");
}
