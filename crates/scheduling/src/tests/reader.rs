//! Who reads the origin, and who is next.

use super::world::{Heard, NOTHING, ORIGIN, World, host_id, ms, parents};
use crate::{Event, OriginWish, Report, SourceFailure, TriggerFailure};

/// A way to lose the reader `a`, and what it is called.
type Loss = (&'static str, fn(&mut World));

#[test]
fn a_seed_is_asked_and_the_others_wait_for_it() {
    let mut world = World::new();
    world.seed("s");
    assert_eq!(world.v2("a"), NOTHING);
    assert_eq!(world.v2("b"), NOTHING);
    assert_eq!(world.triggered, ["s"]);
    assert_eq!(
        world.register("s", |it| it.origin = OriginWish::Wanted),
        ORIGIN
    );
    world.report("s", Report::BackToSourceStarted);
    assert_eq!(
        (world.take("a"), world.take("b")),
        (parents(&["s"]), parents(&["s"]))
    );
}

#[test]
fn a_seed_that_does_not_come_is_replaced_by_a_peer_and_then_fetches_from_it() {
    let mut world = World::new();
    world.seed("s");
    world.v2("a");
    world.v2("b");
    world.pass(ms(1900));
    assert_eq!(world.take("a"), NOTHING);
    world.pass(ms(200));
    assert_eq!(
        (world.take("a"), world.take("b")),
        (ORIGIN.to_vec(), NOTHING.to_vec())
    );
    world.report("a", Report::BackToSourceStarted);
    assert_eq!(world.take("b"), parents(&["a"]));
    assert_eq!(
        world.register("s", |it| it.origin = OriginWish::Wanted),
        parents(&["a"]),
        "it comes too late"
    );
    assert_eq!(world.readers(), ["a"]);
}

#[test]
fn a_seed_that_refuses_is_replaced_by_another_seed_at_once() {
    let mut world = World::new();
    world.seed("s");
    world.host("t", protocol::HostRole::Seed);
    world.event(Event::SeedsAvailable(vec![host_id("s"), host_id("t")]));
    world.v2("a");
    let first = world.triggered[0].clone();
    world.end_trigger(&first, Err(TriggerFailure::Seed));
    assert_eq!(world.triggered.len(), 2);
    let second = world.triggered[1].clone();
    assert_ne!(first, second);
    world.end_trigger(&second, Err(TriggerFailure::Seed));
    assert_eq!(world.take("a"), ORIGIN, "no seed is left");
}

#[test]
fn a_seed_that_fetches_without_registering_does_not_hold_anybody_up() {
    let mut world = World::new();
    world.seed("s");
    world.v2("a");
    world.end_trigger("s", Ok(()));
    assert_eq!(world.take("a"), ORIGIN);
}

#[test]
fn a_seed_that_leaves_is_not_waited_for() {
    let mut world = World::new();
    world.seed("s");
    world.v2("a");
    world.event(Event::HostLeft {
        host_id: host_id("s"),
    });
    assert_eq!(world.take("a"), ORIGIN);
}

#[test]
fn a_missing_file_is_told_to_everybody_at_once() {
    let mut world = World::new();
    world.v2("a");
    world.report("a", Report::BackToSourceStarted);
    world.register("m", |it| it.mesh = true);
    world.break_stream("a");
    assert_eq!(world.take("m").last(), Some(&Heard::Origin));
    world.v2("b");
    world.mesh("n");
    let closed = world.origin_fails("m", 404);
    assert_eq!(closed, [Heard::Closed]);
    let refusal = Heard::Refused("the origin failed: status 404".to_owned());
    assert_eq!(world.take("b"), std::slice::from_ref(&refusal));
    assert_eq!(world.take("n").last(), Some(&refusal));
    world.pass(ms(1));
    assert_eq!(
        world.v2("later"),
        ORIGIN,
        "somebody who asks afterwards finds out anew"
    );
}

#[test]
fn a_seed_that_finds_no_file_tells_everybody() {
    let mut world = World::new();
    world.seed("s");
    world.v2("a");
    let failure = SourceFailure {
        status: Some(404),
        message: "status 404".to_owned(),
    };
    world.end_trigger("s", Err(TriggerFailure::Origin(failure)));
    assert_eq!(
        world.take("a"),
        [Heard::Refused("the origin failed: status 404".to_owned())]
    );
}

#[test]
fn bad_credentials_concern_only_those_who_have_them() {
    let mut world = World::new();
    world.register("a", |it| it.credentials = 1);
    world.register("b", |it| it.credentials = 1);
    world.register("c", |it| it.credentials = 2);
    world.origin_fails("a", 401);
    assert!(matches!(world.take("b").as_slice(), [Heard::Refused(_)]));
    assert_eq!(world.take("c"), ORIGIN);
}

#[test]
fn an_origin_that_is_down_is_tried_three_times_in_all() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d", "e"] {
        world.v2(name);
    }
    for (reader, next) in [("a", "b"), ("b", "c")] {
        world.origin_fails(reader, 503);
        assert_eq!(world.take(next), ORIGIN, "after {reader}");
    }
    world.origin_fails("c", 503);
    for name in ["d", "e"] {
        assert!(
            matches!(world.take(name).as_slice(), [Heard::Refused(_)]),
            "{name}"
        );
    }
}

