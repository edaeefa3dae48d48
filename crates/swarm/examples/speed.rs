//! Prints what a decision of the child costs with 16 neighbours and 1,600 pieces.

use std::time::{Duration, Instant};

use protocol::{Bitmap, Geometry, PieceNumber};
use swarm::{NeighbourId, NeighbourKind, Picker, PickerAction, PickerEvent, PickerOptions, Shown};

const PIECES: u32 = 1600;
const NEIGHBOURS: u32 = 16;

fn main() -> Result<(), protocol::GeometryError> {
    let geometry = Geometry::new(u64::from(PIECES) * (64 << 20), 64 << 20)?;
    let (wanted, held) = (Bitmap::full(PIECES), Bitmap::new(PIECES));
    let mut picker = Picker::new(&geometry, &wanted, &held, PickerOptions::default(), 1);
    let mut now = Duration::ZERO;
    for id in 0..NEIGHBOURS {
        let neighbour = NeighbourId(id);
        picker.handle(
            now,
            PickerEvent::Joined {
                neighbour,
                kind: NeighbourKind::Mesh,
            },
        );
        for piece in (0..PIECES).filter(|piece| (piece + id) % 3 > 0) {
            picker.handle(
                now,
                PickerEvent::Shown {
                    neighbour,
                    what: Shown::Held(PieceNumber(piece)),
                },
            );
        }
    }
    let (mut actions, mut decisions, mut requests) = (Vec::new(), 0u32, 0u32);
    let started = Instant::now();
    while !picker.is_complete() {
        now += Duration::from_millis(1);
        picker.decide(now, &mut actions);
        decisions += 1;
        for action in std::mem::take(&mut actions) {
            if let PickerAction::Request(request) = action {
                requests += 1;
                for received in (0..request.length).step_by(1 << 20) {
                    picker.handle(
                        now,
                        PickerEvent::Progress {
                            request: request.id,
                            received,
                        },
                    );
                    picker.decide(now, &mut actions);
                    decisions += 1;
                }
                picker.handle(
                    now,
                    PickerEvent::Finished {
                        request: request.id,
                    },
                );
                picker.handle(
                    now,
                    PickerEvent::PieceHeld {
                        piece: request.piece,
                    },
                );
            }
        }
    }
    let cost = started.elapsed() / decisions;
    println!("{decisions} decisions with events, {requests} requests: {cost:?} each");
    Ok(())
}
