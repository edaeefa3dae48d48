//! Whole swarms on simulated links: how near to the fluid lower bound the last host ends.

#![allow(clippy::unwrap_used)]

#[allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by a test and an example"
)]
mod sim;

use std::time::Duration;

use sim::{Report, Scene};

/// Runs two draws of the scene, prints them, and holds each to the most that is accepted.
fn check(name: &str, scene: Scene, most: f64) -> Vec<Report> {
    let draws = 1..=2;
    let run = |chance| {
        let report = Scene {
            chance,
            ..scene.clone()
        }
        .run();
        println!("{name}, {} hosts, draw {chance}: {report}", scene.hosts);
        assert!(report.last_own <= most, "{name}, draw {chance}: {report}");
        let pieces = scene.content as f64;
        assert!(
            report.fresh[1..]
                .iter()
                .all(|bytes| *bytes as f64 <= pieces)
        );
        report
    };
    draws.map(run).collect()
}

fn half_way() -> Duration {
    Duration::from_secs(4)
}

#[test]
fn one_host_runs_at_link_speed() {
    check("alone", Scene::new(1), 1.01);
}

#[test]
fn many_hosts_end_near_the_bound() {
    for (hosts, most) in [(4, 1.03), (8, 1.05), (16, 1.07)] {
        for report in check("cold seed", Scene::new(hosts), most) {
            assert!(
                report.seed_copies() < 1.1,
                "the best single alarm: {report}"
            );
            assert!(report.waste_share() < 0.001);
        }
    }
}

#[test]
fn a_warm_seed_repeats_itself_as_little() {
    let scene = Scene {
        warm: true,
        ..Scene::new(16)
    };
    check("warm seed", scene, 1.07)
        .iter()
        .for_each(|report| assert!(report.seed_copies() < 1.1));
}

#[test]
fn the_death_of_a_host_costs_little() {
    for hosts in [4, 8] {
        let scene = Scene {
            kill: Some((1, half_way())),
            ..Scene::new(hosts)
        };
        check("death half way", scene, 1.12);
    }
}

#[test]
fn a_frozen_host_costs_at_most_two_seconds() {
    for hosts in [2, 4, 8] {
        let scene = Scene {
            freeze: Some((1, half_way())),
            ..Scene::new(hosts)
        };
        for report in check("frozen half way", scene, 1.25) {
            assert!(report.last() * report.bound < report.bound + 2.0);
        }
    }
}

#[test]
fn a_slow_host_hinders_nobody_and_does_not_hedge_against_itself() {
    for hosts in [4, 8] {
        let scene = Scene {
            slow: Some((2, 10.0)),
            ..Scene::new(hosts)
        };
        check("ten times slower", scene, 1.15)
            .iter()
            .for_each(|report| assert!(report.waste_share() < 0.01));
    }
}

#[test]
fn an_uplink_that_fades_is_worked_around() {
    for hosts in [4, 8] {
        let scene = Scene {
            fade: Some((2, 10.0, Duration::from_secs(3))),
            ..Scene::new(hosts)
        };
        check("uplink fades to a tenth", scene, 1.35);
    }
}

#[test]
fn v2_peers_are_mixed_in() {
    let scene = |hosts, v2| Scene {
        v2,
        ..Scene::new(hosts)
    };
    check("a lone v2 peer", scene(1, 1), 1.05);
    check("one v2 peer", scene(16, 1), 1.3);
    check("a quarter v2", scene(16, 4), 2.2);
    check("half v2", scene(16, 8), 3.0);
    check("all v2", scene(16, 16), 5.0);
}

#[test]
fn short_files_and_long_ones_end_too() {
    check(
        "10 MB",
        Scene {
            content: 10 << 20,
            ..Scene::new(16)
        },
        1.5,
    );
    check(
        "50 MB",
        Scene {
            content: 50 << 20,
            ..Scene::new(8)
        },
        1.12,
    );
    check(
        "1 byte",
        Scene {
            content: 1,
            ..Scene::new(4)
        },
        f64::MAX,
    );
}
