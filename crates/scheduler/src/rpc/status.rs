//! Which gRPC status each refusal becomes. The table is pinned by a test.

use scheduling::{Refusal, SourceFailure};
use serde::Serialize;
use tonic::{Code, Status};

/// What an origin answered, in the form in which Dragonfly v2 daemons put it into the details of a status: JSON, not a
/// protobuf message (daemon sheet, section 6.3).
#[derive(Serialize)]
struct OriginDetails<'a> {
    message: &'a str,
    header: std::collections::BTreeMap<&'a str, &'a str>,
    status_code: Option<u16>,
}

/// The status for a peer that is not served.
pub(crate) fn of_refusal(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Origin(failure) => {
            Status::with_details(Code::FailedPrecondition, text, details(failure).into())
        }
        _ => Status::new(code(refusal), text),
    }
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::HostUnknown(_) | Refusal::PeerUnknown(_) | Refusal::PeersOnly => Code::NotFound,
        Refusal::PeerTaken(_) => Code::InvalidArgument,
        Refusal::Superseded(_) | Refusal::Deleted(_) => Code::Aborted,
        Refusal::Transition { .. } => Code::Internal,
        Refusal::Forbidden | Refusal::NoParents | Refusal::Origin(_) => Code::FailedPrecondition,
        _ => Code::Unknown,
    }
}

fn details(failure: &SourceFailure) -> Vec<u8> {
    let details = OriginDetails {
        message: &failure.message,
        header: Default::default(),
        status_code: failure.status,
    };
    // Text and a number always serialise.
    serde_json::to_vec(&details).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scheduling::{PeerEvent, PeerState};

    #[test]
    fn every_refusal_has_its_code() {
        let failure = SourceFailure {
            status: Some(404),
            message: "gone".to_owned(),
        };
        let table = [
            (Refusal::HostUnknown("h".parse().unwrap()), Code::NotFound),
            (Refusal::PeerUnknown("p".parse().unwrap()), Code::NotFound),
            (
                Refusal::PeerTaken("p".parse().unwrap()),
                Code::InvalidArgument,
            ),
            (Refusal::Superseded("p".parse().unwrap()), Code::Aborted),
            (Refusal::Deleted("p".parse().unwrap()), Code::Aborted),
            (
                Refusal::Transition {
                    event: PeerEvent::Download,
                    state: PeerState::Failed,
                },
                Code::Internal,
            ),
            (Refusal::Forbidden, Code::FailedPrecondition),
            (Refusal::PeersOnly, Code::NotFound),
            (Refusal::NoParents, Code::FailedPrecondition),
            (Refusal::Origin(failure), Code::FailedPrecondition),
        ];
        for (refusal, code) in table {
            assert_eq!(of_refusal(&refusal).code(), code, "{refusal}");
        }
    }

    #[test]
    fn an_origins_answer_travels_in_the_details() {
        let failure = SourceFailure {
            status: Some(404),
            message: "gone".to_owned(),
        };
        let status = of_refusal(&Refusal::Origin(failure));
        assert_eq!(
            status.details(),
            br#"{"message":"gone","header":{},"status_code":404}"#
        );
    }
}
