//! The decisions of a host in a swarm: which bytes to ask of whom, whom to serve, what to show first.
//!
//! Everything here is pure: no I/O, no clock, no threads. Time is a [`Duration`](std::time::Duration)
//! since an instant that the caller chose, chance is a seeded generator, and the caller carries out the
//! returned actions. The same code therefore runs in the daemon over sockets and in a simulation.
//!
//! A host has three parts to play, and each is a type of its own:
//!
//! - [`Picker`], one per task: as a **child** it turns what neighbours show into requests, moves them
//!   away from parents that stall, and says when the task is complete or starved.
//! - [`Slots`], one per host: as a **parent** it serves a few requests at once, refuses the rest, and
//!   grants a freed slot to the child that has least.
//! - [`Stage`], one per task on a seed: it shows each segment to one child first, so that the seed sends
//!   every byte about once. A plain host shows everything to everybody.
//!
//! [`Batch`] gathers small messages for a few milliseconds, so that announcements cost few frames.
//!
//! All of them are used alike: `handle(now, event)` for everything that happened, then
//! `decide(now, &mut actions)`, then sleep until `next_deadline()` or the next event.
//!
//! ```
//! use std::time::Duration;
//! use protocol::{Bitmap, Geometry};
//! use swarm::{NeighbourId, NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, Shown};
//!
//! let geometry = Geometry::new(8 << 20, 4 << 20)?;
//! let (wanted, held) = (Bitmap::full(2), Bitmap::new(2));
//! let mut picker = Picker::new(&geometry, &wanted, &held, PickerOptions::default(), 7);
//! let (now, neighbour) = (Duration::ZERO, NeighbourId(1));
//! picker.handle(now, PickerEvent::Joined { neighbour, kind: NeighbourKind::Mesh });
//! picker.handle(now, PickerEvent::Shown { neighbour, what: Shown::Everything });
//! let mut actions = Vec::new();
//! picker.decide(now, &mut actions);
//! assert!(matches!(actions[0], PickerAction::Request(request) if request.length == geometry.segment_length()));
//! # Ok::<(), protocol::GeometryError>(())
//! ```
//!
//! What the crate deliberately does not do: it measures nothing itself but what it is told, knows no
//! addresses, and keeps no history beyond the task.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batch;
mod choose;
mod layout;
mod meter;
mod picker;
mod slots;
mod stage;

pub use batch::Batch;
pub use picker::{
    Failure, NeighbourId, NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, Request,
    RequestId, Shown, Suspicion,
};
pub use slots::{ChildId, Slots, SlotsAction, SlotsEvent, Uplink, UploadId};
pub use stage::{ChildKind, Stage, StageAction, StageEvent};
