//! Small HTTP servers for operators: health and metrics.

use axum::Router;
use tokio::net::TcpListener;

use crate::shutdown::Shutdown;

/// Serves `router` on `listener` until `shutdown` begins, as a task named `name`. Answers that are under way are finished.
pub fn spawn(name: &'static str, listener: TcpListener, router: Router, shutdown: &Shutdown) {
    let part = shutdown.clone();
    shutdown.spawn(name, async move {
        let stop = part.clone();
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(async move { stop.begun().await })
            .await;
        if let Err(error) = served {
            part.fail(name, error);
        }
    });
}
