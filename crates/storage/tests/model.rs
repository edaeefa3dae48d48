//! Any sequence of operations, with restarts and damage in between, against a model that is a table.
//!
//! Without damage the store and the model agree exactly. Damage may cost pieces, but only those of the damaged task,
//! and never makes the store show wrong bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use proptest::prelude::*;
use protocol::{Crc32, PieceNumber};
use storage::{Claim, PieceWriter, Store, Task, Verdict};

const TASKS: u8 = 3;
/// Seven pieces, the last one short.
const CONTENT_LENGTH: u64 = 6 * 4096 + 100;
const PIECE_LENGTH: u64 = 4096;

#[derive(Debug, Clone)]
enum Operation {
    Create(u8),
    Open(u8),
    LetGo(u8),
    Claim(u8, u32),
    /// So many bytes more of a claimed piece.
    Write(u8, u32, u16),
    Commit(u8, u32),
    CommitAgainst(u8, u32, u32),
    Abandon(u8, u32),
    Verify(u8, u32),
    Mark(u8),
    Delete(u8),
    Restart,
    /// Keeps what the journal says, loses what it does not.
    Kill,
    FlipContent(u8, u64),
    TruncateContent(u8, u64),
    FlipJournal(u8, u64),
    TruncateJournal(u8, u64),
    RemoveContent(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let task = || 0..TASKS;
    let piece = || 0u32..7;
    let place = || any::<u64>();
    prop_oneof![
        4 => task().prop_map(Create),
        2 => task().prop_map(Open),
        2 => task().prop_map(LetGo),
        8 => (task(), piece()).prop_map(|(task, piece)| Claim(task, piece)),
        12 => (task(), piece(), 1u16..5000).prop_map(|(task, piece, len)| Write(task, piece, len)),
        8 => (task(), piece()).prop_map(|(task, piece)| Commit(task, piece)),
        1 => (task(), piece(), any::<u32>()).prop_map(|(task, piece, crc)| CommitAgainst(task, piece, crc)),
        1 => (task(), piece()).prop_map(|(task, piece)| Abandon(task, piece)),
        2 => (task(), piece()).prop_map(|(task, piece)| Verify(task, piece)),
        1 => task().prop_map(Mark),
        1 => task().prop_map(Delete),
        2 => Just(Restart),
        2 => Just(Kill),
        1 => (task(), place()).prop_map(|(task, at)| FlipContent(task, at)),
        1 => (task(), place()).prop_map(|(task, at)| TruncateContent(task, at)),
        1 => (task(), place()).prop_map(|(task, at)| FlipJournal(task, at)),
        1 => (task(), place()).prop_map(|(task, at)| TruncateJournal(task, at)),
        1 => task().prop_map(RemoveContent),
    ]
}

/// What the store should know of a task.
#[derive(Debug, Default)]
struct Expected {
    whole: BTreeSet<u32>,
    /// Since damage was done, pieces or the whole task may be missing.
    damaged: bool,
}

/// The store under test, the model, and what is open.
struct World {
    dir: tempfile::TempDir,
    store: Option<Store>,
    model: BTreeMap<u8, Expected>,
    tasks: BTreeMap<u8, Task>,
    writers: BTreeMap<(u8, u32), (PieceWriter, u64)>,
}

impl World {
    fn new() -> Self {
        let dir = folder_in_memory();
        let store = Some(open(dir.path()));
        Self {
            dir,
            store,
            model: BTreeMap::new(),
            tasks: BTreeMap::new(),
            writers: BTreeMap::new(),
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn apply(&mut self, operation: &Operation) {
        use Operation::*;
        match *operation {
            Create(name) => self.create(name),
            Open(name) => self.open(name),
            LetGo(name) => {
                self.tasks.remove(&name);
            }
            Claim(name, piece) => self.claim(name, piece),
            Write(name, piece, len) => self.write(name, piece, len),
            Commit(name, piece) => self.commit(name, piece, None),
            CommitAgainst(name, piece, crc) => self.commit(name, piece, Some(Crc32(crc))),
            Abandon(name, piece) => {
                self.writers.remove(&(name, piece));
            }
            Verify(name, piece) => self.verify(name, piece),
            Mark(name) => {
                self.tasks
                    .get(&name)
                    .map(|task| task.mark(storage::Mark::Started));
            }
            Delete(name) => self.delete(name),
            Restart => self.reopen(),
            Kill => self.kill(),
            FlipContent(name, at) => {
                self.damage(name, content_path, |path, len| flip(path, at % len))
            }
            TruncateContent(name, at) => {
                self.damage(name, content_path, |path, len| truncate(path, at % len))
            }
            // A journal is read when its task is opened: damage it only while nobody has it open.
            FlipJournal(name, at) => self.damage_journal(name, |path, len| flip(path, at % len)),
            TruncateJournal(name, at) => {
                self.damage_journal(name, |path, len| truncate(path, at % len))
            }
            RemoveContent(name) => self.damage_journal(name, |path, _| {
                let _ = std::fs::remove_file(path.with_extension("data"));
            }),
        }
    }

    fn create(&mut self, name: u8) {
        let created =
            self.store()
                .create_task(new_task(&name.to_string(), CONTENT_LENGTH, PIECE_LENGTH));
        match self.model.get(&name) {
            Some(expected) => assert!(created.is_err() || expected.damaged),
            None => {
                self.tasks.insert(name, created.unwrap().task);
                self.model.insert(name, Expected::default());
            }
        }
    }

    fn open(&mut self, name: u8) {
        let found = self.store().task(&task_id(&name.to_string())).unwrap();
        match (self.model.get(&name), found) {
            (Some(_), Some(task)) => {
                self.tasks.insert(name, task);
            }
            (Some(expected), None) => {
                assert!(expected.damaged, "task {name} is lost");
                self.model.remove(&name);
                self.tasks.remove(&name);
            }
            (None, found) => assert!(found.is_none()),
        }
    }

    fn claim(&mut self, name: u8, piece: u32) {
        let Some(task) = self.tasks.get(&name) else {
            return;
        };
        let busy = self.writers.contains_key(&(name, piece));
        let whole = self.model[&name].whole.contains(&piece);
        match task.claim(PieceNumber(piece)).unwrap() {
            Claim::Yours(writer) => {
                assert!(!busy && (!whole || self.model[&name].damaged));
                self.writers.insert((name, piece), (writer, 0));
            }
            Claim::Busy(_) => assert!(busy),
            Claim::Whole(_) | Claim::Unverified => assert!(whole && !busy),
        }
    }

    fn write(&mut self, name: u8, piece: u32, len: u16) {
        let Some((writer, received)) = self.writers.get_mut(&(name, piece)) else {
            return;
        };
        let data = piece_bytes(writer.task(), piece);
        let from = usize::try_from(*received).unwrap();
        let to = data.len().min(from + usize::from(len));
        assert_eq!(
            writer.write(*received, &data[from..to]).unwrap(),
            (to - from) as u64
        );
        *received = to as u64;
    }

    fn commit(&mut self, name: u8, piece: u32, expected: Option<Crc32>) {
        let Some((writer, received)) = self.writers.get(&(name, piece)) else {
            return;
        };
        let data = piece_bytes(writer.task(), piece);
        let complete = *received == data.len() as u64;
        let right = expected.is_none_or(|crc| crc == Crc32::of(&data));
        let committed = writer.commit(expected, origin());
        assert_eq!(committed.is_ok(), complete && right, "{committed:?}");
        if complete {
            self.writers.remove(&(name, piece));
        }
        if complete && right {
            self.model.get_mut(&name).unwrap().whole.insert(piece);
        }
    }

    fn verify(&mut self, name: u8, piece: u32) {
        let Some(task) = self.tasks.get(&name) else {
            return;
        };
        let expected = self.model.get_mut(&name).unwrap();
        match task.verify(PieceNumber(piece)).unwrap() {
            Verdict::Good => assert!(expected.whole.contains(&piece)),
            Verdict::Dropped => assert!(expected.damaged && expected.whole.remove(&piece)),
            Verdict::NotWhole => assert!(expected.damaged || !expected.whole.contains(&piece)),
        }
    }

    fn delete(&mut self, name: u8) {
        let deleted = self.store().delete(&task_id(&name.to_string())).unwrap();
        let expected = self.model.remove(&name);
        assert!(
            deleted.is_some() == expected.is_some()
                || expected.is_some_and(|expected| expected.damaged)
        );
        self.let_go_of(name);
    }

    fn let_go_of(&mut self, name: u8) {
        self.writers.retain(|(task, _), _| *task != name);
        self.tasks.remove(&name);
    }

    fn reopen(&mut self) {
        self.writers.clear();
        self.tasks.clear();
        self.store = None;
        self.store = Some(open(self.dir.path()));
        self.check();
    }

    /// A copy of the folder at this instant is what a kill leaves: whatever was written is in the page cache.
    fn kill(&mut self) {
        let copy = folder_in_memory();
        copy_folder(self.dir.path(), copy.path());
        let before = std::mem::replace(&mut self.dir, copy);
        self.reopen();
        drop(before);
    }

    /// Damages an unused or used file. Pieces that are being written lose what they have: give them up.
    fn damage(
        &mut self,
        name: u8,
        path: impl Fn(&std::path::Path, &protocol::TaskId) -> std::path::PathBuf,
        how: impl Fn(&std::path::Path, u64),
    ) {
        let Some(expected) = self.model.get_mut(&name) else {
            return;
        };
        self.writers.retain(|(task, _), _| *task != name);
        let path = path(self.dir.path(), &task_id(&name.to_string()));
        let Ok(len) = std::fs::metadata(&path).map(|found| found.len()) else {
            return;
        };
        if len > 0 {
            how(&path, len);
            expected.damaged = true;
        }
    }

    fn damage_journal(&mut self, name: u8, how: impl Fn(&std::path::Path, u64)) {
        self.let_go_of(name);
        self.damage(name, journal_path, how);
    }

    /// Opens every task and compares it with the model.
    fn check(&mut self) {
        for name in self.model.keys().copied().collect::<Vec<_>>() {
            self.open(name);
            let Some(task) = self.tasks.get(&name) else {
                continue;
            };
            let expected = self.model.get_mut(&name).unwrap();
            task.verify_all().unwrap();
            let held: BTreeSet<u32> = held(task).into_iter().collect();
            if expected.damaged {
                assert!(held.is_subset(&expected.whole));
                expected.whole.clone_from(&held);
                // A journal is cut at its damage when it is opened, and the content was verified: all is well again.
                expected.damaged = false;
            }
            assert_eq!(held, expected.whole, "task {name}");
            assert_held_bytes_are_right(task);
        }
        let names: BTreeSet<_> = self
            .store()
            .tasks()
            .into_iter()
            .map(|task| task.id)
            .collect();
        assert_eq!(
            names,
            self.model
                .keys()
                .map(|name| task_id(&name.to_string()))
                .collect()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_what_the_model_says(operations in proptest::collection::vec(operation(), 1..80)) {
        let mut world = World::new();
        for operation in &operations {
            world.apply(operation);
            // At every moment: what is called whole is right.
            for task in world.tasks.values() {
                assert_held_bytes_are_right(task);
            }
        }
        world.reopen();
    }
}
