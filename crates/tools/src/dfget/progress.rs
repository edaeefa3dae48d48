//! How it goes: a bar for one file; for many a total line with the few that are under way, redrawn a few times a second however many
//! there are. Where standard error is no terminal, a plain line now and then.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::MissedTickBehavior;

use super::arguments::Arguments;
use crate::table;

/// How often the lines of many files are redrawn on a terminal.
const REDRAW: Duration = Duration::from_millis(125);
/// How often a line is printed where there is no terminal.
const PLAIN_LINE: Duration = Duration::from_secs(5);
/// Most files under way that are named: the total must stay in sight.
const ACTIVE_SHOWN_MAX: usize = 6;
/// Longest name in the list, in characters.
const NAME_LEN_MAX: usize = 60;

/// The progress of one file.
#[derive(Debug)]
pub(super) enum Progress<'a> {
    /// Has the terminal for itself.
    Alone(Bar),
    /// One of many.
    Among(&'a Board, usize),
}

impl Progress<'_> {
    /// Of the only file, whose URL has this path.
    pub(super) fn alone(arguments: &Arguments, path: &str) -> Self {
        let visible = !arguments.no_progress && std::io::stderr().is_terminal();
        Self::Alone(Bar {
            title: visible.then(|| title_of(path)),
            bar: OnceCell::new(),
        })
    }

    /// The length is known.
    pub(super) fn begin(&self, length: u64) {
        match self {
            Self::Alone(bar) => bar.begin(length),
            Self::Among(board, file) => board.begin(*file, length),
        }
    }

    /// More bytes are there.
    pub(super) fn add(&self, bytes: u64) {
        match self {
            Self::Alone(bar) => bar.add(bytes),
            Self::Among(board, file) => board.add(*file, bytes),
        }
    }

    /// All bytes are there; the summary takes the place of a bar.
    pub(super) fn end(&self) {
        if let Self::Alone(bar) = self {
            bar.end();
        }
    }
}

/// The bar of one file; nothing where there is no terminal.
#[derive(Debug)]
pub(super) struct Bar {
    title: Option<String>,
    bar: OnceCell<ProgressBar>,
}

