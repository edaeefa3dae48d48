//! Showing a download as it happens: on a terminal a picture that is drawn over and over, elsewhere plain lines.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::progress::{Giver, Standing};
use super::summary::size;

/// Cells of a progress bar.
const BAR_WIDTH: usize = 40;
/// Time between two lines about progress where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(1);

const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const GREEN: &str = "\u{1b}[32m";
const DIM: &str = "\u{1b}[2m";
const PLAIN: &str = "\u{1b}[0m";

/// Where the demo talks to people.
pub(super) struct View {
    out: Box<dyn Write + Send>,
    live: bool,
    /// Lines of the picture on the screen, which the next one covers.
    drawn: usize,
    last_line: Option<Instant>,
}

/// One moment of a download.
pub(super) struct Moment<'a> {
    pub(super) elapsed: Duration,
    /// Names of the peers.
    pub(super) names: &'a [&'a str],
    pub(super) standing: Standing,
}

impl View {
    /// Standard output, or standard error if standard output is for the JSON.
    pub(super) fn new(json: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if json {
            Self::on(Box::new(io::stderr()), io::stderr().is_terminal() && !dumb)
        } else {
            Self::on(Box::new(io::stdout()), io::stdout().is_terminal() && !dumb)
        }
    }

    fn on(out: Box<dyn Write + Send>, live: bool) -> Self {
        Self {
            out,
            live,
            drawn: 0,
            last_line: None,
        }
    }

    /// Says one line for good. A reader that is gone is no reason to stop.
    pub(super) fn say(&mut self, line: &str) {
        self.drawn = 0;
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    /// Shows a moment; without a terminal at most one line a second.
    pub(super) fn show(&mut self, moment: &Moment<'_>) {
        if self.live {
            self.draw(&moment.picture());
        } else if self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_PAUSE)
        {
            self.last_line = Some(Instant::now());
            self.say(&moment.line());
        }
    }

    fn draw(&mut self, picture: &[String]) {
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\u{1b}[{}F", self.drawn));
        }
        for line in picture {
            // Without wrapping (DECAWM off), so that a narrow terminal cuts lines instead of counting them twice.
            text.push_str(&format!("\u{1b}[?7l{line}\u{1b}[K\u{1b}[?7h\n"));
        }
        text.push_str("\u{1b}[J");
        self.drawn = picture.len();
        let _ = self
            .out
            .write_all(text.as_bytes())
            .and_then(|()| self.out.flush());
    }
}

impl Moment<'_> {
    /// Length of the file; 0 while nobody knows it.
    fn file_bytes(&self) -> u64 {
        self.standing
            .peers
            .iter()
            .find_map(|peer| peer.file_bytes)
            .unwrap_or(0)
    }

    fn picture(&self) -> Vec<String> {
        let total = self.file_bytes();
        let mut lines = vec![format!(
            "{:5.1} s   {RED}█{PLAIN} from the origin  {YELLOW}█{PLAIN} from the seed  {GREEN}█{PLAIN} from peers",
            self.elapsed.as_secs_f64()
        )];
        let seed = bar(total, [self.standing.seed_bytes, 0, 0]);
        lines.push(format!(
            "{:<10} {seed} {:>4}",
            "seed",
            percent(self.standing.seed_bytes, total)
        ));
        for (name, peer) in self.names.iter().zip(&self.standing.peers) {
            let parts = [
                peer.bytes_from(Giver::Origin),
                peer.bytes_from(Giver::Seed),
                peer.bytes_from_peers(),
            ];
            let share = percent(peer.bytes(), total);
            lines.push(format!(
                "{name:<10} {} {share:>4}  {}",
                bar(total, parts),
                size(peer.bytes())
            ));
        }
        lines.push(String::new());
        lines.extend(self.graph());
        lines
    }

    /// Who gave how much of the file to whom: one line per giver, the picture of the swarm's edges.
    fn graph(&self) -> Vec<String> {
        let total = self.file_bytes();
        let givers = [Giver::Origin, Giver::Seed]
            .into_iter()
            .chain((0..self.standing.peers.len()).map(Giver::Peer));
        let mut lines = Vec::new();
        for giver in givers {
            let mut edges: Vec<String> = self
                .names
                .iter()
                .zip(&self.standing.peers)
                .map(|(name, peer)| (name, peer.bytes_from(giver)))
                .filter(|(_, bytes)| *bytes > 0)
                .map(|(name, bytes)| format!("{name} {}", percent(bytes, total)))
                .collect();
            if giver == Giver::Origin && self.standing.seed_bytes > 0 {
                edges.insert(
                    0,
                    format!("seed {}", percent(self.standing.seed_bytes, total)),
                );
            }
            if !edges.is_empty() {
                lines.push(format!(
                    "{:>10} {DIM}──▶{PLAIN} {}",
                    self.name_of(giver),
                    edges.join(&format!(" {DIM}·{PLAIN} "))
                ));
            }
        }
        lines
    }

    fn name_of(&self, giver: Giver) -> &str {
        match giver {
            Giver::Origin => "origin",
            Giver::Seed => "seed",
            Giver::Peer(index) => self.names.get(index).copied().unwrap_or("?"),
        }
    }

    fn line(&self) -> String {
        let total = self.file_bytes();
        let peers = self
            .names
            .iter()
            .zip(&self.standing.peers)
            .map(|(name, peer)| {
                format!(
                    "{name} {} (origin {}, seed {}, peers {})",
                    percent(peer.bytes(), total),
                    percent(peer.bytes_from(Giver::Origin), total),
                    percent(peer.bytes_from(Giver::Seed), total),
                    percent(peer.bytes_from_peers(), total),
                )
            });
        let all: Vec<String> =
            std::iter::once(format!("seed {}", percent(self.standing.seed_bytes, total)))
                .chain(peers)
                .collect();
        format!("{:.1} s: {}", self.elapsed.as_secs_f64(), all.join("; "))
    }
}

