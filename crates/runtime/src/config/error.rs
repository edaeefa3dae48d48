//! What can be wrong with a configuration file, and how it is told.

use std::fmt;
use std::path::PathBuf;

/// Why a configuration could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be opened or read.
    #[error("config file {}: {error}: check the path given with --config and its permissions", .file.display())]
    Unreadable {
        /// The file that was asked for.
        file: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is larger than any configuration is.
    #[error("config file {}: {len} bytes, the limit is {limit}: is this the right file?", .file.display())]
    TooLarge {
        /// The file that was asked for.
        file: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The longest file that is read, in bytes.
        limit: u64,
    },
    /// The file is not YAML, so that nothing in it can be judged.
    #[error("{file}:{line}:{column}: not valid YAML: {reason}")]
    Syntax {
        /// The file's name as given.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// Values are wrong; every one of them is listed.
    #[error("{}", Mistakes(.0))]
    Mistakes(Vec<Mistake>),
}

/// One wrong value: where it stands, what it is, what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file's name as given.
    pub file: String,
    /// Line, counted from 1; 0 if the key is absent and no line can be named.
    pub line: usize,
    /// The path of keys, such as `upload.server.port`.
    pub key: String,
    /// The value as it stands in the file (`<secret>` where it may not be shown); `None` if it is absent.
    pub found: Option<String>,
    /// What is accepted, as a noun phrase.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}: ", self.key)?;
        match &self.found {
            Some(found) => write!(f, "found {found}, expected {}", self.expected),
            None => write!(f, "missing, expected {}", self.expected),
        }
    }
}

/// A key that nobody reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The file's name as given.
    pub file: String,
    /// Line, counted from 1.
    pub line: usize,
    /// The path of keys.
    pub key: String,
    /// A known key of the same section that is spelt alike.
    pub suggestion: Option<String>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: unknown key, it has no effect",
            self.file, self.line, self.key
        )?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean {suggestion}?"),
            None => Ok(()),
        }
    }
}

/// The list as it is printed: a single mistake on its own line, several under a heading.
struct Mistakes<'a>(&'a [Mistake]);

impl fmt::Display for Mistakes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} mistakes in the configuration", many.len())?;
                many.iter()
                    .try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}
