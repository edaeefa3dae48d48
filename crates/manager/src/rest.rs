//! The REST port. So far it only says that the process lives; console and API get their own modules.

use axum::{Json, Router, routing::get};

/// `GET /healthy`: 200 with the JSON text `"OK"`, as Dragonfly v2 answers. Everything else is 404.
pub(crate) fn router() -> Router {
    Router::new().route("/healthy", get(async || Json("OK")))
}
