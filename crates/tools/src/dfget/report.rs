//! Telling the user how it goes and how it went.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::io::IsTerminal;
use std::time::Duration;

use bytesize::ByteSize;
use dragonfly_api::common::v2::{Piece, TrafficType};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::arguments::Arguments;
use super::destination::Destination;
use super::receive::Received;
use crate::program::Report;

/// A finished download.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The task's id.
    pub task_id: String,
    /// This host's part in it.
    pub peer_id: String,
    /// Where the file is; `-` for standard output.
    pub output: String,
    /// Length of the file.
    pub bytes: u64,
    /// From the start of the process's work to the end of the download.
    pub seconds: f64,
    /// Digest in lower-case hex, if one of this kind was asked for and so is known to be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where the bytes came from.
    pub bytes_from: BytesFrom,
}

/// Bytes by where the daemon had them from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BytesFrom {
    /// Fetched from the origin by the daemon of this host.
    pub origin: u64,
    /// From seed peers.
    pub seed: u64,
    /// From other peers.
    pub peers: u64,
    /// The daemon had them already.
    pub local: u64,
}

impl BytesFrom {
    /// Counts a finished piece. The traffic type tells peers from the origin; whether a peer is a seed stands at the end of its id.
    pub(super) fn add(&mut self, piece: &Piece) {
        let kind = piece
            .traffic_type
            .and_then(|kind| TrafficType::try_from(kind).ok());
        let is_seed = piece
            .parent_id
            .as_deref()
            .is_some_and(|parent| parent.ends_with("-seed"));
        let count = match kind {
            Some(TrafficType::BackToSource) => &mut self.origin,
            Some(TrafficType::LocalPeer) => &mut self.local,
            Some(TrafficType::RemotePeer) if is_seed => &mut self.seed,
            Some(TrafficType::RemotePeer) => &mut self.peers,
            None => return,
        };
        *count += piece.length;
    }

    /// As `peers 75 %, origin 25 %`, the largest first; empty if nothing is known.
    fn shares(self) -> String {
        let total = self.origin + self.seed + self.peers + self.local;
        let mut shares = [
            ("origin", self.origin),
            ("seed", self.seed),
            ("peers", self.peers),
            ("local", self.local),
        ];
        shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let shares = shares.iter().filter(|&&(_, bytes)| bytes > 0);
        let texts: Vec<String> = shares
            .map(|(name, bytes)| format!("{name} {} %", rounded_percent(*bytes, total)))
            .collect();
        texts.join(", ")
    }
}

impl Summary {
    pub(super) fn new(received: Received, destination: &Destination, elapsed: Duration) -> Self {
        let sha256 = match received.digest {
            Some(digest @ protocol::Digest::Sha256(_)) => Some(digest.encoded()),
            _ => None,
        };
        Self {
            task_id: received.task_id,
            peer_id: received.peer_id,
            output: destination.shown(),
            bytes: received.length,
            seconds: elapsed.as_secs_f64(),
            sha256,
            bytes_from: received.bytes_from,
        }
    }
}

impl Report for Summary {
    /// One line.
    fn text(&self) -> String {
        let size = ByteSize::b(self.bytes).display().iec();
        let mut line = format!("{}: {size} in {:.3} s", self.output, self.seconds);
        if self.bytes > 0 && self.seconds > 0.0 {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate for people"
            )]
            let rate = (self.bytes as f64 / self.seconds) as u64;
            line.push_str(&format!(", {}/s", ByteSize::b(rate).display().iec()));
        }
        let shares = self.bytes_from.shares();
        if !shares.is_empty() {
            line.push_str(&format!(", from {shares}"));
        }
        line
    }
}

/// The progress bar on a terminal, nothing elsewhere.
#[derive(Debug)]
pub(super) struct Progress {
    title: Option<String>,
    bar: OnceCell<ProgressBar>,
}

impl Progress {
    pub(super) fn new(arguments: &Arguments) -> Self {
        let visible = !arguments.no_progress && std::io::stderr().is_terminal();
        let title = visible.then(|| title_of(arguments.url.path()));
        Self {
            title,
            bar: OnceCell::new(),
        }
    }

    /// The length is known: draws the bar.
    pub(super) fn begin(&self, content_length: u64) {
        let Some(title) = &self.title else { return };
        let bar = self.bar.get_or_init(|| {
            let bar =
                ProgressBar::with_draw_target(Some(content_length), ProgressDrawTarget::stderr());
            let template =
                "{msg:.bold}\n{elapsed} [{bar:60}] {percent:>3} % {bytes_per_sec} ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=>-"));
            }
            bar
        });
        bar.set_message(title.clone());
    }

    /// More bytes are there.
    pub(super) fn add(&self, bytes: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(bytes);
        }
    }

    /// Takes the bar away; the summary takes its place.
    pub(super) fn end(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// The decoded path, without what could play tricks on the terminal.
fn title_of(path: &str) -> String {
    let decoded: Cow<'_, str> = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    decoded
        .chars()
        .filter(|c| !c.is_control())
        .take(256)
        .collect()
}

fn rounded_percent(part: u64, total: u64) -> u128 {
    (u128::from(part) * 100 + u128::from(total) / 2) / u128::from(total.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Told;

    fn piece(length: u64, kind: Option<TrafficType>, parent: Option<&str>) -> Piece {
        Piece {
            length,
            traffic_type: kind.map(Into::into),
            parent_id: parent.map(Into::into),
            ..Piece::default()
        }
    }

    fn summary() -> Summary {
        let mut bytes_from = BytesFrom::default();
        bytes_from.add(&piece(100, Some(TrafficType::BackToSource), None));
        bytes_from.add(&piece(
            200,
            Some(TrafficType::RemotePeer),
            Some("10.0.0.1-h-3f0c-seed"),
        ));
        bytes_from.add(&piece(
            700,
            Some(TrafficType::RemotePeer),
            Some("10.0.0.2-seed-h-3f0c"),
        ));
        bytes_from.add(&piece(24, Some(TrafficType::LocalPeer), None));
        bytes_from.add(&piece(9, None, None));
        Summary {
            task_id: "t".into(),
            peer_id: "p".into(),
            output: "/out".into(),
            bytes: 1024,
            seconds: 0.5,
            sha256: None,
            bytes_from,
        }
    }

    #[test]
    fn bytes_are_counted_by_where_they_came_from() {
        assert_eq!(
            summary().bytes_from,
            BytesFrom {
                origin: 100,
                seed: 200,
                peers: 700,
                local: 24
            }
        );
        assert_eq!(
            summary().text(),
            "/out: 1.0 KiB in 0.500 s, 2.0 KiB/s, from peers 68 %, seed 20 %, origin 10 %, local 2 %"
        );
    }

    #[test]
    fn the_json_has_the_fields_that_scripts_read() {
        let told = Told::new(&summary());
        let told: serde_json::Value = serde_json::from_str(told.json()).unwrap();
        assert_eq!(
            (told["ok"].as_bool(), told["bytes"].as_u64()),
            (Some(true), Some(1024))
        );
        assert_eq!(told["bytes_from"]["peers"], 700);
    }

    #[test]
    fn the_title_cannot_move_the_cursor() {
        assert_eq!(title_of("/a%20b/%1b%5b2Jx"), "/a b/[2Jx");
    }
}