#[test]
fn exactly_one_next_reader_follows_each_kind_of_loss() {
    let losses: [Loss; 5] = [
        ("fails", |world| drop(world.origin_fails("a", 500))),
        ("gives up", |world| drop(world.report("a", Report::Failed))),
        ("loses its stream", |world| world.break_stream("a")),
        ("leaves with its host", |world| {
            world.event(Event::HostLeft {
                host_id: host_id("a"),
            })
        }),
        ("does not begin", |world| world.pass(ms(1600))),
    ];
    for (what, loss) in losses {
        let mut world = World::new();
        for name in ["a", "b", "c", "d"] {
            world.v2(name);
        }
        loss(&mut world);
        let appointed = ["b", "c", "d"]
            .iter()
            .filter(|name| world.take(name) == ORIGIN)
            .count();
        assert_eq!(appointed, 1, "{what}");
    }
}

#[test]
fn a_silent_reader_is_replaced_when_somebody_complains() {
    let mut world = World::new();
    world.v2("a");
    world.v2("b");
    world.report("a", Report::BackToSourceStarted);
    world.source_piece("a", 0);
    world.report("b", Report::Started);
    world.pass(ms(1000));
    assert_eq!(world.reschedule("b", &["a"]), ORIGIN);
    assert_eq!(world.v2("c"), NOTHING, "a is silent, b is about to begin");
}

#[test]
fn a_reader_that_goes_on_is_not_replaced_by_a_complaint() {
    let mut world = World::new();
    world.v2("a");
    world.v2("b");
    world.report("a", Report::BackToSourceStarted);
    world.report("b", Report::Started);
    world.pass(ms(1500));
    world.source_piece("a", 0);
    world.v2("c");
    // b cannot use a: it reads itself, and only it.
    assert_eq!(world.reschedule("b", &["a"]), ORIGIN);
    assert_eq!(world.v2("d"), parents(&["a"]));
}

#[test]
fn a_reader_that_stops_reporting_is_joined_by_exactly_one_other() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    for name in ["b", "c", "d"] {
        world.mesh(name);
        world.report(name, Report::Started);
    }
    for number in 0..5 {
        world.source_piece("a", number);
        world.pass(ms(200));
    }
    for name in ["b", "c", "d"] {
        world.take(name);
    }
    world.pass(ms(1700));
    assert_eq!(world.readers(), ["a"]);
    world.pass(ms(500));
    let appointed = ["b", "c", "d"]
        .iter()
        .filter(|name| world.take(name).contains(&Heard::Origin))
        .count();
    assert_eq!(appointed, 1);
    assert_eq!(world.readers().len(), 2);
}

#[test]
fn a_slow_reader_is_given_time_by_its_own_pace_and_by_its_word() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    world.mesh("b");
    world.report("b", Report::Started);
    world.pass(ms(2900));
    world.report("a", Report::BackToSourceStarted);
    world.pass(ms(2900));
    assert_eq!(world.readers(), ["a"], "it said that bytes arrive");
    for number in 0..4 {
        world.source_piece("a", number);
        world.pass(ms(2500));
    }
    assert_eq!(world.readers(), ["a"]);
    world.pass(ms(7000));
    assert_eq!(world.readers().len(), 2);
}

#[test]
fn nobody_waits_and_the_silent_reader_stays_alone() {
    let mut world = World::new();
    world.v2("a");
    world.report("a", Report::BackToSourceStarted);
    world.pass(ms(60_000));
    assert_eq!(world.readers(), ["a"]);
}

#[test]
fn a_flagged_peer_reads_only_if_nobody_does_and_a_flagged_seed_always() {
    let mut world = World::new();
    assert_eq!(
        world.register("a", |it| it.origin = OriginWish::Wanted),
        ORIGIN
    );
    world.report("a", Report::BackToSourceStarted);
    assert_eq!(
        world.register("b", |it| it.origin = OriginWish::Wanted),
        parents(&["a"])
    );
    world.seed("s");
    assert_eq!(
        world.register("s", |it| it.origin = OriginWish::Wanted),
        ORIGIN
    );
}

#[test]
fn a_seed_serves_a_peer_that_must_not_read_after_the_reader_is_lost() {
    let mut world = World::new();
    world.v2("a");
    world.report("a", Report::BackToSourceStarted);
    world.register("b", |it| it.origin = OriginWish::Forbidden);
    world.report("b", Report::Started);
    world.seed("s");
    world.break_stream("a");
    assert_eq!(world.reschedule("b", &["a"]), NOTHING);
    assert_eq!(world.triggered, ["s"]);
}

#[test]
fn a_ranged_reader_that_ends_leaves_the_rest_to_the_next() {
    let mut world = World::new();
    world.register("a", |it| {
        it.mesh = true;
        it.range = Some(protocol::ByteRange {
            start: 0,
            length: 10,
        });
    });
    world.report("a", Report::BackToSourceStarted);
    world.mesh("b");
    world.report("b", Report::Started);
    world.take("b");
    world.report("a", Report::BackToSourceFinished);
    assert_eq!(world.take("b"), ORIGIN);
}
