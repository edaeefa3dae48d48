//! What the caller of a watched preheat is told: the plan first, then progress and outcomes as they come.

use api::preheat as watched;

use crate::preheat::{Event, Job, Order, Outcome};

/// Which contents go to which hosts, as the order says.
pub(super) fn plan_message(order: &Order) -> watched::Event {
    let jobs = order
        .targets
        .of_task
        .iter()
        .enumerate()
        .flat_map(|(content, hosts)| {
            hosts.iter().map(move |host| watched::Job {
                content: place(content),
                host: place(*host),
            })
        });
    let plan = watched::Plan {
        contents: order
            .contents
            .iter()
            .map(|content| watched::Content {
                url: content.url.clone(),
                task_id: content.task_id.to_string(),
                kind: content.kind.to_owned(),
                length: content.len,
            })
            .collect(),
        hosts: order
            .targets
            .hosts
            .iter()
            .map(|host| watched::Host {
                id: host.id.clone(),
                hostname: host.hostname.clone(),
                ip: host.ip.clone(),
                seed: (1..=3).contains(&host.r#type),
            })
            .collect(),
        jobs: jobs.collect(),
        notes: order.notes.clone(),
    };
    watched::Event {
        kind: Some(watched::event::Kind::Plan(plan)),
    }
}

/// What happens to one content on one host.
pub(super) fn event_message(event: Event) -> watched::Event {
    let job = |job: Job| {
        Some(watched::Job {
            content: place(job.content),
            host: place(job.host),
        })
    };
    let kind = match event {
        Event::Progress {
            job: of,
            received,
            len,
        } => watched::event::Kind::Progress(watched::Progress {
            job: job(of),
            received,
            length: len,
        }),
        Event::Ended { job: of, outcome } => watched::event::Kind::Outcome(match outcome {
            Outcome::Held { len, before } => watched::Outcome {
                job: job(of),
                error: String::new(),
                held: before,
                length: len,
            },
            Outcome::Failed(error) => watched::Outcome {
                job: job(of),
                error,
                ..watched::Outcome::default()
            },
        }),
    };
    watched::Event { kind: Some(kind) }
}

/// The place of a content or host in the plan's lists.
fn place(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
