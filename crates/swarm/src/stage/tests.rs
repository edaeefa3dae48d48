use super::*;
use proptest::prelude::*;
use protocol::{PieceNumber, SegmentIndex};

const SEGMENT: u64 = 256 << 10;
const PIECES: u32 = 8;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn geometry() -> Geometry {
    let geometry = Geometry::new(u64::from(PIECES) * 4 * SEGMENT, 4 * SEGMENT).unwrap();
    assert_eq!(geometry.segment_length(), SEGMENT);
    geometry
}

fn stage(held: &Bitmap, mesh: u64, v2: u64) -> Stage {
    let mut stage = Stage::new(&geometry(), &Bitmap::full(PIECES), held, 1);
    for child in 0..mesh + v2 {
        let kind = if child < mesh {
            ChildKind::Mesh
        } else {
            ChildKind::V2
        };
        stage.handle(
            ms(0),
            StageEvent::Joined {
                child: ChildId(child),
                kind,
            },
        );
    }
    stage
}

fn decide(stage: &mut Stage, now: Duration) -> Vec<StageAction> {
    let mut actions = Vec::new();
    stage.decide(now, &mut actions);
    actions
}

/// The child serves itself: asks and is served at once. Gives the child and the first segment.
fn serve(stage: &mut Stage, now: Duration, action: StageAction) -> Option<(u64, u32)> {
    let (child, segment) = match action {
        StageAction::ShowSegment { child, segment } => (child, segment.0),
        StageAction::ShowPiece { child, piece } => (child, piece.0 * 4),
        StageAction::Open => return None,
    };
    let (piece, offset) = (PieceNumber(segment / 4), u64::from(segment % 4) * SEGMENT);
    stage.handle(
        now,
        StageEvent::Asked {
            child,
            piece,
            offset,
        },
    );
    stage.handle(
        now,
        StageEvent::Served {
            child,
            piece,
            offset,
        },
    );
    Some((child.0, segment))
}

#[test]
fn each_segment_goes_to_one_child_and_then_all_is_open() {
    let mut stage = stage(&Bitmap::full(PIECES), 4, 0);
    let first = decide(&mut stage, ms(0));
    assert_eq!(first.len(), 6, "as many as there are slots: {first:?}");
    for child in 0..4 {
        let theirs = |action: &&StageAction| matches!(action, StageAction::ShowSegment { child: other, .. } if other.0 == child);
        assert!((1..=2).contains(&first.iter().filter(theirs).count()));
    }
    let (mut shown, mut actions) = (Vec::new(), first);
    while !actions.is_empty() {
        let served: Vec<_> = actions
            .into_iter()
            .filter_map(|action| serve(&mut stage, ms(1), action))
            .collect();
        shown.extend(served);
        actions = decide(&mut stage, ms(1));
    }
    let mut segments: Vec<u32> = shown.iter().map(|(_, segment)| *segment).collect();
    segments.sort_unstable();
    assert_eq!(segments, (0..PIECES * 4).collect::<Vec<_>>());
    assert!(stage.is_open());
}

#[test]
fn what_arrives_is_shown_in_order_and_nothing_else() {
    let mut stage = stage(&Bitmap::new(PIECES), 2, 0);
    assert_eq!(decide(&mut stage, ms(0)), []);
    stage.handle(
        ms(1),
        StageEvent::Arriving {
            segment: SegmentIndex(5),
        },
    );
    let shown = decide(&mut stage, ms(1));
    assert!(
        matches!(
            shown[..],
            [StageAction::ShowSegment {
                segment: SegmentIndex(5),
                ..
            }]
        ),
        "{shown:?}"
    );
    assert!(!stage.is_open());
}

#[test]
fn what_is_not_asked_for_goes_to_another() {
    let mut stage = stage(&Bitmap::new(PIECES), 2, 0);
    stage.handle(
        ms(0),
        StageEvent::Arriving {
            segment: SegmentIndex(0),
        },
    );
    let [StageAction::ShowSegment { child: first, .. }] = decide(&mut stage, ms(0))[..] else {
        panic!()
    };
    assert_eq!(decide(&mut stage, ms(299)), []);
    let again = stage.next_deadline().unwrap();
    assert_eq!(again, ms(300));
    let [StageAction::ShowSegment { child: second, .. }] = decide(&mut stage, again)[..] else {
        panic!()
    };
    assert_ne!(first, second);
}

#[test]
fn what_died_with_a_child_is_given_again() {
    let mut stage = stage(&Bitmap::new(PIECES), 2, 0);
    stage.handle(
        ms(0),
        StageEvent::Arriving {
            segment: SegmentIndex(0),
        },
    );
    let action = decide(&mut stage, ms(0))[0];
    let (first, _) = serve(&mut stage, ms(1), action).unwrap();
    assert_eq!(decide(&mut stage, ms(1)), []);
    stage.handle(
        ms(2),
        StageEvent::Left {
            child: ChildId(first),
        },
    );
    let child = ChildId(1 - first);
    assert_eq!(
        decide(&mut stage, ms(2)),
        [StageAction::ShowSegment {
            child,
            segment: SegmentIndex(0)
        }]
    );
}

