//! Prometheus metrics: one registry per service, and its endpoint.
//!
//! A registry belongs to a service instance, not to the process, so that several services in one process do not mix their
//! figures. The names are the services' own; here is only the form.

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, TextEncoder};

pub use prometheus::{
    Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// A registry that already has the process's own figures (`process_resident_memory_bytes`, `process_cpu_seconds_total`,
/// `process_open_fds`, ...).
pub fn registry() -> Registry {
    let registry = Registry::new();
    // An empty registry has nothing that could collide; without /proc the collector reports nothing.
    let _ = registry.register(Box::new(ProcessCollector::for_self()));
    registry
}

/// `GET /metrics`, in Prometheus' text format; everything else is 404. Serve it with [`crate::http::spawn`].
pub fn router(registry: Registry) -> Router {
    Router::new().route(
        "/metrics",
        get(move || std::future::ready(render(&registry))),
    )
}

/// All metrics of `registry` as text.
///
/// # Errors
/// A metric family without a metric, which a registry never gives out.
pub fn text(registry: &Registry) -> Result<String, prometheus::Error> {
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn render(registry: &Registry) -> Response {
    match text(registry) {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                TextEncoder::new().format_type().to_owned(),
            )],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_own_and_process_metrics() {
        let registry = registry();
        let counter = IntCounter::new("example_total", "An example.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(3);
        let text = text(&registry).unwrap();
        assert!(text.contains("\nexample_total 3\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }
}
