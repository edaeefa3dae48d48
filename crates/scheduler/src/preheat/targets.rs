//! Which hosts a preheat goes to (scheduler sheet, section 7.3). Pure.

use std::net::IpAddr;
use std::sync::Arc;

use dragonfly_api::common::v2::Host;
use protocol::{HostRole, TaskId};

use crate::brain::{Brain, HostRecord};

/// Most hosts that a failure names.
const HOSTS_TOLD_MAX: usize = 8;

/// Hosts of one kind, or one seed per content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The seed that the scheduler would ask for the task anyway.
    SingleSeedPeer,
    /// All seeds, down to what is selected of them.
    AllSeedPeers,
    /// All hosts that are not seeds, down to what is selected of them.
    AllPeers,
}

impl Scope {
    /// The word of the API.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name {
            "single_seed_peer" => Some(Self::SingleSeedPeer),
            "all_seed_peers" => Some(Self::AllSeedPeers),
            "all_peers" => Some(Self::AllPeers),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::SingleSeedPeer => "single_seed_peer",
            Self::AllSeedPeers => "all_seed_peers",
            Self::AllPeers => "all_peers",
        }
    }
}

/// Which of the hosts of a scope. Of several wishes the first that is there counts: addresses, count, percentage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) count: Option<usize>,
    pub(crate) percentage: Option<usize>,
}

/// Nobody is there to be asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoTargets {
    #[error(
        "no seed peer is available: start one (seedPeer.enable), or preheat with scope all_peers"
    )]
    NoSeeds,
    #[error("this scheduler knows no host of scope {0}: check that daemons run and are announced")]
    Empty(&'static str),
    #[error(
        "none of the addresses belongs to a host of scope {scope}: it has {known}; a host's address is the host.ip of its daemon"
    )]
    NoneOfThese { scope: &'static str, known: String },
}

/// Whom to ask: the hosts, and for each task the places in them.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    pub(crate) hosts: Vec<HostRecord>,
    pub(crate) of_task: Vec<Vec<usize>>,
}

impl Targets {
    /// The hosts for these tasks, as the scheduler knows them now.
    pub(crate) fn choose(
        brain: &Brain,
        scope: Scope,
        selection: &Selection,
        tasks: &[TaskId],
    ) -> Result<Self, NoTargets> {
        let role = match scope {
            Scope::SingleSeedPeer => return Self::single_seeds(brain, tasks),
            Scope::AllSeedPeers => HostRole::Seed,
            Scope::AllPeers => HostRole::Normal,
        };
        let hosts = known(brain, |it| {
            (it == HostRole::Seed) == (role == HostRole::Seed)
        });
        let hosts = select(hosts, selection, scope)?;
        let all: Vec<usize> = (0..hosts.len()).collect();
        Ok(Self {
            of_task: vec![all; tasks.len()],
            hosts,
        })
    }

    fn single_seeds(brain: &Brain, tasks: &[TaskId]) -> Result<Self, NoTargets> {
        let owners = brain.read(|core| {
            let owner = |task| core.seed_for(task).map(|host| host.data.clone());
            tasks.iter().map(owner).collect::<Option<Vec<_>>>()
        });
        let mut targets = Self::default();
        for owner in owners.ok_or(NoTargets::NoSeeds)? {
            let known = targets.hosts.iter().position(|host| host.id == owner.id);
            let place = known.unwrap_or_else(|| {
                targets.hosts.push(owner);
                targets.hosts.len() - 1
            });
            targets.of_task.push(vec![place]);
        }
        Ok(targets)
    }
}

/// The hosts of these roles, in an order that stays from call to call.
pub(crate) fn known(brain: &Brain, wanted: impl Fn(HostRole) -> bool) -> Vec<HostRecord> {
    let mut hosts: Vec<HostRecord> = brain.read(|core| {
        let hosts = core.hosts().filter(|host| wanted(host.role));
        hosts.map(|host| host.data.clone()).collect()
    });
    hosts.sort_by(|a, b| (&a.hostname, &a.ip, &a.id).cmp(&(&b.hostname, &b.ip, &b.id)));
    hosts
}

