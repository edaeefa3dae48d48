//! The six services: which options they need and where an object of theirs is.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use url::Url;

use crate::{ObjectStorage, Redacted, SourceError};

/// One kind of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Service {
    /// Amazon S3 and what speaks like it.
    S3,
    /// Google Cloud Storage, by its JSON API.
    Gs,
    /// Azure Blob Storage.
    Abs,
    /// Aliyun OSS.
    Oss,
    /// Huawei OBS.
    Obs,
    /// Tencent COS.
    Cos,
}

impl Service {
    pub(super) const ALL: [Self; 6] = [
        Self::S3,
        Self::Gs,
        Self::Abs,
        Self::Oss,
        Self::Obs,
        Self::Cos,
    ];

    pub(super) fn of(scheme: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|service| service.scheme() == scheme)
    }

    pub(super) fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Abs => "abs",
            Self::Oss => "oss",
            Self::Obs => "obs",
            Self::Cos => "cos",
        }
    }

    /// Where the service is if the caller does not say.
    fn default_endpoint(self, region: &str) -> Option<String> {
        match self {
            Self::S3 if region.starts_with("cn-") => {
                Some(format!("https://s3.{region}.amazonaws.com.cn"))
            }
            Self::S3 => Some(format!("https://s3.{region}.amazonaws.com")),
            Self::Gs => Some("https://storage.googleapis.com".to_owned()),
            Self::Abs | Self::Oss | Self::Obs | Self::Cos => None,
        }
    }
}

/// The bucket that a URL names, and the key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bucket {
    pub(super) service: Service,
    pub(super) name: String,
    /// Decoded. Empty for the whole bucket.
    pub(super) key: Vec<u8>,
    pub(super) region: String,
    /// What goes in front of a key, with `/` at the end.
    base: Url,
    /// What the signatures of OBS and OSS call the bucket.
    pub(super) signed_name: String,
}

/// All but what no service escapes, so that the path in the URL is the path in the signature.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');
/// The same for a part of a path that is one name, or a value in a query.
const IN_NAME: &AsciiSet = &IN_PATH.add(b'/');

impl Bucket {
    pub(super) fn new(
        service: Service,
        url: &Url,
        options: &ObjectStorage,
    ) -> Result<Self, SourceError> {
        let invalid = |reason: &str| SourceError::InvalidUrl {
            url: Redacted::url(url),
            reason: reason.to_owned(),
        };
        let name = url.host_str().unwrap_or_default();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !name.bytes().all(allowed) || url.port().is_some() {
            return Err(invalid(
                "what stands behind :// must be the name of a bucket",
            ));
        }
        if url.path().is_empty() {
            return Err(invalid(
                "write it as SCHEME://BUCKET/KEY, or SCHEME://BUCKET/ for the whole bucket",
            ));
        }
        if url.query().is_some() {
            return Err(invalid("it has a query: a ? in a key is written %3F"));
        }
        let region = given(&options.region).unwrap_or("us-east-1").to_owned();
        let endpoint = match given(&options.endpoint) {
            Some(endpoint) => endpoint.to_owned(),
            None => service
                .default_endpoint(&region)
                .ok_or_else(|| SourceError::InvalidOption {
                    url: Redacted::url(url),
                    reason: format!(
                        "{} need endpoint: give the address of the service, dfget does with --storage-endpoint",
                        service.scheme()
                    ),
                })?,
        };
        let endpoint = endpoint_url(&endpoint).map_err(|reason| SourceError::InvalidOption {
            url: Redacted::url(url),
            reason: format!(
                "the endpoint {:?} {reason}",
                Redacted::text(&endpoint).to_string()
            ),
        })?;
        let (base, signed_name) =
            base(service, endpoint, name).ok_or_else(|| SourceError::InvalidOption {
                url: Redacted::url(url),
                reason:
                    "the endpoint must have a host name, in front of which the bucket's can stand"
                        .to_owned(),
            })?;
        Ok(Self {
            service,
            name: name.to_owned(),
            key: percent_decode_str(url.path().trim_start_matches_once('/')).collect(),
            region,
            base,
            signed_name,
        })
    }

