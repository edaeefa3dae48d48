//! Access to origins that are not plain HTTP: the options that several tools share, and the messages they become.

use clap::Args;
use dragonfly_api::common::v2::{Download, Hdfs, HuggingFace, ModelScope, ObjectStorage, OpenCsg};

/// Options that only some URL schemes use; they are sent along only with these.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Object storages, HDFS and model hubs")]
pub struct OriginArguments {
    /// Region of the object storage.
    #[arg(long, env = "DFGET_STORAGE_REGION")]
    pub storage_region: Option<String>,
    /// Endpoint of the object storage.
    #[arg(long, env = "DFGET_STORAGE_ENDPOINT")]
    pub storage_endpoint: Option<String>,
    /// Access key id.
    #[arg(long, env = "DFGET_STORAGE_ACCESS_KEY_ID", hide_env_values = true)]
    pub storage_access_key_id: Option<String>,
    /// Access key secret.
    #[arg(long, env = "DFGET_STORAGE_ACCESS_KEY_SECRET", hide_env_values = true)]
    pub storage_access_key_secret: Option<String>,
    /// Security token of OSS.
    #[arg(long, env = "DFGET_STORAGE_SECURITY_TOKEN", hide_env_values = true)]
    pub storage_security_token: Option<String>,
    /// Session token of S3.
    #[arg(long, env = "DFGET_STORAGE_SESSION_TOKEN", hide_env_values = true)]
    pub storage_session_token: Option<String>,
    /// Do not verify the certificate of the object storage.
    #[arg(long, env = "DFGET_STORAGE_INSECURE_SKIP_VERIFY", value_name = "BOOL")]
    pub storage_insecure_skip_verify: Option<bool>,
    /// Credentials of Google Cloud Storage, a path on the host of the daemon.
    #[arg(long, env = "DFGET_STORAGE_CREDENTIAL_PATH")]
    pub storage_credential_path: Option<String>,
    /// Access rights of new objects in Google Cloud Storage.
    #[arg(
        long,
        env = "DFGET_STORAGE_PREDEFINED_ACL",
        default_value = "publicRead"
    )]
    pub storage_predefined_acl: Option<String>,
    /// Delegation token of HDFS.
    #[arg(long, env = "DFGET_HDFS_DELEGATION_TOKEN", hide_env_values = true)]
    pub hdfs_delegation_token: Option<String>,
    /// Branch, tag or commit at Hugging Face.
    #[arg(long, env = "DFGET_HF_REVISION", default_value = "main")]
    pub hf_revision: String,
    /// Token of Hugging Face.
    #[arg(long, env = "DFGET_HF_TOKEN", hide_env_values = true)]
    pub hf_token: Option<String>,
    /// Another address than that of Hugging Face.
    #[arg(long, env = "DFGET_HF_BASE_URL")]
    pub hf_base_url: Option<String>,
    /// Branch, tag or commit at ModelScope.
    #[arg(long, env = "DFGET_MS_REVISION", default_value = "master")]
    pub ms_revision: String,
    /// Token of ModelScope.
    #[arg(long, env = "DFGET_MS_TOKEN", hide_env_values = true)]
    pub ms_token: Option<String>,
    /// Another address than that of ModelScope.
    #[arg(long, env = "DFGET_MS_BASE_URL")]
    pub ms_base_url: Option<String>,
    /// Branch, tag or commit at OpenCSG.
    #[arg(long, env = "DFGET_CSG_REVISION", default_value = "main")]
    pub csg_revision: String,
    /// Token of OpenCSG.
    #[arg(long, env = "DFGET_CSG_TOKEN", hide_env_values = true)]
    pub csg_token: Option<String>,
    /// Another address than that of OpenCSG.
    #[arg(long, env = "DFGET_CSG_BASE_URL")]
    pub csg_base_url: Option<String>,
}

impl OriginArguments {
    /// A message with the options for the origin of `scheme`, and for no other: credentials are told to nobody who does not
    /// need them.
    pub(crate) fn of_scheme(&self, scheme: &str) -> Download {
        let mut download = Download::default();
        match scheme {
            "s3" | "gs" | "abs" | "oss" | "obs" | "cos" => {
                download.object_storage = Some(ObjectStorage {
                    region: self.storage_region.clone(),
                    endpoint: self.storage_endpoint.clone(),
                    access_key_id: self.storage_access_key_id.clone(),
                    access_key_secret: self.storage_access_key_secret.clone(),
                    session_token: self.storage_session_token.clone(),
                    credential_path: self.storage_credential_path.clone(),
                    predefined_acl: self.storage_predefined_acl.clone(),
                    security_token: self.storage_security_token.clone(),
                    insecure_skip_verify: self.storage_insecure_skip_verify,
                });
            }
            "hdfs" => {
                download.hdfs = Some(Hdfs {
                    delegation_token: self.hdfs_delegation_token.clone(),
                })
            }
            "hf" => {
                download.hugging_face = Some(HuggingFace {
                    token: self.hf_token.clone(),
                    revision: self.hf_revision.clone(),
                    base_url: self.hf_base_url.clone(),
                });
            }
            "modelscope" => {
                download.model_scope = Some(ModelScope {
                    token: self.ms_token.clone(),
                    revision: self.ms_revision.clone(),
                    base_url: self.ms_base_url.clone(),
                });
            }
            "opencsg" => {
                download.open_csg = Some(OpenCsg {
                    token: self.csg_token.clone(),
                    revision: self.csg_revision.clone(),
                    base_url: self.csg_base_url.clone(),
                });
            }
            _ => {}
        }
        download
    }
}
