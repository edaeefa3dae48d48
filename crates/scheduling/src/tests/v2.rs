//! v2 peers, as a Dragonfly v2 client drives them (scheduler sheet, section 2.8).

use protocol::HostRole;

use super::world::{Heard, NOTHING, ORIGIN, World, host_id, ms, parents, peer_id, refused};
use crate::{Event, OriginWish, PeerState, Policy, Priority, Refusal, Report, TaskState};

fn task_state(world: &World) -> TaskState {
    world
        .core
        .find_task(&super::world::TASK.parse().unwrap())
        .unwrap()
        .state
}

/// `name` reads the origin.
fn read_origin(world: &mut World, name: &str) {
    world.v2(name);
    world.report(name, Report::BackToSourceStarted);
}

#[test]
fn the_first_peer_reads_the_origin_and_the_next_fetches_from_it() {
    let mut world = World::new();
    assert_eq!(world.v2("a"), ORIGIN);
    assert_eq!(world.v2("b"), NOTHING);
    assert_eq!(world.report("a", Report::BackToSourceStarted), NOTHING);
    assert_eq!(
        world.take("b"),
        parents(&["a"]),
        "answered the moment the parent exists"
    );
    world.report("b", Report::Started);
    assert_eq!(world.state("b"), Some(PeerState::Running));
    world.source_piece("a", 0);
    world.piece("b", "a");
    assert_eq!(
        world.report("a", Report::BackToSourceFinished),
        [Heard::Closed]
    );
    assert_eq!(world.report("b", Report::Finished), [Heard::Closed]);
    assert_eq!(task_state(&world), TaskState::Succeeded);
    let Heard::Parents(offered) = world.v2("c").remove(0) else {
        panic!("c gets parents")
    };
    assert_eq!(offered.len(), 2);
}

#[test]
fn a_running_peer_is_offered_once_it_has_a_parent() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    world.v2("b");
    assert_eq!(world.v2("c"), parents(&["a"]), "b has not begun");
    world.report("b", Report::Started);
    let Heard::Parents(offered) = world.v2("d").remove(0) else {
        panic!("d gets parents")
    };
    assert!(offered.contains(&"b".to_owned()), "{offered:?}");
    world.break_stream("a");
    assert_eq!(
        world.reschedule("b", &["a"]),
        ORIGIN,
        "its parent is gone and it is the first to ask"
    );
    world.report("b", Report::BackToSourceStarted);
    assert_eq!(world.state("b"), Some(PeerState::BackToSource));
    assert_eq!(world.reschedule("c", &["a"]), parents(&["b"]));
}

#[test]
fn an_empty_task_ends_at_once() {
    let mut world = World::new();
    assert_eq!(
        world.register("a", |it| it.lengths.content_length = Some(0)),
        [Heard::Empty]
    );
    world.report("a", Report::Started);
    assert_eq!(world.report("a", Report::Finished), [Heard::Closed]);
}

#[test]
fn an_unknown_length_is_not_an_empty_task() {
    let mut world = World::new();
    assert_eq!(
        world.register("a", |it| it.lengths = crate::Lengths::default()),
        ORIGIN
    );
}

#[test]
fn a_peer_that_has_everything_becomes_a_parent() {
    let mut world = World::new();
    assert_eq!(
        world.register("a", |it| it.metadata_only = true),
        [Heard::Metadata]
    );
    assert_eq!(world.v2("b"), NOTHING, "a is about to serve");
    world.report("a", Report::Started);
    assert_eq!(world.report("a", Report::Finished), [Heard::Closed]);
    assert_eq!(world.take("b"), parents(&["a"]));
    assert_eq!(task_state(&world), TaskState::Running, "as in Dragonfly v2");
}

