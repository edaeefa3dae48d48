//! Time: one timer per task for what waits in it, and the sweeps.

use std::cmp::Reverse;

use crate::core::Core;
use crate::model::{TaskKey, Time};
use crate::policy::Policy;

/// When the next look over everything is due.
#[derive(Debug)]
pub(crate) struct Sweeps {
    peers: Time,
    tasks: Time,
    hosts: Time,
}

impl Sweeps {
    pub(crate) fn first(policy: &Policy) -> Self {
        Self {
            peers: policy.peer_gc_interval,
            tasks: policy.task_gc_interval,
            hosts: policy.host_gc_interval,
        }
    }

    fn next(&self) -> Time {
        self.peers.min(self.tasks).min(self.hosts)
    }
}

impl<H, T> Core<H, T> {
    /// When to call with [`crate::Event::Tick`]. Calling earlier does no harm.
    pub fn next_deadline(&self) -> Option<Time> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [Some(self.sweeps.next()), timer]
            .into_iter()
            .flatten()
            .min()
    }

    /// Wants a look at `task` at `at` or earlier.
    pub(crate) fn arm(&mut self, task: TaskKey, at: Time) {
        let timer_at = &mut self.tasks[task].timer_at;
        if timer_at.is_none_or(|other| at < other) {
            *timer_at = Some(at);
            // The later one stays in the queue and is ignored when its time comes.
            self.timers.push(Reverse((at, task)));
        }
    }

    pub(crate) fn tick(&mut self, now: Time) {
        while let Some(Reverse((at, task))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(record) = self.tasks.get_mut(task)
                && record.timer_at == Some(at)
            {
                record.timer_at = None;
                self.look_at(now, task);
            }
        }
        self.sweep(now);
    }

    fn look_at(&mut self, now: Time, task: TaskKey) {
        let readers_due = self.watch_readers(now, task);
        if self.tasks[task].waiting_due.is_some_and(|due| due <= now) {
            self.wake(now, task);
        }
        if self.tasks[task].top_up_due.is_some_and(|due| due <= now) {
            self.top_up(now, task);
        }
        let record = &self.tasks[task];
        if let Some(due) = [readers_due, record.waiting_due, record.top_up_due]
            .into_iter()
            .flatten()
            .min()
        {
            self.arm(task, due);
        }
    }

    fn sweep(&mut self, now: Time) {
        if self.sweeps.hosts <= now {
            self.sweeps.hosts = now + self.policy.host_gc_interval;
            self.sweep_hosts(now);
        }
        if self.sweeps.peers <= now {
            self.sweeps.peers = now + self.policy.peer_gc_interval;
            self.sweep_peers(now);
        }
        if self.sweeps.tasks <= now {
            self.sweeps.tasks = now + self.policy.task_gc_interval;
            self.sweep_tasks();
        }
    }
}
