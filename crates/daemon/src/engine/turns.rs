//! Which of several tasks comes first on this host.
//!
//! Tasks that are fetched at the same time share one downlink. Shared evenly, they all end late and at the same moment; whoever pulls an
//! image then unpacks all of its layers after the last byte. So the task with the least left to fetch goes first: it may have as many requests
//! in flight as one task has alone, the next one what that leaves, and every task at least one, so that nobody starves. What is only
//! fetched ahead of need comes behind everything else.
//!
//! Hosts that fetch the same tasks come to the same order by themselves, or the parent of one would read first what the other wants last:
//! they have much the same left of each, and of equals the id decides. (The order in which tasks began was tried: it differs from host to
//! host by milliseconds, and two orders undo each other.)

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use protocol::TaskId;
use tokio::time::Instant;

/// A task that has had no byte for this long leaves its turn to others.
const STILL: Duration = Duration::from_millis(400);
/// With more tasks than this at once nobody looks at all of them: each gets its one request.
const TASKS_MAX: usize = 256;

/// The tasks that are being fetched.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    tasks: Arc<Mutex<Vec<Standing>>>,
}

#[derive(Debug)]
struct Standing {
    task_id: TaskId,
    state: State,
}

/// What a task says of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// Nobody waits for it.
    pub(super) ahead_of_need: bool,
    /// Bytes to fetch.
    pub(super) left: u64,
    /// Requests that are out.
    pub(super) in_flight: usize,
    /// When a byte last came, or it began.
    pub(super) fed_at: Instant,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// There is no other.
    Alone,
    /// Before all others.
    First,
    /// Behind others, which have so many requests out.
    Behind(usize),
}

/// The place of one task; given up when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    task_id: TaskId,
}

impl Turns {
    /// Lines a task up. It may ask for nothing before it has told its state.
    pub(super) fn join(&self, task_id: TaskId) -> Turn {
        Turn {
            turns: self.clone(),
            task_id,
        }
    }
}

impl Turn {
    /// Tells the state of this task, and learns where it stands.
    pub(super) fn tell(&self, state: State, now: Instant) -> Place {
        let mut tasks = self.turns.tasks.lock();
        match tasks.iter_mut().find(|it| it.task_id == self.task_id) {
            Some(standing) => standing.state = state,
            None => tasks.push(Standing {
                task_id: self.task_id.clone(),
                state,
            }),
        }
        if tasks.len() > TASKS_MAX {
            return Place::Behind(usize::MAX);
        }
        let key = |state: &State| (state.ahead_of_need, state.left);
        let mut place = Place::Alone;
        for Standing { task_id, state: it } in tasks.iter() {
            if *task_id == self.task_id || it.left == 0 || now >= it.fed_at + STILL {
                continue;
            }
            let is_before = (key(it), task_id) < (key(&state), &self.task_id);
            place = match place {
                Place::Behind(count) if is_before => Place::Behind(count + it.in_flight),
                Place::Behind(count) => Place::Behind(count),
                _ if is_before => Place::Behind(it.in_flight),
                _ => Place::First,
            };
        }
        place
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut tasks = self.turns.tasks.lock();
        tasks.retain(|it| it.task_id != self.task_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: char) -> TaskId {
        byte.to_string().repeat(64).parse().unwrap()
    }

    #[test]
    fn the_least_left_comes_first_and_the_still_give_way() {
        let turns = Turns::default();
        let [a, b, c] = ['a', 'b', 'c'].map(|byte| turns.join(id(byte)));
        let now = Instant::now();
        let state = |left, in_flight| State {
            ahead_of_need: false,
            left,
            in_flight,
            fed_at: now,
        };
        assert_eq!(a.tell(state(100, 6), now), Place::Alone);
        // The id decides between equals.
        assert_eq!(b.tell(state(100, 1), now), Place::Behind(6));
        assert_eq!(c.tell(state(50, 4), now), Place::First);
        assert_eq!(b.tell(state(100, 1), now), Place::Behind(10));
        assert_eq!(a.tell(state(100, 3), now), Place::Behind(4));
        // What is fetched ahead comes last, however little it is.
        let ahead = State {
            ahead_of_need: true,
            ..state(1, 1)
        };
        assert_eq!(c.tell(ahead, now), Place::Behind(4));
        assert_eq!(a.tell(state(100, 3), now), Place::First);
        // Without a byte for a while it is passed by.
        let later = now + STILL;
        let fed = State {
            fed_at: later,
            ..state(100, 1)
        };
        assert_eq!(b.tell(fed, later), Place::Alone);
        // Whoever has everything, or is gone, is before nobody.
        assert_eq!(b.tell(state(0, 1), now), Place::First);
        assert_eq!(a.tell(state(100, 3), now), Place::First);
        drop((a, b));
        assert_eq!(c.tell(ahead, now), Place::Alone);
    }
}
