//! Kills a real writer process with SIGKILL at random instants and looks at what it left behind.
//!
//! The parent starts a copy of this program with `--writer`. The writer creates, fills, reads, deletes and re-creates tasks in a
//! store, from several threads, and says on its standard output what it has been told is done. After the kill the parent opens the
//! same folder and checks: **all** that was acknowledged is there, every piece that is called whole has the right
//! bytes, and no file is left that belongs to no task. The next writer goes on with what is there.
//!
//! A failure prints the seed; `CRASH_SEED` repeats it as far as the timing of a kill can be repeated.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::*;
use protocol::{Crc32, PieceNumber, TaskId};
use storage::{Claim, CreateError, Mark, Options, Store, Task, Verdict};

/// On a disk, where space is set aside, and in memory, where it is accounted for and rounds are quicker.
const ROUNDS_ON_DISK: u32 = 60;
const ROUNDS_IN_MEMORY: u32 = 200;
const NAMES: u64 = 12;
const KIB: u64 = 1 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, dir, seed] = &arguments[..]
        && flag == "--writer"
    {
        return write_until_killed(Path::new(dir), seed.parse().unwrap());
    }
    let seed = std::env::var("CRASH_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    for (dir, rounds) in [
        (folder(), ROUNDS_ON_DISK),
        (folder_in_memory(), ROUNDS_IN_MEMORY),
    ] {
        println!(
            "\nrunning {rounds} rounds of SIGKILL in {}, seed {seed}",
            dir.path().display()
        );
        let started = Instant::now();
        let seen = kill_and_look(dir.path(), rounds, seed);
        println!(
            "test result: ok. {seen:?} in {:.1} s\n",
            started.elapsed().as_secs_f32()
        );
    }
}

/// Room for about half of the tasks, so that creating one evicts others.
fn store_options() -> Options {
    Options {
        capacity: Some(3 << 20),
        ..options()
    }
}

/// How large the task of this name is: one piece or several, one segment per piece or several.
fn lengths(name: u64) -> (u64, u64) {
    match name % 4 {
        0 => (10_000 + name, 16 * KIB),
        1 => (300_000 + name, 32 * KIB),
        2 => (900_000 + name, 300 * KIB),
        _ => (500_000 + name, 500_000 + name),
    }
}

// ---- The writer ----

fn write_until_killed(dir: &Path, seed: u64) {
    let store = Store::open(dir, store_options()).unwrap();
    let out = Mutex::new(std::io::stdout());
    say(&out, "open");
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, out) = (&store, &out);
            scope.spawn(move || work(store, out, seed ^ (thread + 1)));
        }
    });
}

