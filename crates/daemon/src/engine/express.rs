//! A short part of a content, brought ahead of the piece that it lies in.
//!
//! Who reads short parts here and there, as a lazily loading snapshotter does, waits for each of them. The piece around a part is
//! many times longer, and its bytes come from the front. So the part itself is asked of a neighbour that holds the piece, by a
//! request of its own, and the session lets the pieces wait as long as such parts are read ([`Lull`]). The bytes stay in memory, for
//! the one who asked: the store takes whole pieces, whose digests are known. They cross the network a second time with their piece.
//!
//! When nobody can give the part at once, nothing is lost: the reader says where it stands, and its piece comes the usual way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use protocol::{ByteRange, PieceNumber, TaskId, TrafficType};
use storage::{Lookup, Task};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;
use transfer::{CancelHandle, FetchRequest, Limits, Sink, SinkError, Wanted};

use super::Inner;
use crate::link::Link;

/// Longest part that is brought this way: longer ones gain little, and would cross the network twice.
const PART_MAX: u64 = 1 << 20;
/// A piece whose bytes have come so close to the part will be there as soon.
const NEAR: u64 = 1 << 20;
/// Whoever does not answer, or send on, for this long is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Neighbours that are asked, one after the other.
const ATTEMPTS: usize = 2;

/// A part on its way.
#[derive(Debug)]
pub(super) struct Express {
    coming: oneshot::Receiver<Option<Bytes>>,
}

impl Express {
    /// Asks for `part` if that is worth it: it is short, it is not as good as here, and a neighbour is known to hold its pieces.
    pub(super) fn start(engine: &Arc<Inner>, task: &Task, part: ByteRange) -> Option<Self> {
        if part.length == 0 || part.length > PART_MAX {
            return None;
        }
        let links = engine.hub.existing(task.id())?;
        let errands: Vec<Errand> = task
            .geometry()
            .pieces_of(part)
            .ok()?
            .map(|span| {
                let start = part.start.max(span.offset);
                let end = part.end().min(span.offset + span.length);
                let errand = Errand {
                    piece: span.number,
                    offset: start - span.offset,
                    length: end - start,
                    holders: links.holders(span.number),
                };
                (!errand.holders.is_empty() && !errand.is_near(task)).then_some(errand)
            })
            .collect::<Option<_>>()?;
        let (arrived, coming) = oneshot::channel();
        let (engine, task_id) = (engine.clone(), task.id().clone());
        let tasks = engine.tasks.clone();
        tasks.spawn(async move {
            let mut arrived = arrived;
            let errands = errands
                .into_iter()
                .map(|errand| errand.run(&engine, &task_id));
            let parts = tokio::select! {
                biased;
                () = engine.cancel.cancelled() => None,
                // Nobody waits for it any more; the requests end with this.
                () = arrived.closed() => None,
                parts = try_join_all(errands) => parts.ok(),
            };
            let _ = arrived.send(parts.map(|parts| match parts.len() {
                1 => Bytes::from_owner(parts.into_iter().next().unwrap_or_default()),
                _ => Bytes::from_owner(parts.concat()),
            }));
        });
        Some(Self { coming })
    }

    /// The bytes; nothing if they did not come. Cancel-safe.
    pub(super) async fn bytes(&mut self) -> Option<Bytes> {
        (&mut self.coming).await.ok().flatten()
    }
}

/// The part that lies in one piece.
struct Errand {
    piece: PieceNumber,
    /// Within the piece.
    offset: u64,
    length: u64,
    holders: Vec<Arc<Link>>,
}

impl Errand {
    /// Whether the bytes are here, or just about to come the usual way.
    fn is_near(&self, task: &Task) -> bool {
        match task.piece(self.piece) {
            Ok(Lookup::Missing) => false,
            Ok(Lookup::Arriving(view)) => {
                let from = self.offset.saturating_sub(NEAR);
                view.ready(from).is_ok_and(|ready| ready > 0)
            }
            // Also one that is only to be verified.
            _ => true,
        }
    }

