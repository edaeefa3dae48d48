//! What every service needs once, and nothing that only one of them needs.
//!
//! A service is started like this: read its [`config`], start its [`log`], make a [`shutdown::Shutdown`], bind its
//! [`listen`]ers, build its [`grpc`] servers and clients (with [`tls`]), expose [`metrics`] and [`health`], and wait for a
//! signal. This crate knows how to do each of these and has no idea what the service is about: no word of the product's
//! domain appears here.
//!
//! Start reading at [`config::Document`] and [`shutdown::Shutdown`].
//!
//! ```
//! use runtime::config::Document;
//! use std::{net::IpAddr, time::Duration};
//!
//! let document = Document::parse("example.yaml", "server:\n  port: 80\n  timeout: 1m\n").unwrap();
//! let server = document.root().section("server");
//! let ip: Option<IpAddr> = server.get("ip");
//! let port = server.get_or("port", 4000_u16);
//! let timeout = server.get_or("timeout", Duration::from_secs(30));
//! let loaded = document.finish((ip, port, timeout)).unwrap();
//! assert_eq!(loaded.value, (None, 80, Duration::from_secs(60)));
//! assert!(loaded.warnings.is_empty());
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod error;
pub mod grpc;
pub mod health;
pub mod http;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod process;
pub mod secret;
pub mod shutdown;
pub mod tls;