/// One system call per line, so a line is there as a whole or not at all.
fn say(out: &Mutex<std::io::Stdout>, line: &str) {
    let mut out = out.lock().unwrap();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

fn work(store: &Store, out: &Mutex<std::io::Stdout>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    loop {
        let name = random.u64(0..NAMES);
        let id = task_id(&name.to_string());
        if random.u8(0..10) == 0 {
            say(out, &format!("may-go {id}"));
            if store.delete(&id).unwrap().is_some() {
                say(out, &format!("gone {id}"));
            }
            continue;
        }
        let task = match store.task(&id).unwrap() {
            Some(task) => task,
            None => match create_task(store, out, name, random.u64(..)) {
                Some(task) => task,
                None => continue,
            },
        };
        fill_some(&task, out, &mut random);
    }
}

fn create_task(store: &Store, out: &Mutex<std::io::Stdout>, name: u64, life: u64) -> Option<Task> {
    let (content_length, piece_length) = lengths(name);
    say(out, "evicting");
    let mut new = new_task(&name.to_string(), content_length, piece_length);
    new.etag = Some(life.to_string());
    let created = store.create_task(new);
    let (task, evicted) = match created {
        Ok(admitted) => (Some(admitted.task), admitted.evicted),
        Err(CreateError::Exists { .. }) => (None, Vec::new()),
        Err(CreateError::NoSpace { evicted, .. }) => (None, evicted),
        Err(error) => panic!("{error}"),
    };
    for gone in evicted {
        say(out, &format!("gone {}", gone.id));
    }
    say(out, "evicted");
    task
}

fn fill_some(task: &Task, out: &Mutex<std::io::Stdout>, random: &mut fastrand::Rng) {
    for _ in 0..random.u32(1..6) {
        let piece = random.u32(0..task.geometry().piece_count());
        let writer = match task.claim(PieceNumber(piece)) {
            Ok(Claim::Yours(writer)) => writer,
            Ok(Claim::Unverified) => {
                assert_ne!(
                    task.verify(PieceNumber(piece)).unwrap(),
                    Verdict::Dropped,
                    "a kill loses no bytes"
                );
                continue;
            }
            // Someone else has it, or deleted the task.
            _ => continue,
        };
        let data = Arc::new(piece_bytes(task, piece));
        let middle = data.len().min(256 << 10);
        std::thread::scope(|scope| {
            let (writer, data) = (&writer, &data);
            scope.spawn(move || write_in_parts(writer, data, middle, data.len()));
            write_in_parts(writer, data, 0, middle);
        });
        if random.u8(0..8) == 0 {
            continue;
        }
        if writer.commit(Some(Crc32::of(&data)), origin()).is_ok() {
            say(out, &format!("whole {} {} {piece}", task.id(), life(task)));
        }
    }
    let _ = task.mark(Mark::Finished);
}

/// Tells a task from an earlier one of the same id.
fn life(task: &Task) -> String {
    task.description().etag.clone().unwrap()
}

fn write_in_parts(writer: &storage::PieceWriter, data: &[u8], from: usize, to: usize) {
    let mut at = from;
    while at < to {
        let next = to.min(at + 7_001);
        writer.write(at as u64, &data[at..next]).unwrap();
        at = next;
    }
}

// ---- The parent ----

/// What was seen in all rounds, to show that they were worth something.
#[derive(Debug, Default)]
struct Seen {
    acknowledged: usize,
    recovered: usize,
    gone: usize,
}

fn kill_and_look(dir: &Path, rounds: u32, seed: u64) -> Seen {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = Seen::default();
    let mut before = HashMap::new();
    for round in 0..rounds {
        let said = run_and_kill(dir, &mut random);
        let told = Told::from(&said, &before);
        before = look(dir, &told, &format!("seed {seed}, round {round}"));
        seen.acknowledged += said.iter().filter(|line| line.starts_with("whole")).count();
        seen.gone += said.iter().filter(|line| line.starts_with("gone")).count();
        seen.recovered += before.values().map(HashSet::len).sum::<usize>();
    }
    let enough = rounds as usize;
    assert!(
        seen.acknowledged > 2 * enough && seen.gone > enough / 2,
        "too little happened: {seen:?}"
    );
    seen
}

/// By task id and life.
type Pieces = HashMap<(TaskId, String), HashSet<u32>>;

/// Runs a writer up to a random instant, and returns what it said. The instant is a number of things that it did and a
/// little time, so that a slow machine sees as much as a fast one; sometimes it comes before the store is open.
fn run_and_kill(dir: &Path, random: &mut fastrand::Rng) -> Vec<String> {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .arg("--writer")
        .arg(dir)
        .arg(random.u64(..).to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut said: Vec<String> = lines.by_ref().take(random.usize(0..40)).collect();
    std::thread::sleep(Duration::from_micros(random.u64(0..3_000)));
    assert!(
        writer.try_wait().unwrap().is_none(),
        "the writer ended by itself after {said:?}"
    );
    writer.kill().unwrap();
    writer.wait().unwrap();
    said.extend(lines);
    // The kill may have cut the last line.
    if said.last().is_some_and(|line| !is_complete(line)) {
        said.pop();
    }
    said.retain(|line| line != "open");
    said
}

fn is_complete(line: &str) -> bool {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["open" | "evicting" | "evicted"] => true,
        ["whole", _, _, piece] => !piece.is_empty(),
        ["may-go" | "gone", id] => id.len() > "task-".len(),
        _ => false,
    }
}

/// What the next look has to find.
struct Told {
    /// Acknowledged.
    whole: Pieces,
    /// Tasks of which a removal was begun or announced.
    may_be_gone: HashSet<TaskId>,
    /// The kill came between an eviction and its announcement.
    evicting: bool,
}

impl Told {
    fn from(said: &[String], before: &Pieces) -> Self {
        let (mut whole, mut may_be_gone, mut evicting) = (before.clone(), HashSet::new(), 0);
        for line in said {
            let words: Vec<&str> = line.split(' ').collect();
            let id = words.get(1).map(|id| TaskId::try_from(*id).unwrap());
            match (words[0], id) {
                ("whole", Some(id)) => {
                    whole
                        .entry((id, words[2].into()))
                        .or_default()
                        .insert(words[3].parse().unwrap());
                }
                ("may-go" | "gone", Some(id)) => {
                    may_be_gone.insert(id);
                }
                ("evicting", _) => evicting += 1,
                _ => evicting -= 1,
            }
        }
        Self {
            whole,
            may_be_gone,
            evicting: evicting > 0,
        }
    }
}

fn look(dir: &Path, told: &Told, when: &str) -> Pieces {
    let store = Store::open(dir, store_options()).unwrap();
    let mut found = Pieces::new();
    for summary in store.tasks() {
        let task = store
            .task(&summary.id)
            .unwrap()
            .unwrap_or_else(|| panic!("{when}: {} is lost", summary.id));
        task.verify_all().unwrap();
        let pieces: HashSet<u32> = held(&task).into_iter().collect();
        assert_eq!(
            u32::try_from(pieces.len()).unwrap(),
            summary.recorded_pieces,
            "{when}: {task:?} lost bytes"
        );
        assert_held_bytes_are_right(&task);
        found.insert((summary.id, life(&task)), pieces);
    }
    for (task, pieces) in &told.whole {
        match found.get(task) {
            Some(there) => assert!(
                there.is_superset(pieces),
                "{when}: {task:?} had {pieces:?}, has {there:?}"
            ),
            None => assert!(
                told.evicting || told.may_be_gone.contains(&task.0),
                "{when}: {task:?} is missing"
            ),
        }
    }
    let files = std::fs::read_dir(dir.join("tasks")).unwrap().count();
    assert_eq!(files, 2 * found.len(), "{when}: files without a task");
    found
}
