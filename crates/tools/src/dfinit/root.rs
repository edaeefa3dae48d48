//! The file system of the host, which a container sees below a folder of its own.
//!
//! Paths are named as this process sees them ([`HostRoot::named`]), and looked up link by link as a process of the host would
//! ([`HostRoot::find`]): an absolute symbolic link begins at the host's root, and no `..` leads out of it. The kernel, left
//! alone with the name, would follow both into this process's own file system. Nobody is expected to move links meanwhile.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Most links in one lookup, as in Linux.
const LINKS_MAX: usize = 40;

/// Where the host's file system begins.
#[derive(Debug, Clone)]
pub(super) struct HostRoot(PathBuf);

impl HostRoot {
    pub(super) fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Whether this process is one of the host, so that its programs and its init system are those that are seen here.
    pub(super) fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The name here of what the host calls `path`, absolute or from its root on.
    pub(super) fn named(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// What the host calls `path`, a name of [`HostRoot::named`].
    pub(super) fn on_host(&self, path: &Path) -> PathBuf {
        Path::new("/").join(path.strip_prefix(&self.0).unwrap_or(path))
    }

    /// The path without links, below the root, of the file that `path`, a name of [`HostRoot::named`], leads to. What is not
    /// there need not be, nor the folders above it.
    ///
    /// # Errors
    ///
    /// A folder may not be searched, or links go in a circle.
    pub(super) fn find(&self, path: &Path) -> io::Result<PathBuf> {
        let mut found = self.0.clone();
        let mut ahead = steps(path.strip_prefix(&self.0).unwrap_or(path));
        let mut links = 0;
        while let Some(step) = ahead.pop_front() {
            if step == ".." {
                if found != self.0 {
                    found.pop();
                }
                continue;
            }
            let next = found.join(&step);
            match fs::read_link(&next) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(io::Error::other(format!(
                            "more than {LINKS_MAX} symbolic links lead on from it"
                        )));
                    }
                    if target.is_absolute() {
                        found.clone_from(&self.0);
                    }
                    let mut whole = steps(&target);
                    whole.append(&mut ahead);
                    ahead = whole;
                }
                // Not a link, or not there.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                    ) =>
                {
                    found = next;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Whether there is something at `path`, a name of [`HostRoot::named`].
    pub(super) fn has(&self, path: &Path) -> bool {
        self.find(path).is_ok_and(|found| found.exists())
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What `path` leads to on a host with these links, each a name and its target.
    fn check(links: &[(&str, &str)], path: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let root = HostRoot::new(folder.path());
        for (name, target) in links {
            let name = root.named(name);
            fs::create_dir_all(name.parent().unwrap()).unwrap();
            symlink(target, name).unwrap();
        }
        let found = root.find(&root.named(path)).unwrap();
        assert_eq!(root.on_host(&found), Path::new(expected), "{links:?}");
        assert!(found.starts_with(folder.path()), "{links:?}");
    }

    #[test]
    fn links_begin_at_the_hosts_root() {
        check(&[], "/etc/c.toml", "/etc/c.toml");
        check(&[], "etc/c.toml", "/etc/c.toml");
        check(&[("/etc/c.toml", "/x/c.toml")], "/etc/c.toml", "/x/c.toml");
        check(&[("/etc/c", "/opt/c")], "/etc/c/c.toml", "/opt/c/c.toml");
        check(&[("/etc/c", "../opt/c")], "/etc/c/c.toml", "/opt/c/c.toml");
        check(
            &[("/var/run", "/run"), ("/run", "sys/run")],
            "/var/run/a/b",
            "/sys/run/a/b",
        );
    }

    #[test]
    fn nothing_leads_out() {
        check(&[("/etc/c", "../../../../x")], "/etc/c", "/x");
        check(&[], "/../../etc/passwd", "/etc/passwd");
        check(&[("/a/up", "..")], "/a/up/up2/../../../b", "/b");
    }

    #[test]
    fn a_circle_of_links_comes_to_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = HostRoot::new(folder.path());
        symlink("/b", root.named("a")).unwrap();
        symlink("/a", root.named("b")).unwrap();
        assert!(root.find(&root.named("a")).is_err());
        assert!(!root.has(&root.named("a")));
    }

    #[test]
    fn a_root_is_named_as_it_was_given() {
        let root = HostRoot::new("/host");
        assert_eq!(root.named("/etc/x"), Path::new("/host/etc/x"));
        assert_eq!(root.on_host(Path::new("/host/etc/x")), Path::new("/etc/x"));
        let own = HostRoot::new("/");
        assert_eq!(own.on_host(Path::new("/etc/x")), Path::new("/etc/x"));
        assert!(own.is_own() && !root.is_own());
    }
}
