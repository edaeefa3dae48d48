//! Mesh peers: neighbours at once, pushed ones later, and v2 peers among them.

use protocol::HostRole;

use super::world::{Heard, NOTHING, ORIGIN, World, host_id, ms, parents, peer_id};
use crate::{OriginWish, PeerState, Report};

fn offered(heard: &[Heard]) -> Vec<String> {
    let lists = heard.iter().filter_map(|it| match it {
        Heard::Parents(names) => Some(names.clone()),
        _ => None,
    });
    lists.flatten().collect()
}

fn neighbour_count(world: &World, name: &str) -> usize {
    world
        .core
        .find_peer(&peer_id(name))
        .unwrap()
        .neighbours
        .len()
}

#[test]
fn a_newcomer_gets_those_that_hold_nothing_yet() {
    let mut world = World::new();
    assert_eq!(world.mesh("a"), ORIGIN);
    assert_eq!(world.mesh("b"), parents(&["a"]));
    assert_eq!(world.take("a"), NOTHING, "it learns of b by b's dialling");
    let third = offered(&world.mesh("c"));
    assert_eq!(third.len(), 2, "{third:?}");
}

#[test]
fn a_newcomer_gets_four_of_many_and_the_seed() {
    let mut world = World::new();
    world.seed("s");
    assert_eq!(world.mesh("a"), NOTHING);
    assert_eq!(world.triggered, ["s"]);
    for n in 0..10 {
        world.mesh(&format!("m{n}"));
    }
    let heard = world.register("s", |it| {
        it.mesh = true;
        it.origin = OriginWish::Wanted;
    });
    assert_eq!(heard, ORIGIN);
    let told = (0..10)
        .filter(|n| offered(&world.take(&format!("m{n}"))).contains(&"s".to_owned()))
        .count();
    assert_eq!(told, 10, "every member is told of the seed at once");
    let newcomer = offered(&world.mesh("z"));
    assert_eq!(newcomer.len(), 5, "{newcomer:?}");
    assert!(newcomer.contains(&"s".to_owned()));
}

#[test]
fn the_seed_is_offered_to_sixteen() {
    let mut world = World::new();
    world.seed("s");
    world.register("s", |it| {
        it.mesh = true;
        it.origin = OriginWish::Wanted;
    });
    world.report("s", Report::BackToSourceStarted);
    let with_seed = (0..40)
        .filter(|n| offered(&world.mesh(&format!("m{n}"))).contains(&"s".to_owned()))
        .count();
    assert_eq!(with_seed, 16);
}

#[test]
fn who_waits_for_anybody_is_told_of_the_newcomer() {
    let mut world = World::new();
    world.seed("s");
    assert_eq!(world.mesh("a"), NOTHING);
    assert_eq!(world.mesh("b"), parents(&["a"]));
    assert_eq!(world.take("a"), parents(&["b"]));
}

#[test]
fn few_neighbours_are_topped_up_when_arrivals_pause() {
    let mut world = World::new();
    world.mesh("a");
    for n in 0..20 {
        world.mesh(&format!("m{n}"));
        world.pass(ms(10));
    }
    let before: Vec<usize> = (0..20)
        .map(|n| neighbour_count(&world, &format!("m{n}")))
        .collect();
    assert!(before.iter().any(|count| *count < 7));
    world.pass(ms(60));
    for n in 0..20 {
        assert!(neighbour_count(&world, &format!("m{n}")) >= 7, "m{n}");
    }
    assert!(
        (0..20).any(|n| !offered(&world.take(&format!("m{n}"))).is_empty()),
        "they were told"
    );
}

#[test]
fn a_lost_neighbour_is_replaced() {
    let mut world = World::new();
    world.mesh("a");
    for n in 0..12 {
        world.mesh(&format!("m{n}"));
    }
    world.pass(ms(600));
    let losers: Vec<String> = (0..12)
        .map(|n| format!("m{n}"))
        .filter(|name| neighbour_count(&world, name) == 7)
        .collect();
    for n in 0..3 {
        world.break_stream(&format!("m{n}"));
    }
    world.pass(ms(600));
    for name in losers.iter().filter(|name| world.has_stream(name)) {
        assert!(neighbour_count(&world, name) >= 7, "{name}");
    }
}

