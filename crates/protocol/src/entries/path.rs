//! The path of one entry.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

/// Longest name of a file or folder that Linux file systems take, in bytes.
const NAME_LEN_MAX: usize = 255;
/// Longest path that Linux takes, in bytes.
const PATH_LEN_MAX: usize = 4096;
/// Schemes whose URLs may begin with a repository type, and the type that they mean without one.
const HUBS: [&str; 3] = ["hf", "modelscope", "opencsg"];
const HUB_DEFAULT_TYPE: &str = "models";

/// A relative path with `/` between its names, of which none is empty, `.` or `..`, none holds `/` or NUL, and there is at least one.
///
/// Joined to a folder it therefore names something inside that folder, as long as nobody puts symbolic links there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryPath(String);

impl EntryPath {
    /// Where the entry with the URL `entry` belongs if the URL `base` was listed.
    ///
    /// The two are compared name by name after percent-decoding, so that it does not matter which characters either side escapes. The
    /// repository type of a model hub may be left out on either side where it is `models`. Queries and fragments name no files and are passed over.
    ///
    /// # Errors
    /// [`EntryPathError`], saying why the entry has no safe place below the base.
    pub fn of(base: &str, entry: &str) -> Result<Self, EntryPathError> {
        let below = names_below(base, entry, decoded)?;
        if below.is_empty() {
            return Err(EntryPathError::Base);
        }
        for name in &below {
            check_name(name)?;
        }
        let path = below.join("/");
        if path.len() > PATH_LEN_MAX {
            return Err(EntryPathError::TooLong {
                limit: PATH_LEN_MAX,
            });
        }
        Ok(Self(path))
    }

    /// The path of an entry as people would read it, also where it has no safe place: only to be compared with patterns. `None` for what
    /// lies outside of the listed folder.
    pub(super) fn as_read(base: &str, entry: &str) -> Option<String> {
        let read = |name: &str| Ok(percent_decode_str(name).decode_utf8_lossy().into_owned());
        Some(names_below(base, entry, read).ok()?.join("/"))
    }

    /// The path, names separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders above it, the outermost first, without itself.
    pub fn ancestors(&self) -> impl Iterator<Item = EntryPath> {
        self.0
            .match_indices('/')
            .map(|(end, _)| Self(self.0[..end].to_owned()))
    }
}

impl AsRef<std::path::Path> for EntryPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn parsed(url: &str) -> Result<Url, EntryPathError> {
    // The parser drops tabs and newlines silently, and whoever did not escape them meant them to be part of a name.
    if url.contains(['\t', '\n', '\r']) {
        return Err(EntryPathError::NoUrl);
    }
    let url = Url::parse(url).map_err(|_| EntryPathError::NoUrl)?;
    if url.cannot_be_a_base() {
        return Err(EntryPathError::NoUrl);
    }
    Ok(url)
}

type Decode = fn(&str) -> Result<String, EntryPathError>;

/// The names that the path of `entry` has after those of `base`.
fn names_below(base: &str, entry: &str, decode: Decode) -> Result<Vec<String>, EntryPathError> {
    let (base, entry) = (parsed(base)?, parsed(entry)?);
    if base.scheme() != entry.scheme()
        || base.port_or_known_default() != entry.port_or_known_default()
    {
        return Err(EntryPathError::Elsewhere);
    }
    let (base, mut entry) = (names(&base, decode)?, names(&entry, decode)?);
    if !entry.starts_with(&base) {
        return Err(EntryPathError::Elsewhere);
    }
    Ok(entry.split_off(base.len()))
}

/// The host and the names of the path, decoded. The `/` at the end of a folder's URL makes no name of its own.
fn names(url: &Url, decode: Decode) -> Result<Vec<String>, EntryPathError> {
    let path = url.path();
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let host = url.host_str().unwrap_or_default();
    let mut names = vec![decode(host)?];
    if !path.is_empty() {
        for name in path.split('/') {
            names.push(decode(name)?);
        }
    }
    if HUBS.contains(&url.scheme()) && host == HUB_DEFAULT_TYPE {
        names.remove(0);
    }
    Ok(names)
}

fn decoded(name: &str) -> Result<String, EntryPathError> {
    percent_decode_str(name)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| EntryPathError::NotUtf8)
}

fn check_name(name: &str) -> Result<(), EntryPathError> {
    let refused = |reason| EntryPathError::Name {
        name: name.chars().take(64).collect(),
        reason,
    };
    match name {
        "" => return Err(refused("it is empty")),
        "." | ".." => return Err(refused("it points to another folder")),
        _ => {}
    }
    if name.contains('/') {
        return Err(refused("it holds a /"));
    }
    if name.contains('\0') {
        return Err(refused("it holds a NUL"));
    }
    if name.len() > NAME_LEN_MAX {
        return Err(EntryPathError::TooLong {
            limit: NAME_LEN_MAX,
        });
    }
    Ok(())
}

