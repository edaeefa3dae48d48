//! Any file is a task's journal up to some point, and means the same when what was read is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| storage::fuzz_journal(bytes));