    /// Where the object with this key is.
    pub(super) fn object(&self, key: &[u8], shown: &Url) -> Result<Url, SourceError> {
        let mut url = self.base.clone();
        let path = match self.service {
            Service::Gs => format!(
                "{}storage/v1/b/{}/o/{}",
                self.base.path(),
                self.name,
                percent_encode(key, IN_NAME)
            ),
            _ => format!("{}{}", self.base.path(), percent_encode(key, IN_PATH)),
        };
        url.set_path(&path);
        if url.path() != path {
            return Err(SourceError::InvalidUrl {
                url: Redacted::url(shown),
                reason: "a key with . or .. between slashes cannot be asked for over HTTP"
                    .to_owned(),
            });
        }
        if self.service == Service::Gs {
            url.set_query(Some("alt=media"));
        }
        Ok(url)
    }

    /// Where a page of the keys with this prefix is.
    pub(super) fn listing(&self, prefix: &[u8], next: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let (mut query, token) = match self.service {
            Service::S3 | Service::Oss => ("list-type=2".to_owned(), "continuation-token"),
            Service::Obs | Service::Cos => ("max-keys=1000".to_owned(), "marker"),
            Service::Abs => ("restype=container&comp=list".to_owned(), "marker"),
            Service::Gs => {
                url.set_path(&format!("{}storage/v1/b/{}/o", self.base.path(), self.name));
                ("maxResults=1000".to_owned(), "pageToken")
            }
        };
        if matches!(self.service, Service::S3 | Service::Abs) {
            // These address the bucket itself without a slash at the end.
            let path = self.base.path().trim_end_matches('/').to_owned();
            url.set_path(&path);
        }
        if !prefix.is_empty() {
            query.push_str(&format!("&prefix={}", percent_encode(prefix, IN_NAME)));
        }
        if let Some(next) = next {
            query.push_str(&format!(
                "&{token}={}",
                percent_encode(next.as_bytes(), IN_NAME)
            ));
        }
        url.set_query(Some(&query));
        url
    }

    /// The URL of a listed key in the caller's own words.
    pub(super) fn entry(&self, key: &str, shown: &Url) -> Result<Url, SourceError> {
        let text = format!(
            "{}://{}/{}",
            self.service.scheme(),
            self.name,
            percent_encode(key.as_bytes(), IN_PATH)
        );
        let url = Url::parse(&text).map_err(|error| SourceError::NotListable {
            url: Redacted::url(shown),
            reason: error.to_string(),
        })?;
        if url.as_str() != text {
            return Err(SourceError::NotListable {
                url: Redacted::url(shown),
                reason: format!("it holds the key {key:?}, which no URL can name"),
            });
        }
        Ok(url)
    }
}

trait TrimOnce {
    fn trim_start_matches_once(&self, first: char) -> &str;
}

impl TrimOnce for str {
    fn trim_start_matches_once(&self, first: char) -> &str {
        self.strip_prefix(first).unwrap_or(self)
    }
}

/// A text that was given and is not empty.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn endpoint_url(text: &str) -> Result<Url, &'static str> {
    let url = if text.contains("://") {
        Url::parse(text)
    } else {
        Url::parse(&format!("https://{text}"))
    };
    let mut url = url.map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://");
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("must be an address only, without query or user");
    }
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

