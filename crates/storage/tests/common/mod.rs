//! What the tests of the store share: contents that can be checked without keeping them, and filesystems of their own.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use protocol::{Crc32, Geometry, PieceNumber, TaskId, TaskKind, TrafficType};
use storage::{Claim, NewTask, Options, PieceOrigin, PieceWriter, Store, Task};

/// A temporary folder on the disk.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A temporary folder in memory where there is one: for tests of thousands of small steps.
pub(crate) fn folder_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder())
}

pub(crate) fn open(dir: &Path) -> Store {
    Store::open(dir, options()).unwrap()
}

pub(crate) fn options() -> Options {
    Options {
        headroom: 0,
        ..Options::default()
    }
}

pub(crate) fn task_id(name: &str) -> TaskId {
    TaskId::try_from(format!("task-{name}")).unwrap()
}

pub(crate) fn new_task(name: &str, content_length: u64, piece_length: u64) -> NewTask {
    let geometry = Geometry::new(content_length, piece_length).unwrap();
    let mut task = NewTask::new(
        task_id(name),
        TaskKind::Standard,
        format!("http://origin/{name}"),
        geometry,
    );
    task.response_header
        .insert("content-type".into(), "text/plain".into());
    task.etag = Some("\"1\"".into());
    task
}

pub(crate) fn create(store: &Store, name: &str, content_length: u64, piece_length: u64) -> Task {
    store
        .create_task(new_task(name, content_length, piece_length))
        .unwrap()
        .task
}

/// The bytes of a content: known from its id and the place alone, different for each.
pub(crate) fn bytes(id: &TaskId, offset: u64, len: u64) -> Vec<u8> {
    let seed = u64::from(Crc32::of(id.as_str().as_bytes()).0);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap() + 16);
    for word in offset / 8..(offset + len).div_ceil(8) {
        bytes.extend(mix(seed ^ word).to_le_bytes());
    }
    bytes.drain(..usize::try_from(offset % 8).unwrap());
    bytes.truncate(usize::try_from(len).unwrap());
    bytes
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

pub(crate) fn piece_bytes(task: &Task, piece: u32) -> Vec<u8> {
    let span = task.geometry().piece(PieceNumber(piece)).unwrap();
    bytes(task.id(), span.offset, span.length)
}

pub(crate) fn origin() -> PieceOrigin {
    PieceOrigin {
        parent: Some("10.0.0.7-node7-3f0c1f1e".parse().unwrap()),
        traffic: TrafficType::RemotePeer,
        created_at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        cost: Duration::from_micros(1234),
    }
}

pub(crate) fn claim(task: &Task, piece: u32) -> PieceWriter {
    match task.claim(PieceNumber(piece)).unwrap() {
        Claim::Yours(writer) => writer,
        other => panic!("piece {piece} is not missing: {other:?}"),
    }
}

pub(crate) fn fill_piece(task: &Task, piece: u32) {
    let writer = claim(task, piece);
    let data = piece_bytes(task, piece);
    writer.write(0, &data).unwrap();
    writer.commit(Some(Crc32::of(&data)), origin()).unwrap();
}

pub(crate) fn fill(task: &Task) {
    for span in task.geometry().pieces() {
        fill_piece(task, span.number.0);
    }
}

pub(crate) fn held(task: &Task) -> Vec<u32> {
    task.held().unwrap().ones().collect()
}

pub(crate) fn recorded(task: &Task) -> Vec<u32> {
    task.recorded().unwrap().ones().collect()
}

/// Every piece that the store calls whole has the right bytes in the file.
pub(crate) fn assert_held_bytes_are_right(task: &Task) {
    let file = task.content_file();
    for number in held(task) {
        let expected = piece_bytes(task, number);
        let mut found = vec![0; expected.len()];
        let span = task.geometry().piece(PieceNumber(number)).unwrap();
        file.read_exact_at(&mut found, span.offset).unwrap();
        assert!(
            found == expected,
            "piece {number} of {} is called whole and has wrong bytes",
            task.id()
        );
    }
}

pub(crate) fn content_path(dir: &Path, id: &TaskId) -> PathBuf {
    dir.join("tasks").join(format!("{id}.data"))
}

pub(crate) fn journal_path(dir: &Path, id: &TaskId) -> PathBuf {
    dir.join("tasks").join(format!("{id}.journal"))
}

/// Turns some bits of one byte over, as a disk or a careless user might.
pub(crate) fn flip(path: &Path, offset: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x5a], offset).unwrap();
    touch_later(&file);
}

pub(crate) fn truncate(path: &Path, len: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
    touch_later(&file);
}

/// A change within one tick of the kernel's clock leaves the time as it was; real ones come later.
fn touch_later(file: &std::fs::File) {
    let modified = file.metadata().unwrap().modified().unwrap();
    file.set_modified(modified + Duration::from_secs(1))
        .unwrap();
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// Copies a data folder as it is at this instant. The copies are younger than what they are copies of.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// A small filesystem of its own, gone when dropped.
pub(crate) struct Mount {
    folder: tempfile::TempDir,
}

/// Which filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filesystem {
    Ext4,
    XfsWithReflink,
    Tmpfs,
}

impl Mount {
    /// Makes and mounts one of about `mib` MiB (XFS: at least 300).
    pub(crate) fn new(filesystem: Filesystem, mib: u64) -> Self {
        require_root();
        let folder = folder();
        let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
        std::fs::create_dir(&point).unwrap();
        let mount = |arguments: &[&str]| {
            run(Command::new("mount").args(arguments).arg(&point));
        };
        if filesystem == Filesystem::Tmpfs {
            mount(&[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m,mode=0755"),
                "tmpfs",
            ]);
            return Self { folder };
        }
        std::fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        match filesystem {
            Filesystem::Ext4 => run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .arg(&image)),
            _ => run(Command::new("mkfs.xfs")
                .args(["-q", "-f", "-m", "reflink=1"])
                .arg(&image)),
        }
        mount(&["-o", "loop", image.to_str().unwrap()]);
        Self { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    pub(crate) fn remount(&self, option: &str) {
        run(Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(self.path()));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a failing test may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

pub(crate) fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts filesystems: run it as root (sudo -E cargo test -p storage)"
    );
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| {
        panic!("{command:?} cannot be started ({error}): install the packages util-linux, e2fsprogs and xfsprogs")
    });
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
