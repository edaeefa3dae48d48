//! The sequences that real schedulers and clients go through, over real connections.

use dragonfly_api::manager::v2 as wire;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::SourceType;

use super::clients::{
    Beating, TestManager, get_scheduler, is_active, list_schedulers, update_scheduler,
};
use super::data::{insert_application, insert_cluster, open};
use super::eventually;
use super::servers::Backend;
use crate::DatabaseUrl;
use crate::db::sql;

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// `GET path` over a plain connection: status line and body.
async fn http_get(at: std::net::SocketAddr, path: &str) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: manager\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

pub(super) async fn health_and_reflection_answer(_: &Backend, url: DatabaseUrl) {
    let manager = TestManager::start(&url).await;
    let channel =
        runtime::grpc::channel(&manager.at.grpc.to_string(), &Default::default()).unwrap();
    // The public client asks for the service with the empty name before anything else.
    let mut health = HealthClient::new(channel.clone());
    let answer = health
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.status, 1, "SERVING");
    let services = reflected_services(channel).await;
    for service in ["manager.v2.Manager", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|it| it == service), "{services:?}");
    }
    assert_eq!(
        http_get(manager.at.rest, "/healthy").await,
        ("HTTP/1.1 200 OK".to_owned(), "\"OK\"".to_owned())
    );
    assert_eq!(
        http_get(manager.at.rest, "/api/v1/clusters").await.0,
        "HTTP/1.1 404 Not Found"
    );
    let (status, metrics) = http_get(manager.at.metrics.unwrap(), "/metrics").await;
    assert!(
        status.ends_with("200 OK") && metrics.contains("dragonfly_manager_version{"),
        "{metrics}"
    );
    manager.stop().await;
}

