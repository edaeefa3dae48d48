//! Typed configuration: a YAML file as written becomes a configuration as meant.
//!
//! The problem: an operator who made four mistakes wants to hear of all four at once, each with its file, line, key, the
//! value found and what was expected; and a misspelt key must not be ignored in silence. A derived deserialiser stops at
//! the first mistake and forgets the lines, so this module keeps the file as a [`Document`] (stage one, as written: a tree of
//! scalars that remember their line) and lets each service read it, key by key, into its own plain struct (stage two, as
//! meant). Reading never fails in the middle: a [`Section`] notes what is wrong and answers with the default, and
//! [`Document::finish`] gives either the value with its warnings, or every mistake.
//!
//! Keys are matched without regard to case, as two of the three services of Dragonfly v2 do. An empty or `null` value
//! counts as an absent key. Keys that nobody asked for become warnings with a suggestion.
//!
//! Not here: environment variables, merging of several files, reloading, YAML merge keys (`<<`).

mod error;
mod section;
mod suggest;
mod tree;
mod value;

pub use bytesize::ByteSize;
pub use error::{ConfigError, Mistake, Warning};
pub use section::{Document, Loaded, Section};
pub use value::{Scalar, parse_duration};

#[cfg(test)]
mod tests;