#[test]
fn v2_children_see_whole_pieces_and_stay_metered() {
    let mut stage = stage(&Bitmap::new(PIECES), 0, 2);
    for segment in 0..4 {
        stage.handle(
            ms(0),
            StageEvent::Arriving {
                segment: SegmentIndex(segment),
            },
        );
    }
    assert_eq!(decide(&mut stage, ms(0)), []);
    (0..PIECES).for_each(|piece| {
        stage.handle(
            ms(1),
            StageEvent::PieceHeld {
                piece: PieceNumber(piece),
            },
        )
    });
    let mut counts = [0; 2];
    let mut actions = decide(&mut stage, ms(1));
    for _ in 0..100 {
        assert!(stage.outstanding.len() <= 6);
        for action in actions {
            if let Some((child, _)) = serve(&mut stage, ms(1), action) {
                counts[usize::try_from(child).unwrap()] += 1;
            }
        }
        actions = decide(&mut stage, ms(1));
    }
    assert_eq!(
        counts,
        [PIECES, PIECES],
        "in the end each was shown everything once"
    );
}

#[test]
fn an_idle_uplink_repeats_itself() {
    let mut stage = stage(&Bitmap::new(PIECES), 2, 0);
    stage.handle(
        ms(0),
        StageEvent::Arriving {
            segment: SegmentIndex(0),
        },
    );
    let action = decide(&mut stage, ms(0))[0];
    let (first, _) = serve(&mut stage, ms(0), action).unwrap();
    assert_eq!(decide(&mut stage, ms(0)), []);
    let idle = stage.next_deadline().unwrap();
    let child = ChildId(1 - first);
    assert_eq!(
        decide(&mut stage, idle),
        [StageAction::ShowSegment {
            child,
            segment: SegmentIndex(0)
        }]
    );
}

#[derive(Clone, Debug)]
enum Op {
    Join(u64),
    Leave(u64),
    Arrive(u32),
    Hold(u32),
    Drop(u32),
    ChildHolds(u64, u32),
    Serve(usize),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u64..5).prop_map(Op::Join),
        1 => (0u64..5).prop_map(Op::Leave),
        4 => (0..PIECES * 4).prop_map(Op::Arrive),
        3 => (0..PIECES).prop_map(Op::Hold),
        1 => (0..PIECES).prop_map(Op::Drop),
        1 => ((0u64..5), 0..PIECES).prop_map(|(child, piece)| Op::ChildHolds(child, piece)),
        5 => any::<usize>().prop_map(Op::Serve),
        3 => (0u64..700).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Only what is here is shown, only to children that are here, never twice to one; and with all
    /// held and children that answer, everything comes to be shown and the stage opens.
    #[test]
    fn any_order_of_events_opens_in_the_end(ops in prop::collection::vec(op(), 0..120)) {
        let mut stage = stage(&Bitmap::new(PIECES), 0, 0);
        let mut now = ms(0);
        let (mut here, mut held) = (Bitmap::new(PIECES * 4), Bitmap::new(PIECES));
        let mut children: Vec<u64> = Vec::new();
        let mut shown: Vec<StageAction> = Vec::new();
        let last = [Op::Join(0), Op::Join(1), Op::Join(3)];
        let last = last.into_iter().chain((0..PIECES).map(Op::Hold)).chain((0..400).flat_map(|_| [Op::Serve(0), Op::Pass(20)]));
        for op in ops.into_iter().chain(last) {
            match op {
                Op::Join(child) => {
                    let kind = if child < 3 { ChildKind::Mesh } else { ChildKind::V2 };
                    stage.handle(now, StageEvent::Joined { child: ChildId(child), kind });
                    if !children.contains(&child) { children.push(child) }
                }
                Op::Leave(child) => {
                    stage.handle(now, StageEvent::Left { child: ChildId(child) });
                    children.retain(|other| *other != child);
                    shown.retain(|action| !format!("{action:?}").contains(&format!("ChildId({child})")));
                }
                Op::Arrive(segment) => {
                    here.set(segment);
                    stage.handle(now, StageEvent::Arriving { segment: SegmentIndex(segment) });
                }
                Op::Hold(piece) => {
                    held.set(piece);
                    (piece * 4..piece * 4 + 4).for_each(|segment| { here.set(segment); });
                    stage.handle(now, StageEvent::PieceHeld { piece: PieceNumber(piece) });
                }
                Op::Drop(piece) => {
                    held.clear(piece);
                    (piece * 4..piece * 4 + 4).for_each(|segment| { here.clear(segment); });
                    stage.handle(now, StageEvent::PieceDropped { piece: PieceNumber(piece) });
                    shown.clear();
                }
                Op::ChildHolds(child, piece) => {
                    let what = Shown::Held(PieceNumber(piece));
                    stage.handle(now, StageEvent::ChildShows { child: ChildId(child), what });
                }
                Op::Serve(at) if !shown.is_empty() => {
                    let at = shown.len() - 1 - at % shown.len();
                    serve(&mut stage, now, shown[at]);
                }
                Op::Serve(_) => {}
                Op::Pass(time) => now += ms(time),
            }
            for action in decide(&mut stage, now) {
                let child = match action {
                    StageAction::ShowSegment { child, segment } => {
                        prop_assert!(here.get(segment.0));
                        prop_assert!(child.0 < 3);
                        child
                    }
                    StageAction::ShowPiece { child, piece } => {
                        prop_assert!(held.get(piece.0));
                        prop_assert!(child.0 >= 3);
                        child
                    }
                    StageAction::Open => continue,
                };
                prop_assert!(children.contains(&child.0));
                prop_assert!(!shown.contains(&action), "shown twice: {:?}", action);
                shown.push(action);
            }
            prop_assert!(stage.next_deadline().is_none_or(|next| next > now));
        }
        prop_assert!(stage.is_open());
    }
}
