//! Links: who sends which quantum next, and when it arrives.

use std::time::Duration;

use protocol::PieceNumber;
use swarm::{ChildId, SlotsEvent, StageEvent, UploadId};

use super::host::Upload;
use super::{Event, Message, QUANTUM, World};

/// Bytes of one upload on their way at most.
const WINDOW: u64 = 512 << 10;

impl World {
    /// Starts the next quantum of the host's uplink, if it is idle and there is one.
    pub(super) fn pump(&mut self, host: usize) {
        let sender = &self.hosts[host];
        if sender.uplink_busy || !sender.alive || sender.frozen {
            return;
        }
        let count = sender.uploads.len();
        let ready = |at: &usize| {
            let upload = &sender.uploads[*at];
            upload.serving && upload.on_the_way < WINDOW && self.available(host, upload) > 0
        };
        let Some(at) = (0..count)
            .map(|step| (sender.turn + step) % count)
            .find(ready)
        else {
            return;
        };
        let bytes = QUANTUM.min(self.available(host, &sender.uploads[at]));
        let took = Duration::from_secs_f64(bytes as f64 / sender.up);
        let upload = &mut self.hosts[host].uploads[at];
        upload.sent += bytes;
        upload.on_the_way += bytes;
        let upload = upload.clone();
        let over = upload.sent == upload.length;
        self.report.sent[host] += bytes;
        self.hosts[host].turn = at + 1;
        self.hosts[host].uplink_busy = true;
        self.schedule(self.now + took, Event::UplinkFree { host });
        self.arrive(host, &upload, bytes, self.now + took);
        if let Some(slots) = &mut self.hosts[host].slots {
            slots.handle(
                self.now,
                SlotsEvent::Sent {
                    upload: UploadId(upload.id),
                    bytes: upload.sent,
                },
            );
        }
        if over {
            self.hosts[host].turn = at;
            self.end_upload(host, at, true);
            self.poke(host);
        }
    }

    /// Puts a quantum into the receiver's downlink.
    fn arrive(&mut self, from: usize, upload: &Upload, bytes: u64, sent_at: Duration) {
        let to = upload.child;
        let child = &mut self.hosts[to];
        let took = Duration::from_secs_f64(bytes as f64 / child.down);
        // A quantum is received while it is sent: a downlink as fast as the uplink adds no time.
        let start = (sent_at + self.scene.delay).max(child.downlink_free + took);
        child.downlink_free = start;
        self.schedule(
            start,
            Event::Delivered {
                from,
                to,
                request: upload.request,
                bytes,
            },
        );
    }

    /// Bytes that the upload could send now.
    fn available(&self, host: usize, upload: &Upload) -> u64 {
        let from = upload.offset + upload.sent;
        self.prefix(host, upload.piece, from)
            .min(upload.offset + upload.length - from)
    }

    /// Bytes of the piece that the host has from `from` on without a gap.
    pub(super) fn prefix(&self, host: usize, piece: u32, from: u64) -> u64 {
        let number = PieceNumber(piece);
        let mut at = from;
        while let Some(segment) = self.geometry.segment_at(number, at) {
            let span = self.geometry.segment(segment).unwrap();
            let reached = span.offset + self.hosts[host].reached[segment.0 as usize];
            at = at.max(reached);
            if reached < span.offset + span.length {
                break;
            }
        }
        at - from
    }

    pub(super) fn end_upload(&mut self, host: usize, at: usize, served: bool) {
        let sender = &mut self.hosts[host];
        let upload = sender.uploads.remove(at);
        let (child, piece, offset) = (
            ChildId(upload.child as u64),
            PieceNumber(upload.piece),
            upload.offset,
        );
        if let Some(slots) = &mut sender.slots {
            slots.handle(
                self.now,
                SlotsEvent::Ended {
                    upload: UploadId(upload.id),
                },
            );
        }
        if let Some(stage) = &mut sender.stage
            && served
        {
            stage.handle(
                self.now,
                StageEvent::Served {
                    child,
                    piece,
                    offset,
                },
            );
        }
    }

    pub(super) fn delivered(&mut self, from: usize, to: usize, request: u64, bytes: u64) {
        if !self.hosts[to].alive || self.hosts[to].frozen {
            return;
        }
        self.schedule(
            self.now + self.scene.delay,
            Event::Acknowledged {
                from,
                to,
                request,
                bytes,
            },
        );
        let Some(at) = self.hosts[to]
            .requests
            .iter()
            .position(|r| r.id == request && r.parent == from)
        else {
            self.report.waste[to] += bytes;
            return;
        };
        let target = &mut self.hosts[to].requests[at];
        let (piece, offset) = (target.piece, target.offset + target.received);
        target.received += bytes;
        assert!(target.received <= target.length, "more bytes than asked");
        let (received, over) = (target.received, target.received == target.length);
        self.hosts[to].progress(self.now, request, received, over);
        self.stored(to, piece, offset, bytes);
        if over {
            self.hosts[to].requests.retain(|other| other.id != request);
        }
        self.poke(to);
        self.pump(to);
    }

    pub(super) fn acknowledged(&mut self, from: usize, to: usize, request: u64, bytes: u64) {
        let upload = self.hosts[from]
            .uploads
            .iter_mut()
            .find(|u| u.child == to && u.request == request);
        if let Some(upload) = upload {
            upload.on_the_way -= bytes;
            self.pump(from);
        }
    }

    /// Answers a request: starts, refuses or queues it.
    pub(super) fn asked(&mut self, host: usize, child: usize, upload: Upload) {
        let request = upload.request;
        if self.prefix(host, upload.piece, upload.offset) == 0 {
            self.report.not_ahead += 1;
            self.send(host, child, Message::NotAhead { request });
            return;
        }
        let kind = self.hosts[child].speaks.child();
        let id = UploadId(upload.id);
        let parent = &mut self.hosts[host];
        parent.uploads.push(upload);
        match &mut parent.slots {
            Some(slots) => slots.handle(
                self.now,
                SlotsEvent::Asked {
                    upload: id,
                    child: ChildId(child as u64),
                    kind,
                },
            ),
            None => parent.uploads.last_mut().unwrap().serving = true,
        }
    }
}
