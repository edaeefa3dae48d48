//! Who gets which parent: the decisions of a scheduler, without I/O, clock or async.

mod policy;

pub use policy::Policy;