#[test]
fn a_reschedule_never_offers_the_same_parent_again() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    world.report("a", Report::BackToSourceFinished);
    assert_eq!(world.v2("b"), parents(&["a"]));
    world.report("b", Report::Started);
    let Heard::Parents(first) = world.v2("x").remove(0) else {
        panic!("x gets parents")
    };
    assert_eq!(first.len(), 2, "{first:?}");
    world.report("x", Report::Started);
    assert_eq!(world.reschedule("x", &["a"]), parents(&["b"]));
    assert_eq!(
        world.reschedule("x", &["b"]),
        ORIGIN,
        "nobody else has it and nobody reads"
    );
}

#[test]
fn a_failed_parent_is_blocked_and_counted() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    world.report("a", Report::BackToSourceFinished);
    world.v2("x");
    world.report("x", Report::Started);
    world.report(
        "x",
        Report::PieceFailed {
            parent: peer_id("a"),
        },
    );
    assert_eq!(
        world
            .core
            .find_host(&host_id("a"))
            .unwrap()
            .uploads
            .failed_count,
        1
    );
    assert_eq!(world.reschedule("x", &[]), ORIGIN);
}

#[test]
fn uploads_are_counted_and_taken_back_on_every_way_out() {
    let ways: [fn(&mut World); 6] = [
        |world| drop(world.report("b", Report::Finished)),
        |world| drop(world.report("b", Report::Failed)),
        |world| world.break_stream("b"),
        |world| drop(world.reschedule("b", &["a"])),
        |world| {
            world.event(Event::PeerDeleted {
                peer_id: peer_id("b"),
            })
        },
        |world| {
            world.event(Event::HostLeft {
                host_id: host_id("b"),
            })
        },
    ];
    for way in ways {
        let mut world = World::new();
        read_origin(&mut world, "a");
        world.v2("b");
        world.report("b", Report::Started);
        let uploads = world.core.find_host(&host_id("a")).unwrap().uploads;
        assert_eq!(
            (uploads.concurrent_count, uploads.tx_bandwidth),
            (1, (4 << 20) * 8 * 8)
        );
        assert_eq!(
            (uploads.concurrent_piece_count, uploads.content_length),
            (8, 100 << 20)
        );
        way(&mut world);
        let uploads = world.core.find_host(&host_id("a")).unwrap().uploads;
        assert_eq!(
            (
                uploads.concurrent_count,
                uploads.tx_bandwidth,
                uploads.count
            ),
            (0, 0, 1)
        );
        assert_eq!(
            (uploads.concurrent_piece_count, uploads.content_length),
            (0, 0)
        );
    }
}

#[test]
fn a_host_that_does_not_share_is_nobodys_parent() {
    let mut world = World::new();
    world.announce("a", HostRole::Normal, |host| host.disable_shared = true);
    read_origin(&mut world, "a");
    assert_eq!(world.v2("b"), ORIGIN, "no use in waiting for a");
}

#[test]
fn peers_of_one_host_do_not_serve_each_other() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    let second = world.register("a", |it| it.peer_id = peer_id("a-again"));
    assert_eq!(second, ORIGIN);
}

#[test]
fn unknown_hosts_and_foreign_streams_are_refused() {
    let mut world = World::new();
    let heard = world.register("a", |it| it.host_id = host_id("nobody"));
    assert_eq!(heard, refused(&Refusal::HostUnknown(host_id("nobody"))));
    world.v2("b");
    let stolen = world.register("c", |it| it.peer_id = peer_id("b"));
    assert!(
        stolen.contains(&Heard::Refused(
            Refusal::PeerTaken(peer_id("b")).to_string()
        )),
        "{stolen:?}"
    );
}

#[test]
fn a_message_out_of_turn_fails_the_peer() {
    let mut world = World::new();
    world.v2("a");
    world.report("a", Report::Started);
    world.report("a", Report::BackToSourceStarted);
    let refusal = Refusal::Transition {
        event: crate::PeerEvent::Download,
        state: PeerState::BackToSource,
    };
    assert_eq!(world.report("a", Report::Started), refused(&refusal));
    assert_eq!(world.state("a"), Some(PeerState::Failed));
}

