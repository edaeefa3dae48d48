use super::*;
use proptest::prelude::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn asked(upload: u64, child: u64, kind: ChildKind) -> SlotsEvent {
    SlotsEvent::Asked {
        upload: UploadId(upload),
        child: ChildId(child),
        kind,
    }
}

fn decide(slots: &mut Slots, now: Duration) -> Vec<SlotsAction> {
    let mut actions = Vec::new();
    slots.decide(now, &mut actions);
    actions
}

/// Six uploads of child 0 are served.
fn full() -> Slots {
    let mut slots = Slots::new();
    (0..6).for_each(|upload| slots.handle(ms(0), asked(upload, 0, ChildKind::Mesh)));
    assert_eq!(decide(&mut slots, ms(0)).len(), 6);
    assert_eq!(slots.free(), 0);
    slots
}

#[test]
fn beyond_the_slots_a_mesh_child_is_refused_and_the_neediest_granted() {
    let mut slots = full();
    for (upload, child, millionths) in [(10, 1, 500), (11, 2, 20), (12, 3, 300)] {
        slots.handle(
            ms(0),
            SlotsEvent::Holds {
                child: ChildId(child),
                millionths,
            },
        );
        slots.handle(ms(0), asked(upload, child, ChildKind::Mesh));
        assert_eq!(
            decide(&mut slots, ms(0)),
            [SlotsAction::Refuse {
                upload: UploadId(upload)
            }]
        );
    }
    slots.handle(
        ms(1),
        SlotsEvent::Ended {
            upload: UploadId(0),
        },
    );
    assert_eq!(
        decide(&mut slots, ms(1)),
        [SlotsAction::Grant { child: ChildId(2) }]
    );
    // Somebody who was not granted does not take the slot that is kept.
    slots.handle(ms(2), asked(20, 4, ChildKind::Mesh));
    assert_eq!(
        decide(&mut slots, ms(2)),
        [SlotsAction::Refuse {
            upload: UploadId(20)
        }]
    );
    slots.handle(ms(3), asked(21, 2, ChildKind::Mesh));
    assert_eq!(
        decide(&mut slots, ms(3)),
        [SlotsAction::Serve {
            upload: UploadId(21)
        }]
    );
}

#[test]
fn a_grant_passes_on_when_declined_or_not_used() {
    let mut slots = full();
    for child in 1..=3 {
        slots.handle(ms(0), asked(10 + child, child, ChildKind::Mesh));
    }
    decide(&mut slots, ms(0));
    slots.handle(
        ms(1),
        SlotsEvent::Ended {
            upload: UploadId(0),
        },
    );
    assert_eq!(
        decide(&mut slots, ms(1)),
        [SlotsAction::Grant { child: ChildId(1) }]
    );
    slots.handle(ms(2), SlotsEvent::Declined { child: ChildId(1) });
    assert_eq!(
        decide(&mut slots, ms(2)),
        [SlotsAction::Grant { child: ChildId(2) }]
    );
    let until = slots.next_deadline().unwrap();
    assert!(until <= ms(302), "{until:?}");
    assert_eq!(
        decide(&mut slots, until),
        [SlotsAction::Grant { child: ChildId(3) }]
    );
}

#[test]
fn an_upload_that_sends_nothing_does_not_hold_its_slot() {
    let mut slots = full();
    slots.handle(ms(0), asked(10, 1, ChildKind::Mesh));
    decide(&mut slots, ms(0));
    for upload in 1..6 {
        slots.handle(
            ms(200),
            SlotsEvent::Sent {
                upload: UploadId(upload),
                bytes: 1,
            },
        );
    }
    assert_eq!(decide(&mut slots, ms(299)), []);
    assert_eq!(
        decide(&mut slots, ms(300)),
        [SlotsAction::Grant { child: ChildId(1) }]
    );
    let mut actions = Vec::new();
    let mut now = ms(300);
    while let Some(next) = slots.next_deadline().filter(|next| *next < ms(12_000)) {
        assert!(next > now);
        now = next;
        actions.extend(decide(&mut slots, now));
    }
    let dropped = actions
        .iter()
        .filter(|action| matches!(action, SlotsAction::Drop { .. }))
        .count();
    assert_eq!(dropped, 6);
}

