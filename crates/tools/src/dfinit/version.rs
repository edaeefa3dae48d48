//! Versions as container runtimes print them.

use std::fmt;

/// The version of a runtime; what follows the numbers, such as `~ds1`, is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Incompatible changes.
    pub major: u32,
    /// New features.
    pub minor: u32,
    /// Fixes.
    pub patch: u32,
}

impl Version {
    /// The first version in what `--version` printed: `containerd github.com/containerd/containerd v1.7.2 0cae528`,
    /// `crio version 1.28.1`, `Docker version 24.0.5, build ced0996`.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::of_word)
    }

    fn of_word(word: &str) -> Option<Self> {
        let mut parts = word.strip_prefix('v').unwrap_or(word).splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = leading_number(parts.next()?)?;
        let patch = parts.next().and_then(leading_number).unwrap_or(0);
        Some(Self {
            major,
            minor,
            patch,
        })
    }
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_runtimes_print() {
        for (text, expected) in [
            (
                "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
                Some("1.6.20"),
            ),
            (
                "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b71",
                Some("2.1.4"),
            ),
            ("containerd containerd.io v2.0.0-rc.3 abc", Some("2.0.0")),
            ("crio version 1.28.1\nVersion: 1.28.1", Some("1.28.1")),
            ("podman version 4.3.1", Some("4.3.1")),
            ("Docker version 24.0, build ced0996", Some("24.0.0")),
            ("", None),
            ("command not found", None),
            ("99999999999.1", None),
        ] {
            let found = Version::find(text).map(|version| version.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
