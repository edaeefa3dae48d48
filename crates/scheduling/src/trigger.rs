//! Asking a seed peer to fetch a task first, and what becomes of that.
//!
//! Nobody else reads the origin while a seed is on its way, but only for a bounded time: one that does not register soon, or
//! whose call ends, is given up, and another seed or a peer takes its place.

use std::time::Duration;

use protocol::{HostId, TaskId};

use crate::core::Core;
use crate::message::{Action, TriggerFailure};
use crate::model::{HostKey, PeerKey, TaskKey, Time};
use crate::states::PeerState;

/// A seed peer whose download of a task failed is not asked for it again for so long (scheduler sheet, section 2.5).
const FAILED_SEED_REST: Duration = Duration::from_secs(30 * 60);

/// A seed peer that was asked to fetch a task and has not registered yet.
#[derive(Debug)]
pub(crate) struct Trigger {
    pub(crate) host: HostKey,
    pub(crate) since: Time,
    /// When the first seed was asked.
    first: Time,
    /// Whose credentials it was given.
    credentials: u64,
}

impl<H, T> Core<H, T> {
    /// Asks a seed peer to fetch the task for `key`. Gives whether one was asked.
    pub(crate) fn trigger_seed(&mut self, now: Time, key: PeerKey) -> bool {
        let (task, own, credentials) = (
            self.peers[key].task,
            self.peers[key].host,
            self.peers[key].credentials,
        );
        if self.tasks[task].trigger.is_some() {
            return true;
        }
        if self.seed_failed_recently(now, task) {
            return false;
        }
        self.tasks[task].given_up_seeds.clear();
        self.ask_seed(
            now,
            task,
            Trigger {
                host: own,
                since: now,
                first: now,
                credentials,
            },
        )
    }

    /// Asks the next seed that was not given up; `order` tells of the attempts so far.
    fn ask_seed(&mut self, now: Time, task: TaskKey, order: Trigger) -> bool {
        let record = &self.tasks[task];
        let given_up = &record.given_up_seeds;
        let Some(host) = self.seed_ring.owner(&record.id, |host| {
            host != order.host && !given_up.contains(&host)
        }) else {
            return false;
        };
        let action = Action::TriggerSeed {
            task_id: record.id.clone(),
            host_id: self.hosts[host].id.clone(),
        };
        self.actions.push(action);
        self.tasks[task].trigger = Some(Trigger {
            host,
            since: now,
            ..order
        });
        self.arm(task, now + self.policy.seed_register_max);
        true
    }

    fn seed_failed_recently(&self, now: Time, task: TaskKey) -> bool {
        let seeds = self.tasks[task]
            .seeds
            .iter()
            .filter_map(|key| self.peers.get(*key));
        let latest = seeds.max_by_key(|peer| peer.updated_at);
        latest.is_some_and(|peer| {
            peer.state == PeerState::Failed
                && now.saturating_sub(peer.created_at) < FAILED_SEED_REST
        })
    }

    /// The call to a seed has ended. That matters only if the seed never registered.
    pub(crate) fn end_trigger(
        &mut self,
        now: Time,
        task: &TaskId,
        host: &HostId,
        outcome: Result<(), TriggerFailure>,
    ) {
        let (Some(task), Some(host)) = (
            self.task_keys.get(task).copied(),
            self.host_keys.get(host).copied(),
        ) else {
            return;
        };
        if self.tasks[task]
            .trigger
            .as_ref()
            .is_some_and(|trigger| trigger.host == host)
        {
            self.give_up_trigger(now, task, outcome.err());
        }
    }

    /// The seed that was asked will not help: another one, or a peer.
    pub(crate) fn give_up_trigger(
        &mut self,
        now: Time,
        task: TaskKey,
        failure: Option<TriggerFailure>,
    ) {
        let Some(trigger) = self.tasks[task].trigger.take() else {
            return;
        };
        self.tasks[task].given_up_seeds.push(trigger.host);
        self.bereft.push(task);
        match failure {
            Some(TriggerFailure::Origin(failure)) => {
                self.judge(now, task, failure, trigger.credentials)
            }
            // A seed that ended well without a word has fetched something that it keeps to itself.
            None => {}
            Some(TriggerFailure::Seed)
                if now.saturating_sub(trigger.first) < self.policy.seed_register_max =>
            {
                self.ask_seed(now, task, trigger);
            }
            Some(TriggerFailure::Seed) => {}
        }
    }

    /// The host of a seed that may have been asked is gone.
    pub(crate) fn forget_triggers_of(&mut self, now: Time, host: HostKey) {
        let asked = self
            .tasks
            .iter()
            .filter(|(_, task)| task.trigger.as_ref().is_some_and(|it| it.host == host));
        let asked: Vec<TaskKey> = asked.map(|(key, _)| key).collect();
        for task in asked {
            self.give_up_trigger(now, task, Some(TriggerFailure::Seed));
        }
    }
}
