//! What a daemon tells the tools of its own host beside the services of Dragonfly v2: `dragonfly.local.v1.Local`.

use tonic::{Code, Status};

use crate::connection::call_failed;
use crate::failure::Failure;

/// What the status of such a call means: a v2 daemon does not know it.
pub(crate) fn failed(status: Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::Refused {
            reason: "this daemon is one of Dragonfly v2, which does not tell that".to_owned(),
        },
        _ => call_failed(status),
    }
}
