//! Connections and buffers that wait to be used again.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// Bytes of one receive buffer: large enough that few calls move a piece, small enough to stay in a core's cache between
/// receiving, digesting and writing.
pub(super) const BUFFER_LEN: usize = 256 << 10;

/// Buffers kept for the next fetches; more than these are given back to the system.
const BUFFERS_KEPT_MAX: usize = 32;
/// Unused connections kept for one parent; a normal task asks a parent for fewer than these at once.
const IDLE_PER_PARENT_MAX: usize = 16;
/// Unused connections kept altogether: bounds the descriptors.
const IDLE_MAX: usize = 1024;

/// Unused connections by parent. The most recently used one is taken first.
#[derive(Debug)]
pub(super) struct Pool {
    idle_limit: Duration,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// Per parent in the order in which they were put back.
    by_parent: HashMap<SocketAddr, Vec<(Arc<TcpStream>, Instant)>>,
    count: usize,
}

impl Pool {
    pub(super) fn new(idle_limit: Duration) -> Self {
        Self {
            idle_limit,
            idle: Mutex::default(),
        }
    }

    /// A connection that the parent has not closed as far as can be known.
    pub(super) fn take(&self, parent: SocketAddr, now: Instant) -> Option<Arc<TcpStream>> {
        loop {
            let (stream, since) = self.pop(parent)?;
            if now.saturating_duration_since(since) < self.idle_limit && is_quiet(&stream) {
                return Some(stream);
            }
        }
    }

    fn pop(&self, parent: SocketAddr) -> Option<(Arc<TcpStream>, Instant)> {
        let mut idle = self.idle.lock();
        let popped = idle.by_parent.get_mut(&parent)?.pop();
        match popped {
            Some(_) => idle.count -= 1,
            None => drop(idle.by_parent.remove(&parent)),
        }
        popped
    }

    /// Keeps a connection on which nothing is outstanding, unless there are enough.
    pub(super) fn put(&self, parent: SocketAddr, stream: Arc<TcpStream>, now: Instant) {
        if self.idle.lock().count >= IDLE_MAX {
            self.close_idle(now);
        }
        let mut idle = self.idle.lock();
        if idle.count >= IDLE_MAX {
            return;
        }
        let of_parent = idle.by_parent.entry(parent).or_default();
        if of_parent.len() < IDLE_PER_PARENT_MAX {
            of_parent.push((stream, now));
            idle.count += 1;
        }
    }

    /// Closes what has been unused for too long.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut idle = self.idle.lock();
        idle.by_parent.retain(|_, streams| {
            streams.retain(|(_, since)| now.saturating_duration_since(*since) < self.idle_limit);
            !streams.is_empty()
        });
        idle.count = idle.by_parent.values().map(Vec::len).sum();
    }
}

/// Whether the connection is open and nothing has come on it: an end or unasked bytes make it useless.
fn is_quiet(stream: &TcpStream) -> bool {
    let peeked = rustix::net::recv(
        stream,
        &mut [0u8; 1][..],
        RecvFlags::PEEK | RecvFlags::DONTWAIT,
    );
    matches!(peeked, Err(Errno::AGAIN))
}

/// Receive buffers for the next fetches.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    /// A buffer of [`BUFFER_LEN`] bytes; what is in it is left from earlier.
    pub(super) fn take(&self) -> Box<[u8]> {
        self.0
            .lock()
            .pop()
            .unwrap_or_else(|| vec![0; BUFFER_LEN].into())
    }

    pub(super) fn put(&self, buffer: Box<[u8]>) {
        let mut kept = self.0.lock();
        if kept.len() < BUFFERS_KEPT_MAX {
            kept.push(buffer);
        }
    }
}
