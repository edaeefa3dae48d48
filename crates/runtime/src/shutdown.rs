//! Graceful shutdown as a tree.
//!
//! The root belongs to the process, each part takes a [`Shutdown::child`]. Ending goes top down and has four steps:
//! *begin* (every part hears it, stops accepting, and finishes what it does), *drain* (the root waits for all tasks, up to a
//! grace time), *abort* (what is still there is named in the log and cut off), *exit*. A part that fails calls
//! [`Shutdown::fail`], which begins the end of the whole tree and keeps the reason.
//!
//! Every task of a service is started by [`Shutdown::spawn`], so that none outlives it unnoticed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{info, warn};

/// How long aborted tasks may take to reach their next await point before the drain gives up on them.
const ABORT_WAIT: Duration = Duration::from_millis(500);

/// A node of the shutdown tree. Clones are the same node.
#[derive(Clone)]
pub struct Shutdown {
    token: CancellationToken,
    /// Counts the tasks of this node and of all below it.
    tracker: TaskTracker,
    /// The way from this node up to the root.
    lineage: Arc<Lineage>,
    tree: Arc<Tree>,
}

/// A node's number and its parent.
struct Lineage {
    node: u64,
    parent: Option<(TaskTracker, Arc<Lineage>)>,
}

impl Lineage {
    fn is_below(&self, node: u64) -> bool {
        self.node == node
            || self
                .parent
                .as_ref()
                .is_some_and(|(_, parent)| parent.is_below(node))
    }
}

/// What all nodes of one tree share.
struct Tree {
    root: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    running: BTreeMap<u64, Running>,
    failure: Option<Failure>,
}

struct Running {
    name: Cow<'static, str>,
    lineage: Arc<Lineage>,
    abort: AbortHandle,
}

/// Why a part of the process could not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The part's name.
    pub part: String,
    /// What happened, as told to the operator.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.reason)
    }
}

impl std::error::Error for Failure {}

/// How a drain ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Names of the tasks that did not end within the grace time and were aborted.
    pub aborted: Vec<String>,
    /// Why the shutdown began, if a part failed.
    pub failure: Option<Failure>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// The root of a new tree.
    pub fn new() -> Self {
        let root = CancellationToken::new();
        let tree = Tree {
            root: root.clone(),
            state: Mutex::default(),
        };
        let lineage = Lineage {
            node: 0,
            parent: None,
        };
        Self {
            token: root,
            tracker: TaskTracker::new(),
            lineage: Arc::new(lineage),
            tree: Arc::new(tree),
        }
    }

    /// A part of this one: it ends when this one does, and may end earlier by itself.
    pub fn child(&self) -> Self {
        let parent = Some((self.tracker.clone(), self.lineage.clone()));
        Self {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            lineage: Arc::new(Lineage {
                node: self.tree.next_id(),
                parent,
            }),
            tree: self.tree.clone(),
        }
    }

    /// Begins the end of this node and all below it. Returns at once.
    pub fn begin(&self) {
        self.token.cancel();
    }

    /// Begins the end of the whole tree because `part` cannot go on. The first failure is kept.
    pub fn fail(&self, part: impl Into<String>, reason: impl fmt::Display) {
        let failure = Failure {
            part: part.into(),
            reason: reason.to_string(),
        };
        self.tree.lock().failure.get_or_insert(failure);
        self.tree.root.cancel();
    }

    /// Whether the end of this node has begun.
    pub fn has_begun(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits until the end of this node begins. Cancel-safe.
    pub async fn begun(&self) {
        self.token.cancelled().await;
    }

    /// This node's token, for libraries that take one.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `future` as a task that the drain waits for, by `name` in the log. The future itself decides what to do when
    /// the end begins (see [`Shutdown::begun`]).
    pub fn spawn<F>(&self, name: impl Into<Cow<'static, str>>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = self.tree.next_id();
        let entry = Entry {
            tree: self.tree.clone(),
            id,
            _counted: self.counted(),
        };
        let task = tokio::spawn(async move {
            let _entry = entry;
            future.await
        });
        let running = Running {
            name: name.into(),
            lineage: self.lineage.clone(),
            abort: task.abort_handle(),
        };
        self.tree.lock().running.insert(id, running);
        // The task may have ended before it was entered.
        if task.is_finished() {
            self.tree.lock().running.remove(&id);
        }
        task
    }

    /// As [`Shutdown::spawn`], but the future is dropped as soon as the end of this node begins. For loops that may stop
    /// at any await point.
    pub fn spawn_until_begun<F>(
        &self,
        name: impl Into<Cow<'static, str>>,
        future: F,
    ) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move { token.run_until_cancelled(future).await })
    }

    /// Begins the end of this node and waits up to `grace` for the tasks of it and of all below it; aborts and names those
    /// that are left.
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.begin();
        self.tracker.close();
        let mut aborted = Vec::new();
        if tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_err()
        {
            aborted = self.abort_all();
            let _ = tokio::time::timeout(ABORT_WAIT, self.tracker.wait()).await;
        }
        Drained {
            aborted,
            failure: self.tree.lock().failure.clone(),
        }
    }

    /// Waits for a signal to end, or for the end to begin otherwise, then drains the whole tree: the last call of a
    /// service's main. A second signal while it drains ends the grace time.
    ///
    /// # Errors
    /// A signal handler cannot be installed.
    pub async fn run(&self, grace: Duration) -> std::io::Result<Drained> {
        Ok(self.run_in_order(&mut Signals::new()?, &[], grace).await)
    }

    /// As [`Shutdown::run`], but after a signal `parts` are drained one after the other before the rest, each with the grace
    /// time of its own: for parts that still need the next ones while they end. Take the signals over before anybody is
    /// told that the process serves, or the first one may still end it the hard way.
    pub async fn run_in_order(
        &self,
        signals: &mut Signals,
        parts: &[Shutdown],
        grace: Duration,
    ) -> Drained {
        tokio::select! {
            biased;
            () = self.tree.root.cancelled() => {}
            signal = signals.next() => info!(signal, "stopping"),
        }
        let in_order = async {
            let mut aborted = Vec::new();
            for part in parts {
                aborted.extend(part.drain(grace).await.aborted);
            }
            let rest = self.drain(grace).await;
            aborted.extend(rest.aborted);
            Drained {
                aborted,
                failure: rest.failure,
            }
        };
        tokio::select! {
            biased;
            drained = in_order => drained,
            signal = signals.next() => {
                warn!(signal, "stopping at once, asked a second time");
                self.drain(Duration::ZERO).await
            }
        }
    }

    fn abort_all(&self) -> Vec<String> {
        let state = self.tree.lock();
        let mut names = Vec::new();
        for running in state
            .running
            .values()
            .filter(|running| running.lineage.is_below(self.lineage.node))
        {
            warn!(task = %running.name, "did not stop within the grace time, aborted");
            running.abort.abort();
            names.push(running.name.to_string());
        }
        names
    }

    /// One token of the tracker of this node and of each above it.
    fn counted(&self) -> Vec<TaskTrackerToken> {
        let mut tokens = vec![self.tracker.token()];
        let mut lineage = &self.lineage;
        while let Some((tracker, parent)) = &lineage.parent {
            tokens.push(tracker.token());
            lineage = parent;
        }
        tokens
    }
}

