//! The packets of the piece port.
