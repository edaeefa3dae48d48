use super::*;
use protocol::SegmentIndex;

const KIB: u64 = 1 << 10;
/// Four segments.
const PIECE: u64 = 1024 * KIB;
const SEGMENT: u64 = 256 * KIB;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A picker of `pieces` pieces, and what it last said.
struct Bench {
    picker: Picker,
    now: Duration,
}

impl Bench {
    fn new(pieces: u32) -> Self {
        let geometry = Geometry::new(u64::from(pieces) * PIECE, PIECE).unwrap();
        assert_eq!(geometry.segment_length(), SEGMENT);
        let (wanted, held) = (Bitmap::full(pieces), Bitmap::new(pieces));
        let picker = Picker::new(&geometry, &wanted, &held, PickerOptions::default(), 1);
        Self {
            picker,
            now: Duration::ZERO,
        }
    }

    fn tell(&mut self, event: PickerEvent) -> &mut Self {
        self.picker.handle(self.now, event);
        self
    }

    fn join(&mut self, id: u32, kind: NeighbourKind, what: Shown) -> &mut Self {
        let neighbour = NeighbourId(id);
        self.tell(PickerEvent::Joined { neighbour, kind });
        self.tell(PickerEvent::Shown { neighbour, what })
    }

    fn mesh(&mut self, id: u32, what: Shown) -> &mut Self {
        self.join(id, NeighbourKind::Mesh, what)
    }

    fn show(&mut self, id: u32, what: Shown) -> &mut Self {
        self.tell(PickerEvent::Shown {
            neighbour: NeighbourId(id),
            what,
        })
    }

    fn fail(&mut self, request: Request, failure: Failure, received: u64) -> &mut Self {
        self.tell(PickerEvent::Failed {
            request: request.id,
            failure,
            received,
        })
    }

    fn at(&mut self, now: Duration) -> &mut Self {
        self.now = now;
        self
    }

    fn decide(&mut self) -> Vec<PickerAction> {
        let mut actions = Vec::new();
        self.picker.decide(self.now, &mut actions);
        actions
    }

    fn requests(&mut self) -> Vec<Request> {
        requests(&self.decide())
    }

    /// Runs the clock to `until`, deciding at every deadline and letting `busy` requests trickle.
    fn pass(&mut self, until: Duration) -> Vec<PickerAction> {
        let mut actions = self.decide();
        while let Some(next) = self.picker.next_deadline().filter(|next| *next <= until) {
            assert!(next > self.now, "a deadline in the past");
            self.now = next;
            actions.extend(self.decide());
        }
        self.now = until;
        actions
    }
}

fn requests(actions: &[PickerAction]) -> Vec<Request> {
    let request = |action: &PickerAction| match action {
        PickerAction::Request(request) => Some(*request),
        _ => None,
    };
    actions.iter().filter_map(request).collect()
}

fn segments(requests: &[Request]) -> Vec<u32> {
    let segment =
        |request: &Request| request.piece.0 * 4 + u32::try_from(request.offset / SEGMENT).unwrap();
    let mut segments: Vec<u32> = requests.iter().map(segment).collect();
    segments.sort_unstable();
    segments
}

#[test]
fn six_at_a_lone_parent_and_two_at_each_of_many() {
    let mut bench = Bench::new(10);
    assert_eq!(bench.mesh(1, Shown::Everything).requests().len(), 6);
    let mut bench = Bench::new(10);
    (1..=4).for_each(|id| {
        bench.mesh(id, Shown::Everything);
    });
    let requests = bench.requests();
    assert_eq!(requests.len(), 6);
    for id in 1..=4 {
        assert!(
            requests
                .iter()
                .filter(|request| request.neighbour == NeighbourId(id))
                .count()
                <= 2
        );
    }
}

#[test]
fn the_rarest_comes_first_within_the_window() {
    let mut bench = Bench::new(10);
    bench
        .mesh(1, Shown::Everything)
        .mesh(2, Shown::Held(PieceNumber(0)))
        .mesh(3, Shown::Held(PieceNumber(0)));
    bench.show(3, Shown::Held(PieceNumber(1)));
    let asked = bench.requests();
    let of_first: Vec<Request> = asked
        .into_iter()
        .filter(|r| r.neighbour == NeighbourId(1))
        .collect();
    assert!(
        segments(&of_first)
            .iter()
            .all(|segment| (8..24).contains(segment)),
        "{of_first:?}"
    );
}

