//! Identifiers: task, host, peer and piece number.
//!
//! All are cheap to clone (one reference count). A [`TaskId`] becomes part of a path on disk, so its form is checked
//! once, here; host and peer ids stay opaque texts of bounded length.

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Names one content. 3 to 128 letters, digits, `.`, `_` or `-`, so it is safe as a file name; normally 64 lower-case
/// hex digits, but blobs addressed by a SHA-512 digest have 128.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// Shortest id accepted; the first three characters name a directory.
    pub const LEN_MIN: usize = 3;
    /// Longest id accepted: the hex digits of a SHA-512 digest.
    pub const LEN_MAX: usize = 128;

    /// The id as it stands on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The directory that holds the task's content: the first three characters.
    pub fn prefix(&self) -> &str {
        &self.0[..Self::LEN_MIN]
    }

    /// The id that pieces have on the wire and in logs: `<task id>-<piece number>`.
    pub fn piece_id(&self, piece: PieceNumber) -> String {
        format!("{self}-{piece}")
    }
}

impl TryFrom<&str> for TaskId {
    type Error = IdError;

    fn try_from(text: &str) -> Result<Self, IdError> {
        let len = text.len();
        if !(Self::LEN_MIN..=Self::LEN_MAX).contains(&len) {
            return Err(IdError::TaskIdLength { len });
        }
        match text.bytes().find(|byte| !is_task_id_byte(*byte)) {
            Some(byte) => Err(IdError::TaskIdByte { byte }),
            None => Ok(Self(text.into())),
        }
    }
}

fn is_task_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

impl TryFrom<String> for TaskId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        Self::try_from(text.as_str())
    }
}

impl FromStr for TaskId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text)
    }
}

/// Names a machine with a daemon: `<ip>-<hostname>`, on a seed followed by `-seed`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(Arc<str>);

impl HostId {
    /// The id a host announces itself with.
    pub fn new(ip: IpAddr, hostname: &str, role: HostRole) -> Self {
        Self(format!("{ip}-{hostname}{}", role.suffix()).into())
    }

    /// The id as it stands on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names one host's part in one task: `<ip>-<hostname>-<uuid v4>`, on a seed followed by `-seed`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(Arc<str>);

impl PeerId {
    /// A peer id for a new download. `random` must be fresh random bits: they become the UUID (version 4).
    pub fn new(ip: IpAddr, hostname: &str, role: HostRole, random: u128) -> Self {
        let uuid = uuid::Builder::from_random_bytes(random.to_be_bytes()).into_uuid();
        Self(format!("{ip}-{hostname}-{uuid}{}", role.suffix()).into())
    }

    /// The id as it stands on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a host does for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostRole {
    /// Downloads for its own users and shares what it has (`common.v2.Host.type` 0).
    Normal,
    /// May be asked by the scheduler to fetch first (`common.v2.Host.type` 1).
    Seed,
}

impl HostRole {
    fn suffix(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::Seed => "-seed",
        }
    }
}

/// The position of a piece in its task, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PieceNumber(pub u32);

impl PieceNumber {
    /// The number as an index into a table with one entry per piece.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PieceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// A task id that is too short to name a directory or too long to be a digest.
    #[error(
        "a task id has 3 to 128 characters, this one {len}: check the digest or id that was given"
    )]
    TaskIdLength {
        /// Length found, in bytes.
        len: usize,
    },
    /// A task id that would not be safe as a file name.
    #[error(
        "a task id consists of letters, digits, '.', '_' and '-', this one has byte {byte:#04x}"
    )]
    TaskIdByte {
        /// The first byte that does not belong.
        byte: u8,
    },
    /// A host or peer id that is empty or longer than any real one.
    #[error("a host or peer id has 1 to 4096 bytes, this one {len}")]
    OpaqueLength {
        /// Length found, in bytes.
        len: usize,
    },
}

/// Longest host or peer id accepted from another party, in bytes.
const OPAQUE_LEN_MAX: usize = 4096;

macro_rules! opaque_id {
    ($name:ident) => {
        impl TryFrom<&str> for $name {
            type Error = IdError;

            fn try_from(text: &str) -> Result<Self, IdError> {
                if text.is_empty() || text.len() > OPAQUE_LEN_MAX {
                    return Err(IdError::OpaqueLength { len: text.len() });
                }
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                Self::try_from(text.as_str())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text)
            }
        }
    };
}

macro_rules! text_like {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().into()
            }
        }
    )*};
}

opaque_id!(HostId);
opaque_id!(PeerId);
text_like!(TaskId, HostId, PeerId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn host_ids_carry_the_role() {
        assert_eq!(
            HostId::new(LOCALHOST, "localhost", HostRole::Normal).as_str(),
            "127.0.0.1-localhost"
        );
        assert_eq!(
            HostId::new(LOCALHOST, "localhost", HostRole::Seed).as_str(),
            "127.0.0.1-localhost-seed"
        );
    }

    #[test]
    fn peer_ids_end_in_a_version_4_uuid_and_the_role() {
        let id = PeerId::new(
            "10.0.0.7".parse().unwrap(),
            "node7",
            HostRole::Seed,
            0x3f0c1f1e_6c1b_0c83_1f55_3f0a6a7f8c21,
        );
        assert_eq!(
            id.as_str(),
            "10.0.0.7-node7-3f0c1f1e-6c1b-4c83-9f55-3f0a6a7f8c21-seed"
        );
    }

    #[test]
    fn task_ids_are_safe_as_file_names() {
        for bad in [
            "",
            "ab",
            "../etc",
            "a/b/c",
            "abc\0",
            "abé",
            &"a".repeat(129),
        ] {
            assert!(TaskId::try_from(bad).is_err(), "{bad:?}");
        }
        let id: TaskId = "a".repeat(128).parse().unwrap();
        assert_eq!(id.prefix(), "aaa");
        assert_eq!(
            "abc".parse::<TaskId>().unwrap().piece_id(PieceNumber(3)),
            "abc-3"
        );
    }

    #[test]
    fn opaque_ids_are_bounded() {
        assert!(PeerId::try_from("").is_err());
        assert!(HostId::try_from("h".repeat(OPAQUE_LEN_MAX + 1)).is_err());
        assert_eq!(HostId::try_from("h").unwrap().to_string(), "h");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_kept(text in ".{0,140}") {
            if let Ok(id) = TaskId::try_from(text.as_str()) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert!(!text.contains('/') && text.len() >= 3);
            }
        }
    }
}