/// A bar whose colours are the givers (origin, seed, peers), in this order.
fn bar(total: u64, parts: [u64; 3]) -> String {
    let mut text = String::new();
    let mut bytes = 0;
    let mut filled = 0;
    for (part, colour) in parts.into_iter().zip([RED, YELLOW, GREEN]) {
        bytes += part;
        // Cells are counted on the sums, so that rounding never adds one.
        let until = cells(bytes, total);
        text.push_str(colour);
        text.extend(std::iter::repeat_n('█', until.saturating_sub(filled)));
        filled = until.max(filled);
    }
    text.push_str(DIM);
    text.extend(std::iter::repeat_n('░', BAR_WIDTH - filled));
    text.push_str(PLAIN);
    text
}

fn cells(bytes: u64, total: u64) -> usize {
    let cells = u128::from(bytes) * BAR_WIDTH as u128 / u128::from(total.max(1));
    usize::try_from(cells).unwrap_or(BAR_WIDTH).min(BAR_WIDTH)
}

fn percent(bytes: u64, total: u64) -> String {
    format!("{}%", u128::from(bytes) * 100 / u128::from(total.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::progress::Progress;
    use std::collections::BTreeMap;

    fn moment() -> Moment<'static> {
        let standing = Standing {
            seed_bytes: 900,
            peers: peers(),
        };
        Moment {
            elapsed: Duration::from_millis(1500),
            names: &["peer-1", "peer-2"],
            standing,
        }
    }

    fn peers() -> Vec<Progress> {
        let from = [
            BTreeMap::from([(Giver::Seed, 500), (Giver::Peer(1), 250)]),
            BTreeMap::from([(Giver::Origin, 10), (Giver::Peer(0), 490)]),
        ];
        from.map(|from| Progress {
            file_bytes: Some(1000),
            from,
        })
        .into()
    }

    fn plain(text: &str) -> String {
        [RED, YELLOW, GREEN, DIM, PLAIN]
            .iter()
            .fold(text.to_owned(), |text, colour| text.replace(colour, ""))
    }

    #[test]
    fn a_bar_has_its_width_whatever_the_parts() {
        for parts in [
            [0, 0, 0],
            [1, 1, 1],
            [333, 333, 334],
            [1000, 0, 0],
            [0, 999, 5000],
        ] {
            assert_eq!(
                plain(&bar(1000, parts)).chars().count(),
                BAR_WIDTH,
                "{parts:?}"
            );
        }
        assert_eq!(plain(&bar(0, [0, 0, 0])), "░".repeat(BAR_WIDTH));
    }

    #[test]
    fn the_graph_shows_each_giver_with_its_children() {
        let graph: Vec<String> = moment()
            .graph()
            .iter()
            .map(|line| plain(line).trim().to_owned())
            .collect();
        let expected = [
            "origin ──▶ seed 90% · peer-2 1%",
            "seed ──▶ peer-1 50%",
            "peer-1 ──▶ peer-2 49%",
            "peer-2 ──▶ peer-1 25%",
        ];
        assert_eq!(graph, expected);
    }

    #[test]
    fn the_plain_line_has_no_colours() {
        assert_eq!(
            moment().line(),
            "1.5 s: seed 90%; peer-1 75% (origin 0%, seed 50%, peers 25%); peer-2 50% (origin 1%, seed 0%, peers 49%)"
        );
    }
}
