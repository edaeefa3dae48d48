//! Who gets which parent, who reads the origin, who triggers a seed peer: the decisions of a scheduler.
//!
//! A [`Core`] is told what happens ([`Event`]) and when, and says what to do ([`Action`]). It has no clock, no randomness
//! of its own, no I/O and no async, so that the same code serves gRPC, is tested by properties under any order of events,
//! and can be run over simulated networks. What one daemon tells another about pieces never passes through it.
//!
//! Two kinds of peers are served at once. A **v2** peer gets, as from a Dragonfly v2 scheduler, a short list of parents
//! that can serve it; the graph of these stays acyclic. A **mesh** peer, one of ours, gets neighbours at once, also such as
//! hold nothing yet, and is told of further ones as they come.
//!
//! Nothing polls: a waiting peer is answered when a parent appears, and every wait has a bound. The origin of a task is
//! read by one peer at a time while that one makes progress (see `origin.rs`).
//!
//! One registration goes through `register.rs` (what is known of host, task and peer), `seek.rs` (what to answer),
//! `parents.rs` or `mesh.rs` (from whom to fetch) and `origin.rs` (who reads the origin).
//!
//! ```
//! use scheduling::{Core, Event, Policy};
//! use std::time::Duration;
//!
//! let mut core: Core<(), ()> = Core::new(Policy::default(), 7);
//! assert!(core.handle(Duration::ZERO, Event::Tick).is_empty());
//! assert_eq!(core.next_deadline(), Some(Duration::from_secs(10)));
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arena;
mod core;
mod cost;
mod evaluator;
mod gc;
mod graph;
mod hosts;
mod mesh;
mod message;
mod model;
mod origin;
mod parents;
mod policy;
mod register;
mod report;
mod roster;
mod seek;
mod states;
mod timers;
mod trigger;

pub use arena::Key;
pub use core::Core;
pub use evaluator::{ParentFacts, Site, score};
pub use message::{
    Action, Answer, BackToSourceReason, Event, HostAnnouncement, Lengths, OriginWish, Priority,
    Refusal, Registration, Report, SourceFailure, StreamId, TriggerFailure,
};
pub use model::{
    Host, HostKey, Peer, PeerKey, PieceRecord, SizeScope, Task, TaskKey, Time, Uploads,
};
pub use policy::Policy;
pub use states::{PeerEvent, PeerState, TaskEvent, TaskState};

#[cfg(test)]
mod tests;