async fn reflected_services(channel: tonic::transport::Channel) -> Vec<String> {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    match answers.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|it| it.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub(super) async fn a_scheduler_lives_through_its_day(_: &Backend, url: DatabaseUrl) {
    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    let unknown = client
        .get_scheduler(get_scheduler("scheduler-0"))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::Internal);
    // It registers ...
    let row = client
        .update_scheduler(update_scheduler("scheduler-0"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (row.id, row.state.as_str(), row.scheduler_cluster_id),
        (1, "inactive", 1)
    );
    assert_eq!(
        (row.idc.as_deref(), row.location.as_deref()),
        (Some(""), Some(""))
    );
    assert_eq!(row.features, br#"["schedule"]"#);
    // ... reads its configuration ...
    let row = client
        .get_scheduler(get_scheduler("scheduler-0"))
        .await
        .unwrap()
        .into_inner();
    let cluster = row.scheduler_cluster.unwrap();
    assert_eq!((cluster.id, cluster.name.as_str()), (1, "cluster-1"));
    assert_eq!(
        cluster.config,
        br#"{"candidate_parent_limit":3,"filter_parent_limit":15,"job_rate_limit":10}"#
    );
    assert_eq!(
        (cluster.client_config, cluster.scopes),
        (br#"{"load_limit":200}"#.to_vec(), b"{}".to_vec())
    );
    assert!(cluster.seed_client_config.is_empty());
    assert!(row.seed_peers.is_empty());
    assert_eq!(
        client
            .list_applications(applications_asked())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    // ... is nobody's scheduler until its first heartbeat ...
    assert!(
        client
            .list_schedulers(list_schedulers())
            .await
            .unwrap()
            .into_inner()
            .schedulers
            .is_empty()
    );
    let beating = Beating::scheduler(client.clone(), "scheduler-0");
    beating.beat().await;
    eventually("it is active", || async {
        is_active(&client, "scheduler-0").await.then_some(())
    })
    .await;
    let again = client
        .update_scheduler(update_scheduler("scheduler-0"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (again.id, again.state.as_str()),
        (1, "active"),
        "registering again leaves the state"
    );
    // ... and until it says goodbye, or just vanishes.
    beating.finish().await.unwrap();
    assert!(!is_active(&client, "scheduler-0").await);
    let beating = Beating::scheduler(client.clone(), "scheduler-0");
    beating.beat().await;
    eventually("it is active", || async {
        is_active(&client, "scheduler-0").await.then_some(())
    })
    .await;
    beating.abort().await;
    eventually("it is inactive", || async {
        (!is_active(&client, "scheduler-0").await).then_some(())
    })
    .await;
    // One that is not registered hears so; one in a cluster that nobody made gets an empty cluster.
    let stranger = Beating::scheduler(client.clone(), "stranger");
    stranger.beat().await;
    assert_eq!(stranger.ended().await.code(), Code::Internal);
    let lost = wire::UpdateSchedulerRequest {
        scheduler_cluster_id: 7,
        ..update_scheduler("lost")
    };
    client.update_scheduler(lost).await.unwrap();
    let asked = wire::GetSchedulerRequest {
        scheduler_cluster_id: 7,
        ..get_scheduler("lost")
    };
    let cluster = client
        .get_scheduler(asked)
        .await
        .unwrap()
        .into_inner()
        .scheduler_cluster
        .unwrap();
    assert_eq!((cluster.id, cluster.config), (0, b"null".to_vec()));
    manager.stop().await;
}

fn applications_asked() -> wire::ListApplicationsRequest {
    wire::ListApplicationsRequest {
        source_type: 0,
        hostname: "scheduler-0".to_owned(),
        ip: "10.0.0.7".to_owned(),
    }
}

pub(super) async fn a_daemon_finds_its_schedulers(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    let near = insert_cluster(&database, "near", json!({"cidrs": ["10.0.0.0/24"]})).await;
    insert_cluster(
        &database,
        "empty",
        json!({"cidrs": ["10.0.0.9/32"], "hostnames": ["node"]}),
    )
    .await;
    let block_list = json!({"load_limit": 9, "block_list": {"task": {"download":
        {"applications": null, "urls": null, "tags": ["x"], "priorities": [1]}}}});
    let update = sql(
        "UPDATE scheduler_cluster SET client_config = ?, seed_client_config = ? WHERE name = 'near'",
    );
    database
        .execute(
            update
                .bind(block_list.to_string())
                .bind(r#"{"block_list":null}"#),
        )
        .await
        .unwrap();

    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    let mut streams = Vec::new();
    // Two in the default cluster, then one in the near one, one there without a heartbeat, one that only preheats.
    for (name, cluster, feature) in [
        ("a", 1, "schedule"),
        ("b", 1, "schedule"),
        ("c", near, "schedule"),
        ("quiet", near, "schedule"),
        ("p", near, "preheat"),
    ] {
        let told = wire::UpdateSchedulerRequest {
            scheduler_cluster_id: cluster,
            features: vec![feature.to_owned()],
            ..update_scheduler(name)
        };
        client.update_scheduler(told).await.unwrap();
        if name != "quiet" {
            let beating = Beating::in_cluster(client.clone(), name, cluster);
            beating.beat().await;
            streams.push(beating);
        }
    }
    let found = eventually("all four are active", || async {
        let found = client
            .clone()
            .list_schedulers(list_schedulers())
            .await
            .unwrap()
            .into_inner()
            .schedulers;
        let by_id = wire::ListSchedulersRequest {
            scheduler_cluster_id: near,
            ..list_schedulers()
        };
        let all = client
            .clone()
            .list_schedulers(by_id)
            .await
            .unwrap()
            .into_inner()
            .schedulers;
        let active = all.iter().filter(|it| it.state == "active").count();
        (found.len() == 3 && active == 2).then_some(found)
    })
    .await;
    // The best cluster first, the other one behind it, inside a cluster the oldest first.
    let names: Vec<&str> = found.iter().map(|it| it.hostname.as_str()).collect();
    assert_eq!(names, ["c", "a", "b"]);
    let cluster = found[0]
        .scheduler_cluster
        .as_ref()
        .expect("the client needs the cluster");
    assert_eq!((cluster.id, cluster.name.as_str()), (near, "near"));
    assert_eq!(found[0].port, 8002);
    assert!(found[0].ip.parse::<std::net::IpAddr>().is_ok());
    // The public client's parser takes a list for `urls`, nothing else.
    let download = &json_of(&cluster.client_config)["block_list"]["task"]["download"];
    assert_eq!(
        download,
        &json!({"applications": null, "urls": [], "tags": ["x"], "priorities": [1]})
    );
    assert_eq!(
        json_of(&cluster.seed_client_config),
        json!({"block_list": null})
    );
    assert_eq!(json_of(&cluster.scopes), json!({"cidrs": ["10.0.0.0/24"]}));
    let by_id = wire::ListSchedulersRequest {
        scheduler_cluster_id: near,
        ..list_schedulers()
    };
    let found = client
        .list_schedulers(by_id)
        .await
        .unwrap()
        .into_inner()
        .schedulers;
    let names: Vec<&str> = found.iter().map(|it| it.hostname.as_str()).collect();
    assert_eq!(
        names,
        ["c", "quiet", "p"],
        "the short cut gives every state and feature"
    );
    assert!(found.iter().all(|it| it.scheduler_cluster.is_some()));
    let misnamed = wire::ListSchedulersRequest {
        hostname: "under_score".to_owned(),
        ..list_schedulers()
    };
    assert_eq!(
        client.list_schedulers(misnamed).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let missing = wire::ListSchedulersRequest {
        scheduler_cluster_id: 99,
        ..list_schedulers()
    };
    assert_eq!(
        client.list_schedulers(missing).await.unwrap_err().code(),
        Code::Unknown
    );

    for beating in streams.drain(..3) {
        beating.finish().await.unwrap();
    }
    // Nothing left to rank: the one that is active is better than nobody.
    let found = client
        .list_schedulers(list_schedulers())
        .await
        .unwrap()
        .into_inner()
        .schedulers;
    assert_eq!(
        found
            .iter()
            .map(|it| it.hostname.as_str())
            .collect::<Vec<_>>(),
        ["p"]
    );
    let (_, metrics) = http_get(manager.at.metrics.unwrap(), "/metrics").await;
    let failures = r#"search_scheduler_cluster_failure_total{commit="abcdef",version="1.5.10"}"#;
    assert!(metrics.contains(failures), "{metrics}");
    let listed =
        "grpc_method=\"ListSchedulers\",grpc_service=\"manager.v2.Manager\",grpc_type=\"unary\"";
    let refused =
        format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{listed}}} 1\n");
    assert!(metrics.contains(&refused), "{metrics}");
    manager.stop().await;
}

pub(super) async fn a_seed_peer_of_an_old_client_lives_through_its_day(
    _: &Backend,
    url: DatabaseUrl,
) {
    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    let told = wire::UpdateSeedPeerRequest {
        source_type: 2,
        hostname: "seed-0".to_owned(),
        r#type: "super".to_owned(),
        idc: Some("idc-1".to_owned()),
        location: None,
        ip: "10.0.0.5".to_owned(),
        port: 4000,
        download_port: 4001,
        seed_peer_cluster_id: 1,
    };
    let key = wire::GetSeedPeerRequest {
        source_type: 2,
        hostname: "seed-0".to_owned(),
        seed_peer_cluster_id: 1,
        ip: String::new(),
    };
    let list = wire::ListSeedPeersRequest {
        source_type: 2,
        hostname: "seed-0".to_owned(),
        ip: "10.0.0.5".to_owned(),
        version: String::new(),
        commit: String::new(),
    };
    assert_eq!(
        client.get_seed_peer(key.clone()).await.unwrap_err().code(),
        Code::Internal
    );
    assert_eq!(
        client
            .list_seed_peers(list.clone())
            .await
            .unwrap_err()
            .code(),
        Code::Internal
    );
    let row = client
        .update_seed_peer(told.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (row.state.as_str(), row.r#type.as_str(), row.download_port),
        ("active", "super", 4001)
    );
    assert!(row.seed_peer_cluster.is_none() && row.schedulers.is_empty());

    client
        .update_scheduler(update_scheduler("s"))
        .await
        .unwrap();
    let scheduler = Beating::scheduler(client.clone(), "s");
    scheduler.beat().await;
    eventually("the scheduler is active", || async {
        is_active(&client, "s").await.then_some(())
    })
    .await;
    let found = client
        .get_seed_peer(key.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        found.seed_peer_cluster.unwrap().config,
        br#"{"load_limit":2000}"#
    );
    assert_eq!(found.schedulers.len(), 1);
    assert!(found.schedulers[0].scheduler_cluster.is_none());
    let listed = client
        .list_seed_peers(list.clone())
        .await
        .unwrap()
        .into_inner()
        .seed_peers;
    assert_eq!(
        listed[0].seed_peer_cluster,
        Some(wire::SeedPeerCluster::default())
    );
    // Schedulers and daemons of the linked cluster see it.
    let row = client
        .get_scheduler(get_scheduler("s"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        row.seed_peers[0].seed_peer_cluster.as_ref().unwrap().name,
        "cluster-1"
    );
    let row = client
        .list_schedulers(list_schedulers())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(row.schedulers[0].seed_peers[0].hostname, "seed-0");

    let seed = Beating::open(
        client.clone(),
        SourceType::SeedPeerSource,
        "seed-0",
        "10.0.0.5",
    );
    seed.beat().await;
    seed.finish().await.unwrap();
    assert_eq!(
        client
            .list_seed_peers(list.clone())
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    assert!(
        client
            .get_scheduler(get_scheduler("s"))
            .await
            .unwrap()
            .into_inner()
            .seed_peers
            .is_empty()
    );
    let delete = wire::DeleteSeedPeerRequest {
        source_type: 2,
        hostname: "seed-0".to_owned(),
        seed_peer_cluster_id: 1,
        ip: "10.0.0.5".to_owned(),
    };
    for _ in 0..2 {
        client.delete_seed_peer(delete.clone()).await.unwrap();
    }
    assert_eq!(
        client.get_seed_peer(key).await.unwrap_err().code(),
        Code::Internal
    );
    // Normal peers may keep a stream open; nothing is kept of it.
    let peer = Beating::open(client, SourceType::PeerSource, "node", "");
    peer.beat().await;
    peer.finish().await.unwrap();
    manager.stop().await;
}

pub(super) async fn priorities_of_applications_arrive(_: &Backend, url: DatabaseUrl) {
    let database = open(&url).await;
    insert_application(
        &database,
        "train",
        r#"{"value":3,"urls":[{"regex":"a.*","value":20}]}"#,
    )
    .await;
    insert_application(&database, "valueless", r#"{"urls":[]}"#).await;
    insert_application(&database, "broken", "x").await;
    let manager = TestManager::start(&url).await;
    let mut client = manager.client().await;
    let found = client
        .list_applications(applications_asked())
        .await
        .unwrap()
        .into_inner()
        .applications;
    assert_eq!(found.len(), 2);
    let priority = found[0].priority.as_ref().unwrap();
    assert_eq!(
        (
            found[0].name.as_str(),
            found[0].bio.as_str(),
            priority.value
        ),
        ("train", "about", 3)
    );
    assert_eq!(
        (priority.urls[0].regex.as_str(), priority.urls[0].value),
        ("a.*", 20)
    );
    assert_eq!(found[1].priority.as_ref().unwrap().value, 0);
    manager.stop().await;
}
