//! How the three hubs differ: types of repositories, addresses of files and listings.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use crate::{Hub, Redacted, Request, Secret, SourceError};

/// One hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HubKind {
    HuggingFace,
    ModelScope,
    OpenCsg,
}

/// The type that a URL means without one.
const DEFAULT_TYPE: &str = "models";

const IN_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

impl HubKind {
    pub(super) const ALL: [Self; 3] = [Self::HuggingFace, Self::ModelScope, Self::OpenCsg];

    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "modelscope",
            Self::OpenCsg => "opencsg",
        }
    }

    fn base_url(self) -> &'static str {
        match self {
            Self::HuggingFace => "https://huggingface.co",
            Self::ModelScope => "https://modelscope.cn",
            Self::OpenCsg => "https://hub.opencsg.com/csg/",
        }
    }

    fn types(self) -> &'static [&'static str] {
        match self {
            Self::HuggingFace => &["models", "datasets", "spaces"],
            Self::ModelScope => &["models", "datasets"],
            Self::OpenCsg => &["models", "datasets", "spaces", "codes", "mcps", "skills"],
        }
    }

    fn default_revision(self) -> &'static str {
        match self {
            Self::ModelScope => "master",
            Self::HuggingFace | Self::OpenCsg => "main",
        }
    }

    fn options(self, request: &Request) -> Option<&Hub> {
        match self {
            Self::HuggingFace => request.options.hugging_face.as_ref(),
            Self::ModelScope => request.options.model_scope.as_ref(),
            Self::OpenCsg => request.options.open_csg.as_ref(),
        }
    }

    /// Whether addresses of files of this type begin with the type.
    fn names_type(self, repo_type: &str) -> bool {
        self == Self::ModelScope || repo_type != DEFAULT_TYPE
    }
}

/// A file in a repository, or the repository itself.
#[derive(Debug)]
pub(super) struct HubFile {
    kind: HubKind,
    base: Url,
    repo_type: &'static str,
    owner: String,
    repo: String,
    revision: String,
    /// Path in the repository without `/` at its ends; empty for all of it.
    pub(super) path: String,
    pub(super) token: Option<Secret>,
}

impl HubFile {
    /// What the request names.
    pub(super) fn of(request: &Request) -> Result<Self, SourceError> {
        let url = &request.url;
        let invalid = |reason: &str| SourceError::InvalidUrl {
            url: Redacted::url(url),
            reason: reason.to_owned(),
        };
        let kind = HubKind::ALL
            .into_iter()
            .find(|kind| kind.scheme() == url.scheme())
            .ok_or_else(|| invalid("it is of no model hub"))?;
        let mut names = vec![url.host_str().unwrap_or_default().to_owned()];
        let path = url.path().trim_matches('/');
        for name in path.split('/').filter(|_| !path.is_empty()) {
            let name = percent_decode_str(name)
                .decode_utf8()
                .map_err(|_| invalid("its path is not UTF-8"))?;
            names.push(name.into_owned());
        }
        let known = kind.types().iter().find(|known| **known == names[0]);
        let repo_type = match known {
            Some(known) => {
                names.remove(0);
                *known
            }
            None => DEFAULT_TYPE,
        };
        if names.len() < 2
            || names
                .iter()
                .any(|name| matches!(name.as_str(), "" | "." | ".."))
        {
            return Err(invalid(
                "write it as SCHEME://OWNER/REPOSITORY/PATH, with a type such as datasets in front of the owner if it is no model",
            ));
        }
        let default = Hub::default();
        let options = kind.options(request).unwrap_or(&default);
        let base = options.base_url.as_deref().filter(|base| !base.is_empty());
        let base = base.unwrap_or(kind.base_url());
        let invalid_base = || SourceError::InvalidOption {
            url: Redacted::url(url),
            reason: "the base URL of the hub must be one of http or https, without a query"
                .to_owned(),
        };
        let mut base = Url::parse(base).map_err(|_| invalid_base())?;
        if !matches!(base.scheme(), "http" | "https") || base.query().is_some() {
            return Err(invalid_base());
        }
        base.set_path(&format!("{}/", base.path().trim_end_matches('/')));
        let path = names.split_off(2).join("/");
        let repo = names.pop().unwrap_or_default();
        let owner = names.pop().unwrap_or_default();
        let revision = if options.revision.is_empty() {
            kind.default_revision().to_owned()
        } else {
            options.revision.clone()
        };
        Ok(Self {
            kind,
            base,
            repo_type,
            owner,
            repo,
            revision,
            path,
            token: options
                .token
                .clone()
                .filter(|token| !token.expose().is_empty()),
        })
    }

    /// Where the bytes are asked for; `None` for a repository.
    pub(super) fn content_url(&self) -> Option<Url> {
        if self.path.is_empty() {
            return None;
        }
        let mut names = Vec::new();
        if self.kind.names_type(self.repo_type) {
            names.push(self.repo_type);
        }
        names.extend([&*self.owner, &*self.repo, "resolve", &*self.revision]);
        names.extend(self.path.split('/'));
        Some(self.at(&names))
    }

    /// Where the files of the repository are told.
    pub(super) fn listing_url(&self) -> Url {
        let id = [self.repo_type, &*self.owner, &*self.repo];
        match self.kind {
            HubKind::HuggingFace | HubKind::OpenCsg => {
                let names = [&["api"], &id[..], &["revision", &*self.revision]].concat();
                let mut url = self.at(&names);
                // With the lengths of the files, which are left out otherwise.
                url.set_query(Some("blobs=true"));
                url
            }
            HubKind::ModelScope => {
                let names = [&["api", "v1"], &id[..], &["repo", "files"]].concat();
                let mut url = self.at(&names);
                url.query_pairs_mut()
                    .append_pair("Revision", &self.revision)
                    .append_pair("Recursive", "true");
                url
            }
        }
    }