/// What goes in front of a key, and what the signature calls the bucket.
fn base(service: Service, mut endpoint: Url, bucket: &str) -> Option<(Url, String)> {
    let host = endpoint.host_str()?.to_owned();
    let mut signed_name = bucket.to_owned();
    match service {
        Service::Gs => {}
        Service::S3 | Service::Abs => {
            let path = format!("{}{bucket}/", endpoint.path());
            endpoint.set_path(&path);
        }
        Service::Oss | Service::Cos => {
            endpoint.domain()?;
            endpoint.set_host(Some(&format!("{bucket}.{host}"))).ok()?;
        }
        Service::Obs => {
            let is_default = host.starts_with("obs.")
                && (host.ends_with(".myhuaweicloud.com") || host.ends_with(".huawei.com"));
            if is_default {
                endpoint.set_host(Some(&format!("{bucket}.{host}"))).ok()?;
            } else {
                // A domain of one's own stands for one bucket, and signatures name it instead.
                signed_name = host;
            }
        }
    }
    Some((endpoint, signed_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: &str) -> ObjectStorage {
        ObjectStorage {
            endpoint: Some(endpoint.to_owned()).filter(|text| !text.is_empty()),
            ..ObjectStorage::default()
        }
    }

    fn bucket(url: &str, endpoint: &str) -> Result<Bucket, SourceError> {
        let url = Url::parse(url).unwrap();
        let service = Service::of(url.scheme()).unwrap();
        Bucket::new(service, &url, &options(endpoint))
    }

    fn check(url: &str, endpoint: &str, object: &str, listing: &str) {
        let bucket = bucket(url, endpoint).unwrap();
        let shown = Url::parse(url).unwrap();
        assert_eq!(bucket.object(&bucket.key, &shown).unwrap().as_str(), object);
        assert_eq!(bucket.listing(b"d/", Some("a=&b")).as_str(), listing);
    }

    #[test]
    fn every_service_has_its_addresses() {
        check(
            "s3://b/d/x%20y+z",
            "",
            "https://s3.us-east-1.amazonaws.com/b/d/x%20y%2Bz",
            "https://s3.us-east-1.amazonaws.com/b?list-type=2&prefix=d%2F&continuation-token=a%3D%26b",
        );
        check(
            "s3://b/d//x%20",
            "minio.corp:9000",
            "https://minio.corp:9000/b/d//x%20",
            "https://minio.corp:9000/b?list-type=2&prefix=d%2F&continuation-token=a%3D%26b",
        );
        check(
            "gs://b/d/x",
            "",
            "https://storage.googleapis.com/storage/v1/b/b/o/d%2Fx?alt=media",
            "https://storage.googleapis.com/storage/v1/b/b/o?maxResults=1000&prefix=d%2F&pageToken=a%3D%26b",
        );
        check(
            "abs://c/d/x",
            "http://127.0.0.1:1/account",
            "http://127.0.0.1:1/account/c/d/x",
            "http://127.0.0.1:1/account/c?restype=container&comp=list&prefix=d%2F&marker=a%3D%26b",
        );
        check(
            "oss://b/d/x",
            "oss-cn-hangzhou.aliyuncs.com",
            "https://b.oss-cn-hangzhou.aliyuncs.com/d/x",
            "https://b.oss-cn-hangzhou.aliyuncs.com/?list-type=2&prefix=d%2F&continuation-token=a%3D%26b",
        );
        check(
            "obs://b/d/x",
            "https://obs.cn-north-4.myhuaweicloud.com",
            "https://b.obs.cn-north-4.myhuaweicloud.com/d/x",
            "https://b.obs.cn-north-4.myhuaweicloud.com/?max-keys=1000&prefix=d%2F&marker=a%3D%26b",
        );
        check(
            "obs://b/d/x",
            "http://files.corp",
            "http://files.corp/d/x",
            "http://files.corp/?max-keys=1000&prefix=d%2F&marker=a%3D%26b",
        );
        check(
            "cos://b-125/d/x",
            "cos.ap-nanjing.myqcloud.com",
            "https://b-125.cos.ap-nanjing.myqcloud.com/d/x",
            "https://b-125.cos.ap-nanjing.myqcloud.com/?max-keys=1000&prefix=d%2F&marker=a%3D%26b",
        );
    }

    #[test]
    fn what_is_missing_or_senseless_is_told() {
        for scheme in ["abs", "oss", "obs", "cos"] {
            let error = bucket(&format!("{scheme}://b/x"), "").unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(&format!("{scheme} need endpoint")),
                "{error}"
            );
        }
        for url in [
            "s3://b",
            "s3:///x",
            "s3://b/x?y",
            "s3://b:1/x",
            "s3://b%2F../x",
        ] {
            let parsed = Url::parse(url).unwrap();
            let refused = Bucket::new(Service::S3, &parsed, &options("")).unwrap_err();
            assert!(matches!(refused, SourceError::InvalidUrl { .. }), "{url}");
        }
        for endpoint in ["ftp://h", "http://", "https://h?x", "https://u:p@h"] {
            assert!(bucket("s3://b/x", endpoint).is_err(), "{endpoint}");
        }
        assert!(bucket("oss://b/x", "http://127.0.0.1:1").is_err());
    }

    #[test]
    fn a_key_that_a_url_would_change_is_refused() {
        let bucket = bucket("s3://b/x", "").unwrap();
        let shown = Url::parse("s3://b/x").unwrap();
        for key in ["a/../b", "./a", "a/."] {
            assert!(bucket.object(key.as_bytes(), &shown).is_err(), "{key}");
            assert!(bucket.entry(key, &shown).is_err(), "{key}");
        }
        for key in ["a//b", " a ", "a\nb", "a%2Fb", "...", "ä?#&+;"] {
            bucket.object(key.as_bytes(), &shown).unwrap();
            let entry = bucket.entry(key, &shown).unwrap();
            let back = Bucket::new(Service::S3, &entry, &options("")).unwrap();
            assert_eq!(back.key, key.as_bytes());
        }
    }
}