/// Why an entry has no place below the listed folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryPathError {
    /// One of the two is no absolute URL with a path, or holds unescaped line breaks.
    #[error("it is not an absolute URL with a path")]
    NoUrl,
    /// Another scheme, host or folder.
    #[error("it lies outside of the listed folder")]
    Elsewhere,
    /// The entry is the listed folder itself.
    #[error("it is the listed folder itself")]
    Base,
    /// A name that no file can have or that leads elsewhere.
    #[error("{name:?} cannot be the name of a file: {reason}")]
    Name {
        /// Its beginning.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name that is not text.
    #[error("its name is not UTF-8")]
    NotUtf8,
    /// More bytes than the system takes.
    #[error("its name or path is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(base: &str, entry: &str, want: Result<&str, EntryPathError>) {
        let got = EntryPath::of(base, entry);
        assert_eq!(
            got.as_ref().map(EntryPath::as_str).map_err(Clone::clone),
            want,
            "{base} {entry}"
        );
    }

    #[test]
    fn names_are_kept_whatever_they_are() {
        check("s3://b/dir/", "s3://b/dir/a.txt", Ok("a.txt"));
        check("s3://b/", "s3://b/x/y/", Ok("x/y"));
        check("s3://b/dir", "s3://b/dir/a", Ok("a"));
        check(
            "s3://b/d/",
            "s3://b/d/a%20b%25%3F%23%0A%C3%A4/%E6%96%87",
            Ok("a b%?#\nä/文"),
        );
        check("s3://b/d/", "s3://b/d/...", Ok("..."));
        check("s3://b/d/", "s3://b/d/c:%5Cx", Ok("c:\\x"));
        check("http://h/d/", "http://h:80/d/f?sig=1", Ok("f"));
    }

    #[test]
    fn escapes_of_the_base_do_not_matter() {
        check("s3://b/a%20b/", "s3://b/a b/f", Ok("f"));
        check("s3://b/%61/", "s3://b/a/f", Ok("f"));
    }

    #[test]
    fn a_hub_may_leave_its_default_type_out() {
        check(
            "opencsg://owner/repo/",
            "opencsg://models/owner/repo/f",
            Ok("f"),
        );
        check("hf://models/owner/repo/", "hf://owner/repo/d/f", Ok("d/f"));
        check("hf://Qwen/R/", "hf://Qwen/R/f", Ok("f"));
        let elsewhere = Err(EntryPathError::Elsewhere);
        check("hf://Qwen/R/", "hf://qwen/R/f", elsewhere.clone());
        check("hf://datasets/o/r/", "hf://o/r/f", elsewhere.clone());
        check("s3://models/o/", "s3://o/f", elsewhere);
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let elsewhere = Err(EntryPathError::Elsewhere);
        for entry in [
            "s3://b/f",
            "s3://b/dir2/f",
            "s3://other/dir/f",
            "s3://b/dir/../f",
            "s3://b/dir/%2e%2E/f",
            "gs://b/dir/f",
            "s3://b:1/dir/f",
            "file:///etc/passwd",
        ] {
            check("s3://b/dir/", entry, elsewhere.clone());
        }
        check("s3://b/dir/", "s3://b/dir/", Err(EntryPathError::Base));
        check("s3://b/dir/", "/etc/passwd", Err(EntryPathError::NoUrl));
        check("s3://b/dir/", "s3:x", Err(EntryPathError::NoUrl));
        check("s3://b/d/", "s3://b/d/%FF", Err(EntryPathError::NotUtf8));
        for entry in [
            "s3://b/dir//f",
            "s3://b/dir/a%2F..%2F..%2Fetc",
            "s3://b/dir/%2Fetc",
            "s3://b/dir/a%00",
        ] {
            assert!(
                matches!(
                    EntryPath::of("s3://b/dir/", entry),
                    Err(EntryPathError::Name { .. })
                ),
                "{entry}"
            );
        }
        let long = format!("s3://b/dir/{}", "x".repeat(256));
        check(
            "s3://b/dir/",
            &long,
            Err(EntryPathError::TooLong { limit: 255 }),
        );
    }

    proptest! {
        #[test]
        fn any_entry_is_inside_or_refused(
            base in "(s3|http|hf)://(b|models|h\\.x)(/[a%2.]{0,4}){0,3}/?",
            below in "(/|\\.\\.|\\.|%2e|%2F|%00|%5c|\\\\|a|%|ä|\n|\\?|#| ){0,16}",
        ) {
            for entry in [format!("{base}{below}"), format!("{base}/{below}"), below] {
                let Ok(path) = EntryPath::of(&base, &entry) else { continue };
                let mut depth = 0;
                for component in AsRef::<std::path::Path>::as_ref(&path).components() {
                    prop_assert!(matches!(component, std::path::Component::Normal(_)), "{path:?}");
                    depth += 1;
                }
                prop_assert_eq!(depth, path.ancestors().count() + 1);
            }
        }
    }
}