    /// The part of a listed path below the path of this one.
    pub(super) fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        if self.path.is_empty() {
            return Some(path);
        }
        path.strip_prefix(&*self.path)?.strip_prefix('/')
    }

    /// The URL of a listed file, in the form that Dragonfly v2 gives it, so that it names the same task; `None` for a path that a URL would change.
    pub(super) fn entry_url(&self, path: &str) -> Option<Url> {
        let names_type = self.kind == HubKind::OpenCsg || self.repo_type != DEFAULT_TYPE;
        let prefix = if names_type {
            format!("{}/", self.repo_type)
        } else {
            String::new()
        };
        let path: Vec<String> = path.split('/').map(encoded).collect();
        if path
            .iter()
            .any(|name| matches!(name.as_str(), "" | "." | ".."))
        {
            return None;
        }
        let text = format!(
            "{}://{prefix}{}/{}/{}",
            self.kind.scheme(),
            self.owner,
            encoded(&self.repo),
            path.join("/")
        );
        Url::parse(&text).ok()
    }

    fn at(&self, names: &[&str]) -> Url {
        let mut url = self.base.clone();
        let names: Vec<String> = names.iter().map(|name| encoded(name)).collect();
        url.set_path(&format!("{}{}", self.base.path(), names.join("/")));
        url
    }
}

fn encoded(name: &str) -> String {
    utf8_percent_encode(name, IN_NAME).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OriginOptions;

    fn file(url: &str, revision: &str, base_url: Option<&str>) -> Result<HubFile, SourceError> {
        let hub = Hub {
            revision: revision.to_owned(),
            token: None,
            base_url: base_url.map(str::to_owned),
        };
        let options = OriginOptions {
            hugging_face: Some(hub.clone()),
            model_scope: Some(hub.clone()),
            open_csg: Some(hub),
            ..OriginOptions::default()
        };
        HubFile::of(&Request::new(url).unwrap().with_options(options))
    }

    fn check(url: &str, revision: &str, content: &str, listing: &str) {
        let file = file(url, revision, None).unwrap();
        assert_eq!(file.content_url().unwrap().as_str(), content);
        assert_eq!(file.listing_url().as_str(), listing);
    }

    #[test]
    fn every_hub_has_its_addresses() {
        check(
            "hf://deepseek-ai/DeepSeek-OCR/model.safetensors",
            "main",
            "https://huggingface.co/deepseek-ai/DeepSeek-OCR/resolve/main/model.safetensors",
            "https://huggingface.co/api/models/deepseek-ai/DeepSeek-OCR/revision/main?blobs=true",
        );
        check(
            "hf://datasets/o/r/a%20b/c",
            "refs/pr/1",
            "https://huggingface.co/datasets/o/r/resolve/refs%2Fpr%2F1/a%20b/c",
            "https://huggingface.co/api/datasets/o/r/revision/refs%2Fpr%2F1?blobs=true",
        );
        check(
            "modelscope://deepseek-ai/DeepSeek-R1/config.json",
            "",
            "https://modelscope.cn/models/deepseek-ai/DeepSeek-R1/resolve/master/config.json",
            "https://modelscope.cn/api/v1/models/deepseek-ai/DeepSeek-R1/repo/files?Revision=master&Recursive=true",
        );
        check(
            "opencsg://mcps/owner/repo/server.json",
            "",
            "https://hub.opencsg.com/csg/mcps/owner/repo/resolve/main/server.json",
            "https://hub.opencsg.com/csg/api/mcps/owner/repo/revision/main?blobs=true",
        );
    }

    #[test]
    fn a_base_url_keeps_its_path() {
        let file = file("hf://o/r/f", "v1", Some("http://mirror.corp/hf")).unwrap();
        assert_eq!(
            file.content_url().unwrap().as_str(),
            "http://mirror.corp/hf/o/r/resolve/v1/f"
        );
    }

    #[test]
    fn entries_have_the_form_of_dragonfly_v2() {
        let entry = |url: &str| {
            file(url, "", None)
                .unwrap()
                .entry_url("d/f #")
                .unwrap()
                .to_string()
        };
        assert_eq!(entry("hf://models/Qwen/R/"), "hf://Qwen/R/d/f%20%23");
        assert_eq!(entry("hf://datasets/o/r"), "hf://datasets/o/r/d/f%20%23");
        assert_eq!(entry("opencsg://o/r"), "opencsg://models/o/r/d/f%20%23");
        assert_eq!(file("hf://o/r", "", None).unwrap().entry_url("../x"), None);
    }

    #[test]
    fn a_folder_of_a_repository_holds_what_is_below_it() {
        let folder = file("hf://o/r/a/b/", "", None).unwrap();
        assert_eq!(folder.below("a/b/c"), Some("c"));
        assert_eq!(folder.below("a/bc"), None);
        assert_eq!(file("hf://o/r", "", None).unwrap().below("x"), Some("x"));
    }

    #[test]
    fn what_names_no_repository_is_refused() {
        for url in ["hf://o", "hf://datasets/o", "hf:///o/r", "hf://o/r//f"] {
            assert!(
                matches!(file(url, "", None), Err(SourceError::InvalidUrl { .. })),
                "{url}"
            );
        }
        for base in ["ftp://h", "https://h?x=y", "nonsense"] {
            assert!(file("hf://o/r", "", Some(base)).is_err(), "{base}");
        }
    }
}
