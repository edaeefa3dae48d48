//! The outcome of a demo: as text for people, as JSON for programs, and whether everything held.

use serde::Serialize;

/// Most that may be read from the origin, in thousandths of the file's length.
const ORIGIN_PER_MILLE_MAX: u64 = 1010;

/// Everything that is told at the end. Its JSON form is an interface: names and units stay.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Summary {
    /// Whether everything held: all downloads succeeded, all files are equal, and the origin was read once.
    pub(super) ok: bool,
    /// Length of the file.
    pub(super) file_bytes: u64,
    /// Bytes read from the origin by all hosts together.
    pub(super) origin_bytes: u64,
    /// One entry per peer.
    pub(super) peers: Vec<PeerSummary>,
    /// One entry per process.
    pub(super) processes: Vec<ProcessSummary>,
    /// What did not hold; absent if everything did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct PeerSummary {
    pub(super) name: String,
    /// From the start of dfget to its end.
    pub(super) seconds: f64,
    /// Digest of the file that dfget left; empty if there is none.
    pub(super) sha256: String,
    pub(super) bytes_from: BytesFrom,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct BytesFrom {
    pub(super) origin: u64,
    pub(super) seed: u64,
    pub(super) peers: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct ProcessSummary {
    pub(super) name: String,
    pub(super) rss_mib_max: f64,
    pub(super) cpu_seconds: f64,
}

impl Summary {
    /// Adds what the figures themselves show to be wrong, and settles `ok`. `expected_sha256` is known for a generated file.
    pub(super) fn judge(mut self, expected_sha256: Option<&str>) -> Self {
        let files: Vec<&str> = self
            .peers
            .iter()
            .map(|peer| peer.sha256.as_str())
            .filter(|digest| !digest.is_empty())
            .collect();
        let expected = expected_sha256
            .or(files.first().copied())
            .unwrap_or_default();
        if files.iter().any(|digest| *digest != expected) {
            self.errors
                .push("the files of the peers are not equal to the origin's".to_owned());
        }
        if self.errors.is_empty()
            && self.origin_bytes > self.file_bytes.saturating_mul(ORIGIN_PER_MILLE_MAX) / 1000
        {
            let text = format!(
                "the origin was read {:.3} times, once is expected",
                self.origin_ratio()
            );
            self.errors.push(text);
        }
        self.ok = self.errors.is_empty();
        self
    }

    /// Origin bytes / file size.
    fn origin_ratio(&self) -> f64 {
        ratio(self.origin_bytes, self.file_bytes)
    }

    /// Share of the received bytes that came from the seed or other peers, in percent.
    fn shared_percent(&self) -> f64 {
        let shared: u64 = self
            .peers
            .iter()
            .map(|peer| peer.bytes_from.seed + peer.bytes_from.peers)
            .sum();
        let all: u64 = shared
            + self
                .peers
                .iter()
                .map(|peer| peer.bytes_from.origin)
                .sum::<u64>();
        100.0 * ratio(shared, all)
    }

    /// The lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<12} {:>9} {:>11} {:>11} {:>11}  SHA-256",
            "peer", "seconds", "origin", "seed", "peers"
        )];
        for peer in &self.peers {
            let BytesFrom {
                origin,
                seed,
                peers,
            } = peer.bytes_from;
            lines.push(format!(
                "{:<12} {:>9.3} {:>11} {:>11} {:>11}  {}",
                peer.name,
                peer.seconds,
                size(origin),
                size(seed),
                size(peers),
                peer.sha256
                    .get(..16)
                    .map_or("-".to_owned(), |start| format!("{start}…")),
            ));
        }
        lines.push(String::new());
        lines.push(format!(
            "{:<16} {:>12} {:>12}",
            "process", "memory max", "CPU"
        ));
        for process in &self.processes {
            let ProcessSummary {
                name,
                rss_mib_max,
                cpu_seconds,
            } = process;
            lines.push(format!(
                "{name:<16} {rss_mib_max:>8.1} MiB {cpu_seconds:>10.2} s"
            ));
        }
        lines.push(String::new());
        lines.push(format!(
            "file {}, read from the origin {} = {:.3} times; {:.1} % of the bytes came peer to peer",
            size(self.file_bytes),
            size(self.origin_bytes),
            self.origin_ratio(),
            self.shared_percent(),
        ));
        lines.extend(self.errors.iter().map(|error| format!("FAILED: {error}")));
        if self.ok {
            lines.push("OK: every peer has the same file, and the origin was read once".to_owned());
        }
        lines
    }
}

/// A size as people read it.
pub(super) fn size(bytes: u64) -> String {
    runtime::config::ByteSize::b(bytes).to_string()
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(digests: [&str; 2], origin_bytes: u64) -> Summary {
        let peer = |sha256: &str| PeerSummary {
            name: "peer-1".into(),
            seconds: 1.5,
            sha256: sha256.into(),
            bytes_from: BytesFrom {
                origin: 0,
                seed: 600,
                peers: 400,
            },
        };
        Summary {
            ok: false,
            file_bytes: 1000,
            origin_bytes,
            peers: digests.map(peer).into(),
            processes: vec![ProcessSummary {
                name: "seed".into(),
                rss_mib_max: 12.5,
                cpu_seconds: 0.5,
            }],
            errors: vec![],
        }
    }

    #[test]
    fn it_holds_only_if_all_files_are_equal_and_the_origin_is_read_once() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        assert!(summary([&a, &a], 1010).judge(Some(&a)).ok);
        assert!(summary([&a, &a], 1010).judge(None).ok);
        assert!(!summary([&a, &a], 1011).judge(Some(&a)).ok);
        assert!(!summary([&a, &b], 1000).judge(None).ok);
        assert!(!summary([&a, &a], 1000).judge(Some(&b)).ok);
    }

    #[test]
    fn the_json_has_the_agreed_names() {
        let digest = "a".repeat(64);
        let json = serde_json::to_value(summary([&digest, &digest], 1000).judge(None)).unwrap();
        let expected = serde_json::json!({
            "ok": true, "file_bytes": 1000, "origin_bytes": 1000,
            "peers": [
                {"name": "peer-1", "seconds": 1.5, "sha256": digest, "bytes_from": {"origin": 0, "seed": 600, "peers": 400}},
                {"name": "peer-1", "seconds": 1.5, "sha256": digest, "bytes_from": {"origin": 0, "seed": 600, "peers": 400}},
            ],
            "processes": [{"name": "seed", "rss_mib_max": 12.5, "cpu_seconds": 0.5}],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_text_says_what_failed() {
        let lines = summary(["a", "b"], 1000).judge(None).lines();
        assert!(
            lines.iter().any(|line| line.starts_with("FAILED: ")),
            "{lines:?}"
        );
    }
}
