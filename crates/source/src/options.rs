//! What a caller must tell about origins that are no web servers.

use crate::Secret;

/// The options of a request by kind of origin; a backend reads its own and no other (`common.v2.Download`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct OriginOptions {
    /// For `s3`, `gs`, `abs`, `oss`, `obs` and `cos` (`object_storage`).
    pub object_storage: Option<ObjectStorage>,
    /// For `hdfs` (`hdfs`).
    pub hdfs: Option<Hdfs>,
    /// For `hf` (`hugging_face`).
    pub hugging_face: Option<Hub>,
    /// For `modelscope` (`model_scope`).
    pub model_scope: Option<Hub>,
    /// For `opencsg` (`open_csg`).
    pub open_csg: Option<Hub>,
}

/// `common.v2.ObjectStorage`. Absent and empty texts mean the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ObjectStorage {
    /// Region; only S3 knows it, with `us-east-1` as the default.
    pub region: Option<String>,
    /// Where the service is, as a URL or a host, which then means HTTPS. Without the bucket.
    pub endpoint: Option<String>,
    /// Access key id; the account's name on Azure.
    pub access_key_id: Option<String>,
    /// Access key secret; the account's key in base64 on Azure.
    pub access_key_secret: Option<Secret>,
    /// Token that goes with temporary keys (S3).
    pub session_token: Option<Secret>,
    /// Token that goes with temporary keys (OSS, OBS, COS).
    pub security_token: Option<Secret>,
    /// Credential file on the daemon's host (Google).
    pub credential_path: Option<String>,
    /// Whether to skip the verification of certificates.
    pub insecure_skip_verify: bool,
}

/// `common.v2.HDFS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Hdfs {
    /// Delegation token for WebHDFS.
    pub delegation_token: Option<Secret>,
}

/// `common.v2.HuggingFace`, `ModelScope` and `OpenCSG`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Hub {
    /// Branch, tag or commit; empty for the hub's usual branch.
    pub revision: String,
    /// Access token.
    pub token: Option<Secret>,
    /// Where the hub is, if not at its usual address.
    pub base_url: Option<String>,
}
