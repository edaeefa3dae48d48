//! Which machines an image is for.

use std::fmt;
use std::str::FromStr;

/// Most platforms that one request may name.
const PLATFORMS_MAX: usize = 16;

/// An operating system and a processor, as OCI indexes name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`, `windows`, …
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7` of `arm/v7`; none means any.
    pub variant: Option<String>,
}

/// The text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no platform: expected os/architecture, such as linux/amd64 or linux/arm/v7, several of them with commas in between, or all"
)]
pub struct PlatformError {
    text: String,
}

impl Platform {
    /// The platform of this program.
    pub fn current() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// Whether whoever wants `self` takes what is for `offered`.
    pub fn takes(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant == offered.variant)
    }

    /// With the names that Go gives, which indexes use.
    pub(crate) fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = |text: &str| text.to_ascii_lowercase();
        let os = match lower(os).as_str() {
            "macos" => "darwin".to_owned(),
            _ => lower(os),
        };
        let (architecture, variant) = match lower(architecture).as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), variant.map(lower)),
            // Every arm64 is a v8: indexes write it or leave it out.
            "aarch64" | "arm64" => (
                "arm64".to_owned(),
                variant.map(lower).filter(|it| it != "v8"),
            ),
            "armhf" => ("arm".to_owned(), Some("v7".to_owned())),
            "armel" => ("arm".to_owned(), Some("v6".to_owned())),
            "x86" | "i386" => ("386".to_owned(), variant.map(lower)),
            _ => (lower(architecture), variant.map(lower)),
        };
        Self {
            os,
            architecture,
            variant,
        }
    }

    /// What build tools put into an index beside the images: attestations, which no runtime pulls.
    pub(crate) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// The platforms that a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// Every one that the image is made for.
    All,
    /// These; what is missing of them is an error only if nothing is left.
    These(Vec<Platform>),
}

impl Platforms {
    /// Whether an entry of an index for `offered` is wanted.
    pub fn want(&self, offered: &Platform) -> bool {
        match self {
            Self::All => !offered.is_unknown(),
            Self::These(wanted) => wanted.iter().any(|wanted| wanted.takes(offered)),
        }
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::These(wanted) => {
                let texts: Vec<String> = wanted.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join(","))
            }
        }
    }
}

impl FromStr for Platforms {
    type Err = PlatformError;

    /// `all`, or platforms with commas in between.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refused = || PlatformError {
            text: text.chars().take(128).collect(),
        };
        if text == "all" {
            return Ok(Self::All);
        }
        let is_word = |word: &&str| {
            !word.is_empty()
                && word.len() <= 64
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let mut wanted = Vec::new();
        for one in text.split(',') {
            let words: Vec<&str> = one.trim().splitn(4, '/').filter(is_word).collect();
            let platform = match words[..] {
                [os, architecture] if one.matches('/').count() == 1 => {
                    Platform::new(os, architecture, None)
                }
                [os, architecture, variant] if one.matches('/').count() == 2 => {
                    Platform::new(os, architecture, Some(variant))
                }
                _ => return Err(refused()),
            };
            wanted.push(platform);
        }
        if wanted.len() > PLATFORMS_MAX {
            return Err(refused());
        }
        Ok(Self::These(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_and_shown() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7, linux/386", "linux/arm/v7,linux/386"),
            ("all", "all"),
        ] {
            assert_eq!(text.parse::<Platforms>().unwrap().to_string(), shown);
        }
        let many = vec!["linux/amd64"; PLATFORMS_MAX + 1].join(",");
        for wrong in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "a/b/c/d",
            "a b/c",
            "linux/amd64,",
            &many,
        ] {
            assert!(wrong.parse::<Platforms>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wish_without_variant_takes_every_one() {
        let arm: Platforms = "linux/arm".parse().unwrap();
        assert!(arm.want(&Platform::new("linux", "arm", Some("v7"))));
        let v7: Platforms = "linux/arm/v7".parse().unwrap();
        assert!(!v7.want(&Platform::new("linux", "arm", Some("v6"))));
        assert!(!v7.want(&Platform::new("linux", "arm", None)));
        let arm64: Platforms = "linux/arm64".parse().unwrap();
        assert!(arm64.want(&Platform::new("linux", "arm64", Some("v8"))));
        assert!(!Platforms::All.want(&Platform::new("unknown", "unknown", None)));
        assert!(!Platform::current().os.is_empty());
    }
}