#[test]
fn a_reader_is_served_in_order() {
    let mut bench = Bench::new(10);
    bench.tell(PickerEvent::ReaderAt {
        segment: Some(SegmentIndex(13)),
    });
    let asked = bench.mesh(1, Shown::Everything).requests();
    assert_eq!(segments(&asked)[..4], [13, 14, 15, 16]);
    assert!(
        segments(&asked)
            .iter()
            .all(|segment| (13..37).contains(segment))
    );
}

#[test]
fn who_refused_is_asked_again_only_after_a_grant() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Everything).requests();
    assert_eq!(asked.len(), 4);
    for request in &asked[1..] {
        bench.fail(*request, Failure::Refused, 0);
    }
    assert_eq!(bench.at(ms(50)).requests(), []);
    let granted = bench
        .tell(PickerEvent::Granted {
            neighbour: NeighbourId(1),
        })
        .requests();
    assert!(!granted.is_empty());
    for request in bench
        .picker
        .live
        .iter()
        .map(|live| live.id)
        .collect::<Vec<_>>()
    {
        bench.tell(PickerEvent::Finished { request });
    }
    for request in bench.requests() {
        bench.tell(PickerEvent::Finished {
            request: request.id,
        });
    }
    bench.tell(PickerEvent::Granted {
        neighbour: NeighbourId(1),
    });
    assert_eq!(
        bench.decide(),
        [PickerAction::Decline {
            neighbour: NeighbourId(1)
        }]
    );
}

#[test]
fn a_line_that_never_moves_is_left() {
    let mut bench = Bench::new(1);
    for request in bench.mesh(1, Shown::Everything).requests() {
        bench.fail(request, Failure::Refused, 0);
    }
    assert_eq!(requests(&bench.pass(ms(1900))), []);
    assert!(!requests(&bench.pass(ms(2100))).is_empty());
}

#[test]
fn a_parent_that_waits_for_bytes_itself_is_not_frozen() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Everything).requests();
    for round in 1..=15 {
        bench.tell(PickerEvent::Alive {
            neighbour: NeighbourId(1),
        });
        let actions = bench.pass(ms(300 * round));
        let suspected = |action: &PickerAction| matches!(action, PickerAction::Suspect { .. });
        assert!(!actions.iter().any(suspected), "{actions:?}");
    }
    // Whoever holds it is asked all the same, and is frozen when there is no word of it either.
    bench.mesh(2, Shown::Held(PieceNumber(0)));
    bench.tell(PickerEvent::Alive {
        neighbour: NeighbourId(1),
    });
    let actions = bench.pass(ms(5400));
    let elsewhere = requests(&actions)
        .into_iter()
        .filter(|request| request.neighbour == NeighbourId(2));
    assert_eq!(segments(&elsewhere.collect::<Vec<_>>()), segments(&asked));
    let frozen = PickerAction::Suspect {
        neighbour: NeighbourId(2),
        why: Suspicion::Frozen,
    };
    assert!(bench.pass(ms(6800)).contains(&frozen));
}

#[test]
fn a_frozen_parent_costs_a_second_and_loses_nothing() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Everything).requests();
    bench.tell(PickerEvent::Progress {
        request: asked[0].id,
        received: 1000,
    });
    bench.mesh(2, Shown::Held(PieceNumber(0)));
    let frozen = PickerAction::Suspect {
        neighbour: NeighbourId(1),
        why: Suspicion::Frozen,
    };
    let actions = bench.pass(ms(1200));
    assert!(actions.contains(&frozen), "{actions:?}");
    let again = requests(&actions);
    assert_eq!(segments(&again), [0, 1, 2, 3]);
    assert!(
        again
            .iter()
            .all(|request| request.neighbour == NeighbourId(2))
    );
    let resumed = again
        .iter()
        .find(|request| request.offset / SEGMENT == asked[0].offset / SEGMENT)
        .unwrap();
    assert_eq!(
        (resumed.offset, resumed.length),
        (asked[0].offset + 1000, SEGMENT - 1000)
    );
    assert_eq!(
        actions
            .iter()
            .filter(|action| matches!(action, PickerAction::Cancel { .. }))
            .count(),
        4
    );
}

