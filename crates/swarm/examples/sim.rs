//! Prints how near to the fluid lower bound a simulated swarm comes.
//!
//! `cargo run -p swarm --example sim -- [hosts=16] [mb=200] [piece=4] [draws=3] [mbit=200] [delay=1000]
//! [degree=8] [batch=5] [slots=6] [flight=6] [window=24] [warm] [v2=0] [slow=10] [fade=10] [kill] [freeze]`:
//! `mb` and `piece` in MiB, `delay` (one way) in microseconds, `batch` in milliseconds. `slow`: a host's links
//! are so many times slower; `fade`: an uplink becomes so after 3 s; `kill`, `freeze`: a host after 4 s.

#[path = "../tests/sim/mod.rs"]
#[allow(
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by a test and an example"
)]
mod sim;

use std::time::{Duration, Instant};

use sim::Scene;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut scene = Scene::new(16);
    let mut draws = 3;
    for argument in std::env::args().skip(1) {
        let (key, value) = argument.split_once('=').unwrap_or((&argument, ""));
        match key {
            "hosts" => scene.hosts = value.parse()?,
            "mb" => scene.content = value.parse::<u64>()? << 20,
            "piece" => scene.piece = value.parse::<u64>()? << 20,
            "draws" => draws = value.parse()?,
            "v2" => scene.v2 = value.parse()?,
            "flight" => scene.options.in_flight = value.parse()?,
            "window" => scene.options.window = value.parse()?,
            "batch" => scene.batch = Duration::from_millis(value.parse()?),
            "delay" => scene.delay = Duration::from_micros(value.parse()?),
            "degree" => scene.degree = value.parse()?,
            "mbit" => scene.rate = value.parse::<f64>()? * 125_000.0,
            "slots" => scene.slots = value.parse::<f64>()? / 6.0,
            "warm" => scene.warm = true,
            "slow" => scene.slow = Some((2, value.parse()?)),
            "fade" => scene.fade = Some((2, value.parse()?, Duration::from_secs(3))),
            "kill" => scene.kill = Some((1, Duration::from_secs(4))),
            "freeze" => scene.freeze = Some((1, Duration::from_secs(4))),
            _ => return Err(format!("unknown argument {key}").into()),
        }
    }
    for chance in 1..=draws {
        let started = Instant::now();
        let report = Scene {
            chance,
            ..scene.clone()
        }
        .run();
        println!(
            "{} hosts, draw {chance} ({:.2} s): {report}",
            scene.hosts,
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}
