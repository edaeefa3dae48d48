//! Container registries, as far as a preheat needs them: which contents an image is made of, and what to show the registry
//! to be given them.
//!
//! Start with [`Client::open`], which gives a [`Registry`]: one repository as one caller sees it. [`Registry::resolve`] follows a
//! manifest or an index to every content that a pull of the image reads; [`Registry::authorization`] is the header with which
//! somebody else (a daemon) may read them, fresh each time it is asked for. The parsers of what comes off the network
//! ([`Document`], [`Challenge`]) are pure.
//!
//! Bytes come through the `source` crate, so that time limits, trust roots, redirects and the egress policy are those of
//! every other origin. This crate does not know tasks or peers, never fetches a layer, and writes to no registry.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod auth;
mod challenge;
mod client;
mod error;
mod manifest;
mod name;
mod platform;

pub use auth::Credentials;
pub use challenge::{Challenge, ChallengeError};
pub use client::{Access, Client, Content, ContentKind, Image, Registry};
pub use error::RegistryError;
pub use manifest::{ACCEPT, Descriptor, Document, MANIFEST_LEN_MAX, ManifestError};
pub use name::{ImageName, ManifestUrl, NameError, Reference};
pub use platform::{Platform, PlatformError, Platforms};