#[test]
fn registering_again_takes_the_place_of_the_first() {
    let mut world = World::new();
    world.v2("a");
    let heard = world.v2("a");
    assert!(heard.contains(&Heard::Origin), "{heard:?}");
    assert_eq!(world.readers(), ["a"]);
    assert_eq!(world.core.peer_count(), 1);
}

#[test]
fn priorities_of_a_first_download() {
    let by_priority = [
        (Priority::Forbidden, refused(&Refusal::Forbidden)),
        (Priority::PeersOnly, refused(&Refusal::PeersOnly)),
        (Priority::OriginFirst, ORIGIN.to_vec()),
        (Priority::SeedFirst, NOTHING.to_vec()),
    ];
    for (priority, expected) in by_priority {
        let mut world = World::new();
        assert_eq!(
            world.register("a", |it| it.effective_priority = priority),
            ORIGIN,
            "without a seed"
        );
        let mut world = World::new();
        world.seed("s");
        assert_eq!(
            world.register("a", |it| it.effective_priority = priority),
            expected,
            "{priority:?}"
        );
        assert_eq!(
            world.triggered.len(),
            usize::from(priority == Priority::SeedFirst)
        );
    }
}

#[test]
fn a_peer_that_must_not_read_the_origin_is_refused_within_the_bound() {
    let mut world = World::new();
    assert_eq!(
        world.register("a", |it| it.origin = OriginWish::Forbidden),
        NOTHING
    );
    world.pass(ms(2400));
    assert_eq!(world.take("a"), NOTHING);
    world.pass(ms(200));
    assert_eq!(world.take("a"), refused(&Refusal::NoParents));
}

#[test]
fn sweeps_forget_in_the_order_of_the_sheet() {
    let mut world = World::with(
        Policy {
            host_ttl: ms(3_600_000),
            ..Policy::default()
        },
        1,
    );
    read_origin(&mut world, "a");
    world.report("a", Report::Failed);
    assert_eq!(world.state("a"), Some(PeerState::Failed));
    world.pass(ms(10_000));
    assert_eq!(world.state("a"), Some(PeerState::Leave));
    world.pass(ms(10_000));
    assert_eq!(world.state("a"), None);
    assert_eq!(world.core.task_count(), 1);
    // Nobody announced for twice the interval: the host goes; then the task, which nobody has.
    world.pass(ms(31 * 60 * 1000));
    assert!(world.core.find_host(&host_id("a")).is_none());
    assert_eq!(world.core.task_count(), 0);
}

#[test]
fn a_peer_that_stops_reporting_pieces_is_given_up() {
    let mut world = World::new();
    world.announce("a", HostRole::Normal, |host| host.announce_interval = ms(0));
    read_origin(&mut world, "a");
    world.pass(ms(30 * 60 * 1000 + 20_000));
    assert_eq!(world.state("a"), None);
    assert!(
        world
            .take("a")
            .contains(&Heard::Refused(Refusal::Deleted(peer_id("a")).to_string()))
    );
}

#[test]
fn a_leaving_host_takes_its_peers_along() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    world.v2("b");
    world.event(Event::HostLeft {
        host_id: host_id("a"),
    });
    assert_eq!(world.state("a"), None);
    assert!(world.core.find_host(&host_id("a")).is_none());
    world.event(Event::TaskDeleted {
        host_id: host_id("b"),
        task_id: super::world::TASK.parse().unwrap(),
    });
    assert_eq!(world.core.peer_count(), 0);
}

#[test]
fn pieces_beyond_the_task_are_not_recorded() {
    let mut world = World::new();
    read_origin(&mut world, "a");
    world.source_piece("a", 24);
    world.source_piece("a", 25);
    let task = world
        .core
        .find_task(&super::world::TASK.parse().unwrap())
        .unwrap();
    assert_eq!(task.pieces.keys().collect::<Vec<_>>(), [&24]);
}
