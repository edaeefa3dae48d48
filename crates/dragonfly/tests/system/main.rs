//! The program as a user runs it: real processes, real sockets, real files.

#![allow(clippy::unwrap_used)]

mod demo;
mod run;
mod up;
