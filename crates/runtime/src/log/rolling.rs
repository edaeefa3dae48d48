//! A file that starts anew when it is full and keeps a few of its predecessors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// `DIRECTORY/NAME.log` and its predecessors `.1`, `.2`, ...
///
/// Lines are never torn: a write that would pass the limit goes to the next file as a whole. If a rotation fails, as on a
/// full disk, the current file goes on growing: losing the log would be worse.
pub(super) struct RollingFile {
    path: PathBuf,
    file: File,
    len: u64,
    len_max: u64,
    count_max: usize,
}

impl RollingFile {
    /// Opens the current file to append to it; makes the directory. On failure gives the path that failed.
    pub(super) fn open(
        directory: &Path,
        name: &str,
        count_max: usize,
        len_max: u64,
    ) -> Result<Self, (PathBuf, io::Error)> {
        fs::create_dir_all(directory).map_err(|error| (directory.to_owned(), error))?;
        let path = directory.join(format!("{name}.log"));
        let file = append(&path).map_err(|error| (path.clone(), error))?;
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            path,
            file,
            len,
            len_max: len_max.max(1),
            count_max: count_max.max(1),
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.count_max == 1 {
            self.file.set_len(0)?;
        } else {
            for index in (1..self.count_max - 1).rev() {
                rename_if_there(&self.numbered(index), &self.numbered(index + 1))?;
            }
            rename_if_there(&self.path, &self.numbered(1))?;
            self.file = append(&self.path)?;
        }
        self.len = 0;
        Ok(())
    }

    fn numbered(&self, index: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{index}"));
        name.into()
    }
}

impl Write for RollingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let len = line.len() as u64;
        if self.len > 0 && self.len + len > self.len_max {
            let _ = self.rotate();
        }
        self.file.write_all(line)?;
        self.len += len;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_whole_lines_in_a_bounded_number_of_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RollingFile::open(directory.path(), "x", 3, 20).unwrap();
        for index in 0..10 {
            log.write_all(format!("line {index}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read("x.log"), "line 8\nline 9\n");
        assert_eq!(read("x.log.1"), "line 6\nline 7\n");
        assert_eq!(read("x.log.2"), "line 4\nline 5\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }

    #[test]
    fn it_goes_on_where_the_last_process_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let open = || RollingFile::open(directory.path(), "x", 2, 14).unwrap();
        for index in 0..3 {
            open()
                .write_all(format!("line {index}\n").as_bytes())
                .unwrap();
        }
        assert_eq!(
            fs::read_to_string(directory.path().join("x.log")).unwrap(),
            "line 2\n"
        );
        assert_eq!(
            fs::read_to_string(directory.path().join("x.log.1")).unwrap(),
            "line 0\nline 1\n"
        );
    }

    #[test]
    fn one_file_alone_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = RollingFile::open(directory.path(), "x", 1, 10).unwrap();
        log.write_all(b"aaaaaaaa\n").unwrap();
        log.write_all(b"bbbbbbbb\n").unwrap();
        assert_eq!(
            fs::read_to_string(directory.path().join("x.log")).unwrap(),
            "bbbbbbbb\n"
        );
    }
}