#[test]
fn a_lone_frozen_parent_may_wake_up() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Everything).requests();
    let actions = bench.pass(ms(1500));
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, PickerAction::Starved { .. })),
        "{actions:?}"
    );
    assert_eq!(requests(&actions), []);
    for request in &asked {
        bench.tell(PickerEvent::Progress {
            request: request.id,
            received: 10,
        });
    }
    assert_eq!(bench.requests(), [], "the old requests count again");
    for request in &asked {
        bench.tell(PickerEvent::Finished {
            request: request.id,
        });
    }
    bench.tell(PickerEvent::PieceHeld {
        piece: PieceNumber(0),
    });
    assert_eq!(bench.decide(), [PickerAction::Complete]);
    assert_eq!(bench.picker.next_deadline(), None);
}

#[test]
fn a_relay_that_is_not_ahead_is_asked_later() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Arriving(SegmentIndex(2))).requests();
    assert_eq!(segments(&asked), [2]);
    bench.fail(asked[0], Failure::NotAhead, 0);
    assert_eq!(requests(&bench.pass(ms(300))), []);
    assert_eq!(segments(&requests(&bench.pass(ms(500)))), [2]);
}

#[test]
fn what_is_not_found_is_not_asked_again() {
    let mut bench = Bench::new(1);
    for request in bench.mesh(1, Shown::Everything).requests() {
        bench.fail(request, Failure::NotFound, 0);
    }
    assert_eq!(requests(&bench.pass(ms(60_000))), []);
}

#[test]
fn wrong_bytes_name_their_sender() {
    let mut bench = Bench::new(1);
    for request in bench.mesh(1, Shown::Everything).requests() {
        bench.tell(PickerEvent::Finished {
            request: request.id,
        });
    }
    let piece = PieceNumber(0);
    assert_eq!(bench.picker.senders(piece), [NeighbourId(1)]);
    let actions = bench.tell(PickerEvent::PieceDropped { piece }).decide();
    assert_eq!(
        actions[0],
        PickerAction::Suspect {
            neighbour: NeighbourId(1),
            why: Suspicion::BadData
        }
    );
    assert_eq!(requests(&actions), []);
    assert_eq!(
        segments(&bench.mesh(2, Shown::Everything).requests()),
        [0, 1, 2, 3]
    );
}

#[test]
fn after_wrong_bytes_of_several_one_sends_all() {
    let mut bench = Bench::new(1);
    for request in bench
        .mesh(1, Shown::Everything)
        .mesh(2, Shown::Everything)
        .requests()
    {
        bench.tell(PickerEvent::Finished {
            request: request.id,
        });
    }
    let piece = PieceNumber(0);
    assert_eq!(bench.picker.senders(piece).len(), 2);
    let mut asked = bench.tell(PickerEvent::PieceDropped { piece }).requests();
    let first = asked[0].neighbour;
    while !asked.is_empty() {
        assert!(asked.iter().all(|request| request.neighbour == first));
        for request in asked {
            bench.tell(PickerEvent::Finished {
                request: request.id,
            });
        }
        asked = bench.requests();
    }
    assert_eq!(bench.picker.stored_prefix(piece), PIECE);
}

#[test]
fn v2_parents_send_whole_pieces_two_each_or_eight_alone() {
    let mut bench = Bench::new(30);
    let asked = bench
        .join(1, NeighbourKind::V2, Shown::Everything)
        .requests();
    assert_eq!(asked.len(), 8);
    assert!(
        asked
            .iter()
            .all(|request| (request.offset, request.length) == (0, PIECE))
    );
    let mut bench = Bench::new(30);
    (1..=3).for_each(|id| {
        bench.join(id, NeighbourKind::V2, Shown::Everything);
    });
    assert_eq!(bench.requests().len(), 6);
}

#[test]
fn a_piece_begun_by_the_mesh_is_completed_by_v2_when_the_mesh_cannot() {
    let mut bench = Bench::new(1);
    let asked = bench.mesh(1, Shown::Arriving(SegmentIndex(0))).requests();
    bench.tell(PickerEvent::Progress {
        request: asked[0].id,
        received: 100,
    });
    bench.join(2, NeighbourKind::V2, Shown::Everything);
    assert_eq!(bench.requests(), []);
    bench.tell(PickerEvent::Left {
        neighbour: NeighbourId(1),
    });
    let asked = bench.requests();
    assert_eq!(
        (asked[0].neighbour, asked[0].offset, asked[0].length),
        (NeighbourId(2), 0, PIECE)
    );
}

