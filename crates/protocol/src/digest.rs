//! Digests of pieces and of whole files.
//!
//! On the Dragonfly wire a CRC-32 is written `crc32:` followed by the value in **decimal** without padding; the
//! reference compares digests as texts, so any other form of the same number is a different digest and is refused
//! here. SHA digests are lower-case hex; upper case is read too.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// CRC-32/ISO-HDLC (the one of zlib) of some bytes: the digest of a piece. Its text is `crc32:<decimal>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Crc32(pub u32);

impl Crc32 {
    /// The checksum of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32fast::hash(bytes))
    }

    /// The checksum of the bytes of `self` followed by `next_len` bytes that have the checksum `next`. Costs some
    /// hundred nanoseconds whatever the lengths are.
    pub fn followed_by(self, next: Self, next_len: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.combine(&crc32fast::Hasher::new_with_initial_len(next.0, next_len));
        Self(hasher.finalize())
    }
}

impl fmt::Display for Crc32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "crc32:{}", self.0)
    }
}

impl FromStr for Crc32 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.parse()? {
            Digest::Crc32(crc) => Ok(crc),
            other => Err(DigestError::NotCrc32 {
                found: other.algorithm(),
            }),
        }
    }
}

/// Computes a [`Crc32`] over bytes that come in portions.
#[derive(Debug, Clone, Default)]
pub struct Crc32Hasher(crc32fast::Hasher);

impl Crc32Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes added so far.
    pub fn finish(&self) -> Crc32 {
        Crc32(self.0.clone().finalize())
    }
}

/// A digest of content, as users and origins state it for whole files.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Digest {
    /// `crc32:<decimal>`.
    Crc32(Crc32),
    /// `sha256:<64 hex digits>`.
    Sha256([u8; 32]),
    /// `sha512:<128 hex digits>`.
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: DigestAlgorithm, bytes: &[u8]) -> Self {
        let mut hasher = DigestHasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Which function made it.
    pub fn algorithm(&self) -> DigestAlgorithm {
        match self {
            Self::Crc32(_) => DigestAlgorithm::Crc32,
            Self::Sha256(_) => DigestAlgorithm::Sha256,
            Self::Sha512(_) => DigestAlgorithm::Sha512,
        }
    }

    /// The part of the text behind the colon.
    pub fn encoded(&self) -> String {
        match self {
            Self::Crc32(crc) => crc.0.to_string(),
            Self::Sha256(bytes) => hex::encode(bytes),
            Self::Sha512(bytes) => hex::encode(bytes),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.encoded())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or(DigestError::NoColon)?;
        match algorithm {
            "crc32" => parse_crc32(encoded).map(Self::Crc32),
            "sha256" => parse_hex(encoded, DigestAlgorithm::Sha256).map(Self::Sha256),
            "sha512" => parse_hex(encoded, DigestAlgorithm::Sha512).map(Self::Sha512),
            _ => Err(DigestError::UnknownAlgorithm),
        }
    }
}

fn parse_crc32(encoded: &str) -> Result<Crc32, DigestError> {
    let canonical = encoded == "0"
        || (!encoded.starts_with('0') && encoded.bytes().all(|byte| byte.is_ascii_digit()));
    match encoded.parse() {
        Ok(value) if canonical => Ok(Crc32(value)),
        _ => Err(DigestError::Crc32Form),
    }
}

fn parse_hex<const N: usize>(
    encoded: &str,
    algorithm: DigestAlgorithm,
) -> Result<[u8; N], DigestError> {
    let mut bytes = [0; N];
    match hex::decode_to_slice(encoded, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(DigestError::HexForm {
            algorithm,
            digits: 2 * N,
        }),
    }
}

/// The digest functions that Dragonfly v2 daemons accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DigestAlgorithm {
    /// CRC-32/ISO-HDLC, a checksum: no protection against intent.
    Crc32,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl fmt::Display for DigestAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crc32 => "crc32",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        })
    }
}

