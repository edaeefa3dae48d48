//! The gRPC edge: `scheduler.v2.Scheduler`, our `dragonfly.preheat.v1.Preheat`, health and reflection.

mod announce_peer;
mod convert;
mod preheat;
mod present;
mod service;
mod status;
mod validate;

use std::sync::Arc;

use api::preheat::preheat_server::PreheatServer;
use dragonfly_api::scheduler::v2::scheduler_server::SchedulerServer;
use runtime::grpc::{CallCounter, MESSAGE_LEN_MAX, RateLimit};
use runtime::shutdown::Shutdown;
use tonic::service::Routes;

#[cfg(test)]
pub(crate) use announce_peer::MESH_KEY;
pub(crate) use convert::SaidReport;

use crate::parts::Parts;

/// The services of the gRPC port, behind counters of their calls and a rate limit of `rate` calls a second. The limit comes
/// first and counts health and reflection calls and the opening of streams, as in Dragonfly v2.
///
/// # Errors
/// The descriptors do not parse.
pub(crate) fn routes(parts: Arc<Parts>, rate: f64, shutdown: &Shutdown) -> Result<Routes, String> {
    let (_, health) = runtime::grpc::health();
    let descriptors = [
        dragonfly_api::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
    ];
    let services = ["scheduler.v2.Scheduler", "grpc.health.v1.Health"];
    let counter = CallCounter::new(parts.metrics.registry(), &descriptors, &services)
        .map_err(|error| error.to_string())?;
    let reflection = runtime::grpc::reflection(&descriptors).map_err(|error| error.to_string())?;
    let watched = preheat::PreheatService::new(parts.clone(), shutdown.clone());
    let service = service::Service::new(parts, watched.clone(), shutdown.clone());
    let scheduler = SchedulerServer::new(service)
        .max_decoding_message_size(MESSAGE_LEN_MAX)
        .max_encoding_message_size(MESSAGE_LEN_MAX);
    let preheat = PreheatServer::new(watched);
    let routes = Routes::new(scheduler)
        .add_service(preheat)
        .add_service(health)
        .add_service(reflection);
    // What is added last is met first.
    Ok(Routes::from(
        routes
            .into_axum_router()
            .layer(counter)
            .layer(RateLimit::new(rate, 0)),
    ))
}