#[test]
fn a_second_parent_overtakes_and_the_first_is_cancelled() {
    let mut bench = Bench::new(4);
    let asked = bench.mesh(1, Shown::Everything).requests();
    let slow = asked[0];
    // Everything but one request comes at once; that one crawls.
    for request in &asked[1..] {
        bench.at(bench.now + ms(20)).tell(PickerEvent::Finished {
            request: request.id,
        });
    }
    let mut hedge = None;
    bench.mesh(2, Shown::Everything);
    for step in 1..=60u64 {
        let now = ms(120 + step * 50);
        bench.at(now).tell(PickerEvent::Progress {
            request: slow.id,
            received: step * 100,
        });
        for request in bench.requests() {
            if request.piece == slow.piece && request.offset / SEGMENT == slow.offset / SEGMENT {
                hedge = Some(request);
            } else {
                bench.tell(PickerEvent::Finished {
                    request: request.id,
                });
            }
        }
        if hedge.is_some() {
            break;
        }
    }
    let hedge = hedge.expect("the crawling segment is asked of the second parent");
    assert_eq!(hedge.neighbour, NeighbourId(2));
    assert_eq!(hedge.offset % SEGMENT % 100, 0);
    bench.tell(PickerEvent::Progress {
        request: hedge.id,
        received: 50_000,
    });
    assert!(
        bench
            .decide()
            .contains(&PickerAction::Cancel { request: slow.id })
    );
}

#[test]
fn what_the_origin_reads_is_not_asked() {
    let mut bench = Bench::new(1);
    bench.tell(PickerEvent::OriginTook { segments: 0..3 });
    assert_eq!(segments(&bench.mesh(1, Shown::Everything).requests()), [3]);
    bench.tell(PickerEvent::Stored {
        segment: SegmentIndex(0),
        length: SEGMENT,
    });
    bench.tell(PickerEvent::Stored {
        segment: SegmentIndex(1),
        length: 77,
    });
    bench.tell(PickerEvent::OriginReleased { segments: 0..3 });
    let asked = bench.requests();
    assert_eq!(segments(&asked), [1, 2]);
    assert!(asked.iter().any(|request| request.offset == SEGMENT + 77));
}

#[test]
fn starvation_is_told_once_a_second_and_ends() {
    let mut bench = Bench::new(1);
    let count = |actions: &[PickerAction]| {
        actions
            .iter()
            .filter(|action| matches!(action, PickerAction::Starved { since } if *since == ms(0)))
            .count()
    };
    let actions = bench.pass(ms(2500));
    assert_eq!(count(&actions), 3);
    assert_eq!(count(&bench.mesh(1, Shown::Everything).decide()), 0);
    assert_eq!(count(&bench.pass(ms(2600))), 0);
}

#[test]
fn more_may_be_wanted_after_the_end() {
    let geometry = Geometry::new(2 * PIECE, PIECE).unwrap();
    let mut first = Bitmap::new(2);
    first.set(0);
    let picker = Picker::new(&geometry, &first, &first, PickerOptions::default(), 1);
    let mut bench = Bench {
        picker,
        now: Duration::ZERO,
    };
    assert_eq!(bench.decide(), [PickerAction::Complete]);
    assert_eq!(bench.decide(), []);
    bench
        .mesh(1, Shown::Everything)
        .tell(PickerEvent::WantMore {
            pieces: Bitmap::full(2),
        });
    assert_eq!(segments(&bench.requests()), [4, 5, 6, 7]);
    bench.tell(PickerEvent::PieceHeld {
        piece: PieceNumber(1),
    });
    let actions = bench.decide();
    assert_eq!(actions.last(), Some(&PickerAction::Complete));
    assert_eq!(actions.len(), 5, "four requests are cancelled: {actions:?}");
}

#[test]
fn a_limit_holds_requests_back_and_nothing_is_lost() {
    let mut bench = Bench::new(4);
    bench.picker.limit_requests(Some(0));
    bench.mesh(1, Shown::Everything);
    bench.join(2, NeighbourKind::V2, Shown::Everything);
    assert_eq!(bench.decide(), []);
    // A slot is not kept for nothing.
    let neighbour = NeighbourId(1);
    bench.tell(PickerEvent::Granted { neighbour });
    assert_eq!(bench.decide(), [PickerAction::Decline { neighbour }]);
    // Held back is not starved.
    assert!(bench.at(ms(5000)).decide().is_empty());

    bench.picker.limit_requests(Some(1));
    let kinds: Vec<u32> = bench.requests().iter().map(|r| r.neighbour.0).collect();
    assert_eq!(kinds, [1, 2], "one at each kind of neighbour");
    assert_eq!(bench.requests(), []);
    bench.picker.limit_requests(None);
    assert!(bench.requests().len() > 4);
}
