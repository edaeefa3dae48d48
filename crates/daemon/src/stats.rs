//! `GET /debug/stats` on the stats port: what this daemon is doing, as JSON, for an operator without Prometheus.
//!
//! The profiles that Dragonfly v2 offers on this port (`/debug/pprof/...`) are not made here and answer 404.

use std::sync::Arc;

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::engine::Engine;
use crate::identity::Identity;
use crate::schedulers::Schedulers;

/// The route; serve it with `runtime::http::spawn`.
pub(crate) fn router(
    identity: Arc<Identity>,
    engine: Engine,
    schedulers: Arc<Schedulers>,
) -> Router {
    Router::new().route(
        "/debug/stats",
        get(move || {
            let (identity, engine, schedulers) =
                (identity.clone(), engine.clone(), schedulers.clone());
            async move { Json(stats(&identity, engine, &schedulers).await) }
        }),
    )
}

async fn stats(identity: &Identity, engine: Engine, schedulers: &Schedulers) -> Value {
    let sessions = engine.sessions();
    let usage = tokio::task::spawn_blocking(move || engine.store().usage());
    let store = match usage.await {
        Ok(Ok(usage)) => json!({
            "tasks": usage.tasks,
            "bytes_used_by_tasks": usage.used_by_tasks,
            "bytes_available": usage.available,
            "bytes_total": usage.total,
        }),
        _ => Value::Null,
    };
    let process = runtime::process::own().unwrap_or_default();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": crate::GIT_COMMIT,
        "host_id": identity.host_id.as_str(),
        "schedulers": schedulers.all().iter().map(|scheduler| scheduler.addr.to_string()).collect::<Vec<_>>(),
        "downloads_in_progress": sessions,
        "store": store,
        "rss_bytes": process.rss_bytes,
        "cpu_seconds": process.cpu.as_secs_f64(),
    })
}