#[test]
fn v2_requests_wait_and_take_turns_with_the_line() {
    let mut slots = full();
    for upload in 10..14 {
        slots.handle(ms(0), asked(upload, 7, ChildKind::V2));
    }
    for child in 1..=3 {
        slots.handle(ms(0), asked(20 + child, child, ChildKind::Mesh));
    }
    assert_eq!(
        decide(&mut slots, ms(0)).len(),
        3,
        "only the mesh children are answered"
    );
    let mut grants = 0;
    let mut served = 0;
    for upload in 0..4 {
        slots.handle(
            ms(1),
            SlotsEvent::Ended {
                upload: UploadId(upload),
            },
        );
        for action in decide(&mut slots, ms(1)) {
            match action {
                SlotsAction::Grant { .. } => grants += 1,
                SlotsAction::Serve { .. } => served += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(
        (grants, served),
        (3, 1),
        "one v2 child among three others gets its turn"
    );
}

#[test]
fn the_number_follows_the_link() {
    let uplink = |bytes_per_second, round_trip, relative| Uplink {
        bytes_per_second,
        loaded_round_trip: ms(round_trip),
        segment_length: 1 << 20,
        relative,
    };
    let count = |uplink| {
        let mut slots = Slots::new();
        slots.set_uplink(uplink);
        slots.count()
    };
    assert_eq!(count(uplink(0, 0, 1.0)), 6);
    assert_eq!(count(uplink(25_000_000, 2, 1.0)), 4);
    assert_eq!(count(uplink(25_000_000, 30, 1.0)), 9);
    assert_eq!(count(uplink(25_000_000, 500, 1.0)), 12);
    assert_eq!(count(uplink(25_000_000, 500, 5.0)), 24);
    assert_eq!(count(uplink(2_500_000, 2, 0.1)), 1);
    assert_eq!(count(uplink(1, 1, f64::NAN)), 4);
}

#[derive(Clone, Debug)]
enum Op {
    Ask(u64, bool),
    End(usize),
    Sent(usize),
    Decline(u64),
    Leave(u64),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u64..8, any::<bool>()).prop_map(|(child, v2)| Op::Ask(child, v2)),
        3 => any::<usize>().prop_map(Op::End),
        2 => any::<usize>().prop_map(Op::Sent),
        1 => (0u64..8).prop_map(Op::Decline),
        1 => (0u64..8).prop_map(Op::Leave),
        2 => (0u64..500).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Every request has one answer, a mesh child's at once; never more is served than there are slots,
    /// but for uploads that were idle; and nobody waits beside a free slot.
    #[test]
    fn any_order_of_events_is_answered(ops in prop::collection::vec(op(), 0..200)) {
        let mut slots = Slots::new();
        let (mut now, mut next, mut bytes) = (ms(0), 0u64, 0u64);
        let mut serving: Vec<(u64, u64)> = Vec::new();
        let mut waiting: Vec<(u64, u64)> = Vec::new();
        for op in ops {
            let mut refusable = None;
            match op {
                Op::Ask(child, v2) => {
                    // A child is of one kind for its life.
                    let kind = if child % 2 == 0 || !v2 && child > 4 { ChildKind::Mesh } else { ChildKind::V2 };
                    let child = if kind == ChildKind::V2 { child + 100 } else { child };
                    slots.handle(now, asked(next, child, kind));
                    if kind == ChildKind::Mesh { refusable = Some(next) }
                    waiting.push((next, child));
                    next += 1;
                }
                Op::End(at) if !serving.is_empty() => {
                    let (upload, _) = serving.swap_remove(at % serving.len());
                    slots.handle(now, SlotsEvent::Ended { upload: UploadId(upload) });
                }
                Op::Sent(at) if !serving.is_empty() => {
                    bytes += 1;
                    slots.handle(now, SlotsEvent::Sent { upload: UploadId(serving[at % serving.len()].0), bytes });
                }
                Op::Decline(child) => slots.handle(now, SlotsEvent::Declined { child: ChildId(child) }),
                Op::Leave(child) => {
                    let child = if child % 2 == 1 { child + 100 } else { child };
                    slots.handle(now, SlotsEvent::Left { child: ChildId(child) });
                    serving.retain(|(_, other)| *other != child);
                    waiting.retain(|(_, other)| *other != child);
                }
                Op::Pass(time) => now += ms(time),
                Op::End(_) | Op::Sent(_) => {}
            }
            let mut answered = None;
            for action in decide(&mut slots, now) {
                match action {
                    SlotsAction::Serve { upload } => {
                        let at = waiting.iter().position(|(id, _)| *id == upload.0).expect("served once");
                        serving.push(waiting.swap_remove(at));
                        answered = Some(upload.0).filter(|id| Some(*id) == refusable).or(answered);
                    }
                    SlotsAction::Refuse { upload } => {
                        prop_assert_eq!(Some(upload.0), refusable);
                        waiting.retain(|(id, _)| *id != upload.0);
                        answered = Some(upload.0);
                    }
                    SlotsAction::Drop { upload } => serving.retain(|(id, _)| *id != upload.0),
                    SlotsAction::Grant { .. } => {}
                }
            }
            prop_assert_eq!(answered, refusable, "a mesh child is answered at once");
            prop_assert!(slots.free() == 0 || (waiting.is_empty() && slots.line.is_empty()));
            let counted = slots.uploads.iter().filter(|upload| !upload.idle).count() + slots.grants.len();
            let revived = slots.uploads.iter().filter(|upload| upload.sent > 0).count();
            prop_assert!(counted <= slots.count() as usize + revived);
            prop_assert_eq!(slots.uploads.len(), serving.len());
        }
    }
}
