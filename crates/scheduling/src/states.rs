//! The states of peers and tasks and what leads from one to another: two tables.
//!
//! They are Dragonfly v2's (scheduler sheet, section 3.3) without the states that nothing ever enters (`ReceivedTiny`,
//! `ReceivedSmall`). The names stand on the wire (`common.v2.Peer.state`, `common.v2.Task.state`).

use std::fmt;

/// Where a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerState {
    /// Known, not yet answered.
    Pending,
    /// Was told that the task is empty.
    ReceivedEmpty,
    /// Registered; waits for parents, or was told some and has not begun.
    ReceivedNormal,
    /// Fetches from parents.
    Running,
    /// Fetches from the origin.
    BackToSource,
    /// Has everything it wanted.
    Succeeded,
    /// Gave up.
    Failed,
    /// Is gone; its record is dropped soon.
    Leave,
}

/// What happens to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerEvent {
    /// It registered for an empty task.
    RegisterEmpty,
    /// It registered.
    RegisterNormal,
    /// It began to fetch from parents.
    Download,
    /// It began to fetch from the origin.
    DownloadBackToSource,
    /// It has everything.
    DownloadSucceeded,
    /// It gave up.
    DownloadFailed,
    /// It left, or was given up.
    Leave,
}

use PeerState as P;

/// Which states each event is for, and where it leads.
const PEER_TRANSITIONS: [(PeerEvent, &[PeerState], PeerState); 7] = [
    (PeerEvent::RegisterEmpty, &[P::Pending], P::ReceivedEmpty),
    (PeerEvent::RegisterNormal, &[P::Pending], P::ReceivedNormal),
    (
        PeerEvent::Download,
        &[P::ReceivedEmpty, P::ReceivedNormal],
        P::Running,
    ),
    (
        PeerEvent::DownloadBackToSource,
        &[P::ReceivedEmpty, P::ReceivedNormal, P::Running],
        P::BackToSource,
    ),
    (
        PeerEvent::DownloadSucceeded,
        &[
            P::ReceivedEmpty,
            P::ReceivedNormal,
            P::Running,
            P::BackToSource,
        ],
        P::Succeeded,
    ),
    (
        PeerEvent::DownloadFailed,
        &[
            P::Pending,
            P::ReceivedEmpty,
            P::ReceivedNormal,
            P::Running,
            P::BackToSource,
            P::Succeeded,
        ],
        P::Failed,
    ),
    (
        PeerEvent::Leave,
        &[
            P::Pending,
            P::ReceivedEmpty,
            P::ReceivedNormal,
            P::Running,
            P::BackToSource,
            P::Succeeded,
            P::Failed,
        ],
        P::Leave,
    ),
];

impl PeerState {
    /// The state after `event`, if the event is for this one.
    pub fn after(self, event: PeerEvent) -> Option<Self> {
        let (_, from, to) = PEER_TRANSITIONS.iter().find(|(of, _, _)| *of == event)?;
        from.contains(&self).then_some(*to)
    }

    /// Whether the peer is still at it: it neither ended nor left.
    pub fn is_active(self) -> bool {
        matches!(
            self,
            P::Pending | P::ReceivedEmpty | P::ReceivedNormal | P::Running | P::BackToSource
        )
    }

    /// Whether the peer wants parents.
    pub(crate) fn wants_parents(self) -> bool {
        matches!(self, P::ReceivedNormal | P::Running)
    }

    /// Whether a mesh peer in this state takes part: it holds pieces, or will.
    pub(crate) fn is_joined(self) -> bool {
        matches!(
            self,
            P::ReceivedNormal | P::Running | P::BackToSource | P::Succeeded
        )
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for PeerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Where a task stands. Note that every registration sets it to `Running` again: it does not say whether anybody has the
/// content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// Nobody has registered yet.
    Pending,
    /// Somebody registered.
    Running,
    /// A peer read it whole from the origin.
    Succeeded,
    /// Reading it from the origin failed.
    Failed,
}

/// What happens to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskEvent {
    /// A peer registered.
    Download,
    /// A peer read it whole from the origin.
    DownloadSucceeded,
    /// A peer failed to read it from the origin.
    DownloadFailed,
}

use TaskState as T;

/// As [`PEER_TRANSITIONS`], for tasks. Dragonfly v2's state `Leave` is left out: nothing enters it.
const TASK_TRANSITIONS: [(TaskEvent, &[TaskState], TaskState); 3] = [
    (
        TaskEvent::Download,
        &[T::Pending, T::Succeeded, T::Failed],
        T::Running,
    ),
    (
        TaskEvent::DownloadSucceeded,
        &[T::Running, T::Failed],
        T::Succeeded,
    ),
    (TaskEvent::DownloadFailed, &[T::Running], T::Failed),
];

impl TaskState {
    /// The state after `event`, if the event is for this one.
    pub fn after(self, event: TaskEvent) -> Option<Self> {
        let (_, from, to) = TASK_TRANSITIONS.iter().find(|(of, _, _)| *of == event)?;
        from.contains(&self).then_some(*to)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of state and event; a letter per target, `-` for a refusal. Rows are states, columns events in the order
    /// RegisterEmpty, RegisterNormal, Download, DownloadBackToSource, DownloadSucceeded, DownloadFailed, Leave.
    #[test]
    fn every_pair_of_peer_state_and_event() {
        let rows = [
            (P::Pending, "en---FL"),
            (P::ReceivedEmpty, "--RBSFL"),
            (P::ReceivedNormal, "--RBSFL"),
            (P::Running, "---BSFL"),
            (P::BackToSource, "----SFL"),
            (P::Succeeded, "-----FL"),
            (P::Failed, "------L"),
            (P::Leave, "-------"),
        ];
        let letters = [
            (P::ReceivedEmpty, 'e'),
            (P::ReceivedNormal, 'n'),
            (P::Running, 'R'),
            (P::BackToSource, 'B'),
            (P::Succeeded, 'S'),
            (P::Failed, 'F'),
            (P::Leave, 'L'),
        ];
        for (state, expected) in rows {
            let got: String = PEER_TRANSITIONS
                .iter()
                .map(|(event, _, _)| match state.after(*event) {
                    Some(to) => letters.iter().find(|(of, _)| *of == to).unwrap().1,
                    None => '-',
                })
                .collect();
            assert_eq!(got, expected, "{state}");
        }
    }

    #[test]
    fn every_pair_of_task_state_and_event() {
        let rows = [
            (T::Pending, [Some(T::Running), None, None]),
            (T::Running, [None, Some(T::Succeeded), Some(T::Failed)]),
            (T::Succeeded, [Some(T::Running), None, None]),
            (T::Failed, [Some(T::Running), Some(T::Succeeded), None]),
        ];
        for (state, expected) in rows {
            let got = TASK_TRANSITIONS.map(|(event, _, _)| state.after(event));
            assert_eq!(got, expected, "{state}");
        }
    }

    #[test]
    fn names_are_those_of_the_wire() {
        assert_eq!(P::BackToSource.to_string(), "BackToSource");
        assert_eq!(T::Succeeded.to_string(), "Succeeded");
        assert_eq!(
            PeerEvent::DownloadBackToSource.to_string(),
            "DownloadBackToSource"
        );
    }
}