impl Tree {
    /// A number that no other node or task of this tree has; the root has 0.
    fn next_id(&self) -> u64 {
        let mut state = self.lock();
        state.next_id += 1;
        state.next_id
    }

    /// The state is a plain table that is whole between two statements, so that a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a task off the table when it ends, also by a panic or an abort.
struct Entry {
    tree: Arc<Tree>,
    id: u64,
    _counted: Vec<TaskTrackerToken>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tree.lock().running.remove(&self.id);
    }
}

/// The signals that ask a process to end: SIGINT, SIGTERM, SIGQUIT.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over from their default action, which would end the process at once.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for the next one and gives its name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test]
    async fn children_hear_the_root_and_end_alone() {
        let root = Shutdown::new();
        let (one, two) = (root.child(), root.child());
        one.begin();
        assert!(one.has_begun() && !two.has_begun() && !root.has_begun());
        root.begin();
        two.begun().await;
    }

    #[tokio::test]
    async fn a_drain_waits_for_work_that_finishes() {
        let root = Shutdown::new();
        let part = root.child();
        let work = part.clone();
        let result = part.spawn("worker", async move {
            work.begun().await;
            tokio::task::yield_now().await;
            7
        });
        part.spawn_until_begun("loop", pending::<()>());
        let drained = root.drain(Duration::from_secs(20)).await;
        assert_eq!(
            drained,
            Drained {
                aborted: vec![],
                failure: None
            }
        );
        assert_eq!(result.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_does_not_stop_is_named_and_aborted() {
        let root = Shutdown::new();
        let stuck = root.child().spawn("stuck upload", pending::<()>());
        root.spawn("quick", async {}).await.unwrap();
        let drained = root.drain(Duration::from_millis(20)).await;
        assert_eq!(drained.aborted, ["stuck upload"]);
        assert!(stuck.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn a_part_is_drained_alone() {
        let root = Shutdown::new();
        let (first, second) = (root.child(), root.child());
        let (_stuck, other) = (
            first.child().spawn("first", pending::<()>()),
            second.spawn("second", pending::<()>()),
        );
        assert_eq!(
            first.drain(Duration::from_millis(20)).await.aborted,
            ["first"]
        );
        assert!(!root.has_begun() && !second.has_begun() && !other.is_finished());
        assert_eq!(
            root.drain(Duration::from_millis(20)).await.aborted,
            ["second"]
        );
    }

    #[tokio::test]
    async fn a_failure_ends_the_tree_and_the_first_one_is_kept() {
        let root = Shutdown::new();
        let part = root.child();
        part.fail("listener", "port taken");
        part.fail("other", "later");
        root.begun().await;
        let failure = root.drain(Duration::from_secs(20)).await.failure.unwrap();
        assert_eq!(failure.to_string(), "listener: port taken");
    }

    #[tokio::test]
    async fn a_task_that_panics_does_not_hold_the_drain() {
        let root = Shutdown::new();
        let task = root.spawn("panics", async { panic!("on purpose") });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(
            root.drain(Duration::from_secs(20)).await.aborted,
            Vec::<String>::new()
        );
    }
}