/// Computes a [`Digest`] over bytes that come in portions.
#[derive(Debug, Clone)]
pub struct DigestHasher(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Crc32(Crc32Hasher),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl DigestHasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: DigestAlgorithm) -> Self {
        Self(match algorithm {
            DigestAlgorithm::Crc32 => Inner::Crc32(Crc32Hasher::new()),
            DigestAlgorithm::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            DigestAlgorithm::Sha512 => Inner::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Crc32(hasher) => hasher.update(bytes),
            Inner::Sha256(hasher) => hasher.update(bytes),
            Inner::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            Inner::Crc32(hasher) => Digest::Crc32(hasher.finish()),
            Inner::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Inner::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

/// Why a text is no digest. The caller that stated it must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// No algorithm in front.
    #[error("a digest is written <algorithm>:<value>, this one has no colon")]
    NoColon,
    /// An algorithm that no Dragonfly v2 daemon computes.
    #[error("unknown digest algorithm: use crc32, sha256 or sha512")]
    UnknownAlgorithm,
    /// Not an unsigned 32 bit number in decimal without leading zeros.
    #[error(
        "a crc32 digest is the checksum in decimal without leading zeros, for example crc32:1475635037"
    )]
    Crc32Form,
    /// Not hex, or not as long as the function's output.
    #[error("a {algorithm} digest has exactly {digits} hex digits")]
    HexForm {
        /// The function named in the text.
        algorithm: DigestAlgorithm,
        /// How many digits it takes.
        digits: usize,
    },
    /// A well-formed digest where only a piece digest can stand.
    #[error("a piece digest is a crc32, this one is a {found}")]
    NotCrc32 {
        /// The function named in the text.
        found: DigestAlgorithm,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc32_is_written_in_decimal() {
        assert_eq!(Crc32::of(b"test content").to_string(), "crc32:1475635037");
        assert_eq!(Crc32::of(b"piece content").to_string(), "crc32:2533597436");
        assert_eq!(Crc32::of(&vec![0; 4 << 20]).to_string(), "crc32:289882218");
        assert_eq!("crc32:0".parse(), Ok(Crc32(0)));
    }

    #[test]
    fn other_forms_of_a_crc32_are_refused() {
        for bad in [
            "",
            "crc32",
            "crc32:",
            "crc32:01",
            "crc32:+1",
            "crc32:-1",
            "crc32:864bbb04",
            "crc32: 1",
            "CRC32:1",
            "crc32:4294967296",
        ] {
            assert!(bad.parse::<Crc32>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sha_digests_are_hex() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(DigestAlgorithm::Sha256, b"").to_string(), empty);
        assert_eq!(
            empty
                .to_uppercase()
                .replace("SHA256", "sha256")
                .parse::<Digest>()
                .unwrap()
                .to_string(),
            empty
        );
        assert!(empty[..empty.len() - 1].parse::<Digest>().is_err());
        assert_eq!(
            empty.parse::<Crc32>(),
            Err(DigestError::NotCrc32 {
                found: DigestAlgorithm::Sha256
            })
        );
        assert_eq!(
            Digest::of(DigestAlgorithm::Sha512, b"abc").encoded().len(),
            128
        );
        assert_eq!(
            "md5:d41d8cd98f00b204e9800998ecf8427e".parse::<Digest>(),
            Err(DigestError::UnknownAlgorithm)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_canonical(text in "((crc32|sha256|sha512):)?[0-9a-fx+ ]{0,70}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn digests_survive_their_text(bytes: Vec<u8>) {
            for algorithm in [DigestAlgorithm::Crc32, DigestAlgorithm::Sha256, DigestAlgorithm::Sha512] {
                let digest = Digest::of(algorithm, &bytes);
                prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            }
        }

        #[test]
        fn checksums_combine(a: Vec<u8>, b: Vec<u8>) {
            let whole = Crc32::of(&[a.clone(), b.clone()].concat());
            prop_assert_eq!(Crc32::of(&a).followed_by(Crc32::of(&b), b.len() as u64), whole);
            let mut hasher = Crc32Hasher::new();
            hasher.update(&a);
            hasher.update(&b);
            prop_assert_eq!(hasher.finish(), whole);
        }
    }
}