/// The selected hosts. An address that nobody has becomes a host without an id, so that its absence is told.
fn select(
    hosts: Vec<HostRecord>,
    selection: &Selection,
    scope: Scope,
) -> Result<Vec<HostRecord>, NoTargets> {
    if hosts.is_empty() {
        return Err(match scope {
            Scope::AllPeers => NoTargets::Empty(scope.name()),
            _ => NoTargets::NoSeeds,
        });
    }
    if !selection.ips.is_empty() {
        return of_addresses(&hosts, &selection.ips).ok_or_else(|| NoTargets::NoneOfThese {
            scope: scope.name(),
            known: some_of(&hosts),
        });
    }
    let share = |percentage: usize| (hosts.len() * percentage / 100).max(1);
    let count = selection
        .count
        .or(selection.percentage.map(share))
        .unwrap_or(hosts.len());
    Ok(hosts.into_iter().take(count).collect())
}

/// The addresses of hosts for a message, which is not to be long.
fn some_of(hosts: &[HostRecord]) -> String {
    let told: Vec<String> = hosts
        .iter()
        .take(HOSTS_TOLD_MAX)
        .map(|host| format!("{} ({})", host.ip, host.hostname))
        .collect();
    let told = told.join(", ");
    match hosts.len().saturating_sub(HOSTS_TOLD_MAX) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

fn of_addresses(hosts: &[HostRecord], ips: &[IpAddr]) -> Option<Vec<HostRecord>> {
    let mut chosen: Vec<HostRecord> = Vec::new();
    let mut found = false;
    for (place, ip) in ips.iter().enumerate() {
        if ips[..place].contains(ip) {
            continue;
        }
        let before = chosen.len();
        let here = hosts
            .iter()
            .filter(|host| host.ip.parse().is_ok_and(|known: IpAddr| known == *ip));
        chosen.extend(here.cloned());
        if chosen.len() > before {
            found = true;
            continue;
        }
        chosen.push(Arc::new(Host {
            ip: ip.to_string(),
            ..Host::default()
        }));
    }
    found.then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: u8) -> Vec<HostRecord> {
        let host = |number| Host {
            id: format!("h{number}"),
            ip: format!("10.0.0.{number}"),
            hostname: format!("n{number}"),
            ..Host::default()
        };
        (1..=count).map(|number| Arc::new(host(number))).collect()
    }

    fn check(count: u8, selection: Selection) -> Result<Vec<String>, NoTargets> {
        let chosen = select(hosts(count), &selection, Scope::AllPeers)?;
        Ok(chosen.iter().map(|host| host.id.clone()).collect())
    }

    #[test]
    fn a_selection_takes_the_first_wish_that_is_there() {
        let ips = vec![
            "10.0.0.3".parse().unwrap(),
            "::ffff:1.2.3.4".parse().unwrap(),
        ];
        let all = Selection {
            ips,
            count: Some(1),
            percentage: Some(100),
        };
        assert_eq!(check(4, all.clone()).unwrap(), ["h3", ""]);
        let counted = Selection { ips: vec![], ..all };
        assert_eq!(check(4, counted).unwrap(), ["h1"]);
        let percent = |percentage| Selection {
            percentage: Some(percentage),
            ..Selection::default()
        };
        for (percentage, expected) in [(1, 1), (50, 2), (74, 2), (100, 4)] {
            assert_eq!(check(4, percent(percentage)).unwrap().len(), expected);
        }
        assert_eq!(check(4, Selection::default()).unwrap().len(), 4);
        let many = Selection {
            count: Some(200),
            ..Selection::default()
        };
        assert_eq!(check(4, many).unwrap().len(), 4);
    }

    #[test]
    fn nobody_is_an_error() {
        assert_eq!(
            check(0, Selection::default()),
            Err(NoTargets::Empty("all_peers"))
        );
        let elsewhere = Selection {
            ips: vec!["10.9.9.9".parse().unwrap()],
            ..Selection::default()
        };
        let told = |count| check(count, elsewhere.clone()).unwrap_err().to_string();
        assert!(
            told(2).contains("it has 10.0.0.1 (n1), 10.0.0.2 (n2);"),
            "{}",
            told(2)
        );
        assert!(
            told(20).contains("10.0.0.8 (n8) and 12 more;"),
            "{}",
            told(20)
        );
    }
}