impl Bar {
    fn begin(&self, content_length: u64) {
        let Some(title) = &self.title else { return };
        let bar = self.bar.get_or_init(|| {
            let bar =
                ProgressBar::with_draw_target(Some(content_length), ProgressDrawTarget::stderr());
            let template =
                "{wide_msg:.bold}\n{elapsed} [{wide_bar}] {percent:>3} % {bytes_per_sec} ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=>-"));
            }
            bar
        });
        bar.set_message(title.clone());
    }

    fn add(&self, bytes: u64) {
        if let Some(bar) = self.bar.get() {
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

/// The progress of many files. Counting costs no drawing: [`Board::draw`] looks at it now and then.
#[derive(Debug)]
pub(super) struct Board {
    state: RefCell<State>,
    began: Instant,
    files: usize,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Terminal(ProgressBar),
    Lines,
    None,
}

#[derive(Debug, Default)]
struct State {
    done: usize,
    failed: usize,
    bytes: u64,
    active: BTreeMap<usize, Active>,
}

#[derive(Debug)]
struct Active {
    name: String,
    length: Option<u64>,
    received: u64,
}

impl Board {
    pub(super) fn new(arguments: &Arguments, files: usize) -> Self {
        let display = match (arguments.no_progress, std::io::stderr().is_terminal()) {
            (true, _) => Display::None,
            (false, false) => Display::Lines,
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                if let Ok(style) = ProgressStyle::with_template("{msg}") {
                    bar.set_style(style);
                }
                Display::Terminal(bar)
            }
        };
        Self {
            state: RefCell::default(),
            began: Instant::now(),
            files,
            display,
        }
    }

    /// A file is begun; the name is told as long as it is under way.
    pub(super) fn start(&self, file: usize, name: &str) {
        let active = Active {
            name: match self.display {
                Display::Terminal(_) => shortened(&table::harmless(name)),
                _ => String::new(),
            },
            length: None,
            received: 0,
        };
        self.state.borrow_mut().active.insert(file, active);
    }

    /// A file has come to its end.
    pub(super) fn finish(&self, file: usize, failed: bool) {
        let mut state = self.state.borrow_mut();
        state.active.remove(&file);
        state.done += usize::from(!failed);
        state.failed += usize::from(failed);
    }

    fn begin(&self, file: usize, length: u64) {
        if let Some(active) = self.state.borrow_mut().active.get_mut(&file) {
            // Again when it is taken over the socket after all.
            active.received = 0;
            active.length = Some(length);
        }
    }

    fn add(&self, file: usize, bytes: u64) {
        let mut state = self.state.borrow_mut();
        state.bytes += bytes;
        if let Some(active) = state.active.get_mut(&file) {
            active.received += bytes;
        }
    }

    /// Draws until it is dropped.
    pub(super) async fn draw(&self) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(match self.display {
            Display::Terminal(_) => REDRAW,
            _ => PLAIN_LINE,
        });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let state = self.state.borrow();
            match &self.display {
                Display::Terminal(bar) => bar.set_message(self.lines(&state)),
                Display::Lines => eprintln!("dfget: {}", self.total(&state)),
                Display::None => {}
            }
        }
    }

    /// As `12 of 1000 files, 1 failed, 3.4 MiB, 1.2 MiB/s`.
    fn total(&self, state: &State) -> String {
        let mut total = format!("{} of {} files", state.done, self.files);
        if state.failed > 0 {
            total.push_str(&format!(", {} failed", state.failed));
        }
        total.push_str(&format!(", {}", table::bytes(state.bytes)));
        let millis = self.began.elapsed().as_millis().max(1);
        let rate = u128::from(state.bytes) * 1000 / millis;
        let rate = table::bytes(u64::try_from(rate).unwrap_or(u64::MAX));
        total.push_str(&format!(", {rate}/s"));
        total
    }

    fn lines(&self, state: &State) -> String {
        let mut lines = self.total(state);
        for active in state.active.values().take(ACTIVE_SHOWN_MAX) {
            let received = table::bytes(active.received);
            let of = match active.length {
                Some(length) => format!("{received} of {}", table::bytes(length)),
                None => "asking".to_owned(),
            };
            lines.push_str(&format!("\n  {}: {of}", active.name));
        }
        if let Some(more) = state.active.len().checked_sub(ACTIVE_SHOWN_MAX + 1) {
            lines.push_str(&format!("\n  and {} more", more + 1));
        }
        lines
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Display::Terminal(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

/// The end of a long name: there it differs from its neighbours.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME_LEN_MAX {
        return name.to_owned();
    }
    let tail = name.chars().skip(count - NAME_LEN_MAX + 1);
    std::iter::once('…').chain(tail).collect()
}

/// The decoded path, without what could play tricks on the terminal.
fn title_of(path: &str) -> String {
    let decoded: Cow<'_, str> = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    table::harmless(&decoded)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_title_cannot_move_the_cursor() {
        assert_eq!(title_of("/a%20b/%1b%5b2Jx"), "/a b/[2Jx");
    }

    #[test]
    fn many_files_take_few_lines() {
        let arguments =
            Arguments::try_parse_from(["dfget", "-r", "http://h/d/", "-O", "/tmp"]).unwrap();
        let board = Board::new(&arguments, 1000);
        for file in 0..50 {
            board.start(file, "x");
        }
        board.begin(0, 2048);
        board.add(0, 1024);
        board.finish(49, true);
        board.finish(48, false);
        let state = board.state.borrow();
        let lines = board.lines(&state);
        assert!(
            lines.starts_with("1 of 1000 files, 1 failed, 1.0 KiB, "),
            "{lines}"
        );
        assert!(lines.contains("1.0 KiB of 2.0 KiB"), "{lines}");
        assert!(lines.ends_with("and 42 more"), "{lines}");
        assert_eq!(lines.lines().count(), ACTIVE_SHOWN_MAX + 2);
    }

    #[test]
    fn long_names_keep_their_end() {
        let name = format!("{}/model.bin", "d".repeat(100));
        let short = shortened(&name);
        assert_eq!(short.chars().count(), NAME_LEN_MAX);
        assert!(short.starts_with('…') && short.ends_with("d/model.bin"));
    }
}