#[test]
fn the_data_centre_is_preferred() {
    let mut world = World::new();
    for n in 0..20 {
        let idc = if n % 2 == 0 { "east" } else { "west" };
        world.announce(&format!("m{n}"), HostRole::Normal, |host| {
            host.idc = Some(idc.into())
        });
        world.mesh(&format!("m{n}"));
    }
    world.announce("x", HostRole::Normal, |host| host.idc = Some("EAST".into()));
    let names = offered(&world.mesh("x"));
    let from_east = names
        .iter()
        .filter(|name| name[1..].parse::<u32>().unwrap() % 2 == 0)
        .count();
    assert!(from_east >= 4, "{names:?}");
}

#[test]
fn a_host_that_does_not_share_gets_neighbours_and_is_none() {
    let mut world = World::new();
    world.mesh("a");
    world.announce("leech", HostRole::Normal, |host| host.disable_shared = true);
    assert_eq!(world.mesh("leech"), parents(&["a"]));
    assert_eq!(world.mesh("b"), parents(&["a"]));
}

#[test]
fn other_neighbours_answer_a_reschedule_at_once() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    for n in 0..12 {
        world.mesh(&format!("m{n}"));
    }
    let first = offered(&world.mesh("x"));
    let named: Vec<&str> = first.iter().map(String::as_str).collect();
    let second = offered(&world.reschedule("x", &named));
    assert!(!second.is_empty());
    assert!(
        second.iter().all(|name| !first.contains(name)),
        "{first:?} {second:?}"
    );
}

#[test]
fn a_lost_reader_is_followed_by_the_member_with_most_pieces() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    for name in ["b", "c", "d"] {
        world.mesh(name);
        world.report(name, Report::Started);
        world.take(name);
    }
    world.piece("c", "a");
    world.break_stream("a");
    assert_eq!(world.take("c"), ORIGIN);
    assert_eq!(
        (world.take("b"), world.take("d")),
        (NOTHING.to_vec(), NOTHING.to_vec())
    );
}

#[test]
fn nobody_reads_again_what_a_member_has_whole() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    world.mesh("b");
    world.report("b", Report::Started);
    world.mesh("c");
    world.report("c", Report::Started);
    world.report("b", Report::Finished);
    world.take("c");
    world.break_stream("a");
    world.pass(ms(5000));
    assert_eq!(world.take("c"), NOTHING);
    world.event(crate::Event::HostLeft {
        host_id: host_id("b"),
    });
    assert_eq!(world.take("c"), ORIGIN, "the last one that had it is gone");
}

#[test]
fn members_learn_of_a_v2_reader() {
    let mut world = World::new();
    assert_eq!(world.v2("v"), ORIGIN);
    for n in 0..8 {
        world.mesh(&format!("m{n}"));
    }
    for n in 0..8 {
        world.take(&format!("m{n}"));
    }
    world.report("v", Report::BackToSourceStarted);
    let told = (0..8)
        .filter(|n| offered(&world.take(&format!("m{n}"))) == ["v"])
        .count();
    assert_eq!(told, 4, "a few, who pass it on");
    assert!(offered(&world.mesh("late")).contains(&"v".to_owned()));
}

#[test]
fn v2_children_get_members_that_can_serve_and_no_others() {
    let mut world = World::new();
    world.mesh("a");
    world.mesh("b");
    assert_eq!(
        world.v2("v"),
        NOTHING,
        "a was told to read and has not begun; b has not begun either"
    );
    world.report("a", Report::BackToSourceStarted);
    assert_eq!(world.take("v"), parents(&["a"]));
    world.report("b", Report::Started);
    let heard = offered(&world.v2("w"));
    assert_eq!(heard.len(), 2, "{heard:?}");
}

#[test]
fn a_member_ends_as_any_other_peer() {
    let mut world = World::new();
    world.mesh("a");
    world.report("a", Report::BackToSourceStarted);
    world.mesh("b");
    world.report("b", Report::Started);
    assert_eq!(world.report("b", Report::Finished), [Heard::Closed]);
    assert_eq!(world.state("b"), Some(PeerState::Succeeded));
    assert!(
        offered(&world.mesh("c")).contains(&"b".to_owned()),
        "it still serves"
    );
}
