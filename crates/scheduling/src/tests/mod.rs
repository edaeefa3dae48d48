//! The core as a whole: what single situations lead to, and what must hold in any.

mod mesh;
mod properties;
mod reader;
mod v2;
mod world;