    /// # Errors
    /// Nobody gave it; why is in the log.
    async fn run(mut self, engine: &Arc<Inner>, task_id: &TaskId) -> Result<Vec<u8>, ()> {
        fastrand::shuffle(&mut self.holders);
        for link in self.holders.iter().take(ATTEMPTS) {
            let asked = Instant::now();
            let request = FetchRequest {
                parent: link.piece_addr,
                wanted: Wanted::Segment {
                    link_token: link.our_token,
                    task_id: task_id.clone(),
                    piece: self.piece,
                    offset: self.offset,
                    length: self.length,
                },
                limits: Limits {
                    head: PATIENCE,
                    stall: PATIENCE,
                    content: PATIENCE * 4,
                },
            };
            let sink = Collect(Vec::new());
            let client = &engine.parts.client;
            let outcome = client.fetch(request, sink, CancelHandle::new()).await;
            match outcome.result {
                Ok(()) => {
                    let bytes = outcome.sink.0;
                    engine.parts.metrics.piece_downloaded(
                        TrafficType::RemotePeer,
                        bytes.len() as u64,
                        asked.elapsed(),
                    );
                    return Ok(bytes);
                }
                Err(error) => {
                    let host_id = &link.host_id;
                    debug!(%task_id, piece = self.piece.0, %host_id, %error, "part not given");
                }
            }
        }
        Err(())
    }
}

/// Keeps what comes. The transfer never hands on more than was wanted.
struct Collect(Vec<u8>);

impl Sink for Collect {
    fn write(&mut self, _offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// While parts are read this way, the pieces around them wait: they would take the line, and the processor, from the next part.
///
/// They wait for a moment after each part, but in all only for so long; from then on they come one at a time.
#[derive(Debug, Default)]
pub(super) struct Lull {
    began: Option<Instant>,
    last: Option<Instant>,
}

impl Lull {
    /// How long after a part.
    const MOMENT: Duration = Duration::from_millis(100);
    /// How long in all.
    const MAX: Duration = Duration::from_secs(2);

    /// A part is being read.
    pub(super) fn part_read(&mut self, now: Instant) {
        if !self.lasts(now) {
            self.began = Some(now);
        }
        self.last = Some(now);
    }

    /// Somebody waits for the pieces themselves.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    fn lasts(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now < last + Self::MOMENT)
    }

    /// Most requests for pieces now, if there is a limit.
    pub(super) fn requests_max(&self, now: Instant) -> Option<usize> {
        let began = self.began.filter(|_| self.lasts(now))?;
        Some(usize::from(now >= began + Self::MAX))
    }

    /// When the answer changes by itself.
    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        let began = self.began.filter(|_| self.lasts(now))?;
        let over = self.last? + Self::MOMENT;
        let enough = began + Self::MAX;
        Some(if enough > now { over.min(enough) } else { over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_or_about_to_come_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let options = storage::Options {
            headroom: 0,
            ..storage::Options::default()
        };
        let store = storage::Store::open(folder.path(), options).unwrap();
        let geometry = protocol::Geometry::new(1 << 30, 4 << 20).unwrap();
        let id = "task-of-parts".parse().unwrap();
        let new = storage::NewTask::new(id, protocol::TaskKind::Standard, "http://o/f", geometry);
        let task = store.create_task(new).unwrap().task;
        let piece = PieceNumber(1);
        let near = |offset| {
            Errand {
                piece,
                offset,
                length: 1000,
                holders: Vec::new(),
            }
            .is_near(&task)
        };
        assert!(!near(0) && !near(3 << 20), "nothing of the piece is here");
        let storage::Claim::Yours(writer) = task.claim(piece).unwrap() else {
            panic!("nobody else writes")
        };
        assert!(!near(0), "nobody has sent a byte yet");
        writer.write(0, &vec![1; 200 << 10]).unwrap();
        // Who reads one part after the other is served by the piece.
        assert!(near(128 << 10) && near(1 << 20));
        assert!(!near(3 << 20), "far behind what has come");
        writer.write(200 << 10, &vec![1; 2 << 20]).unwrap();
        assert!(near(3 << 20));
    }

    #[test]
    fn pieces_wait_for_readers_of_parts_but_not_for_ever() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut lull = Lull::default();
        assert_eq!(
            (lull.requests_max(at(0)), lull.next_change(at(0))),
            (None, None)
        );

        lull.part_read(at(0));
        assert_eq!(lull.requests_max(at(99)), Some(0));
        assert_eq!(lull.next_change(at(10)), Some(at(100)));
        assert_eq!(lull.requests_max(at(100)), None, "nobody reads any more");

        for ms in (200..4000).step_by(50) {
            lull.part_read(at(ms));
            let most = usize::from(ms >= 2200);
            assert_eq!(
                lull.requests_max(at(ms + 10)),
                Some(most.min(usize::from(ms + 10 >= 2200)))
            );
        }
        assert_eq!(lull.next_change(at(3960)), Some(at(4050)));
        // A pause begins anew.
        lull.part_read(at(5000));
        assert_eq!(lull.requests_max(at(5001)), Some(0));

        lull.end();
        assert_eq!(lull.requests_max(at(5002)), None);
    }
}
