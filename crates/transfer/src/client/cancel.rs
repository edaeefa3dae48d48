//! Ends a fetch from outside.

use std::future::Future;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Ends the fetches that it was given to, at once and from any thread: their sockets are shut down, which wakes the
/// threads that wait on them. Cheap to clone; clones are the same handle. Once cancelled it stays so.
#[derive(Debug, Clone, Default)]
pub struct CancelHandle {
    token: CancellationToken,
    /// The sockets of running fetches. Taken before the token is set and before it is read, so that no socket slips
    /// through, and never while anything blocks.
    sockets: Arc<Mutex<Vec<Arc<TcpStream>>>>,
}

impl CancelHandle {
    /// A handle that has not been cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the fetches. Does nothing the second time, or when they have ended already.
    pub fn cancel(&self) {
        let sockets = self.sockets.lock();
        self.token.cancel();
        for socket in sockets.iter() {
            // Fails when the other side has closed it already, which is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether [`CancelHandle::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The output of `future`, or nothing when the handle is cancelled first.
    pub(super) async fn unless_cancelled<F: Future>(&self, future: F) -> Option<F::Output> {
        self.token.run_until_cancelled(future).await
    }

    /// From now on `socket` is shut down on [`CancelHandle::cancel`], until the guard is gone; nothing when that has been
    /// called already.
    pub(super) fn attach(&self, socket: &Arc<TcpStream>) -> Option<Attached<'_>> {
        let mut sockets = self.sockets.lock();
        if self.token.is_cancelled() {
            return None;
        }
        sockets.push(Arc::clone(socket));
        Some(Attached {
            handle: self,
            socket: Arc::clone(socket),
        })
    }

    /// Cancels when dropped, unless defused.
    pub(super) fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(Some(self.clone()))
    }
}

/// Keeps a socket within reach of a [`CancelHandle`].
pub(super) struct Attached<'a> {
    handle: &'a CancelHandle,
    socket: Arc<TcpStream>,
}

impl Attached<'_> {
    /// Takes the socket out of reach and says whether it is still usable.
    pub(super) fn detach(self) -> bool {
        let handle = self.handle;
        drop(self);
        // Whoever cancels later does not find the socket any more; whoever was earlier has set the token.
        !handle.is_cancelled()
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.handle
            .sockets
            .lock()
            .retain(|socket| !Arc::ptr_eq(socket, &self.socket));
    }
}

pub(super) struct CancelOnDrop(Option<CancelHandle>);

impl CancelOnDrop {
    pub(super) fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.cancel();
        }
    }
}
