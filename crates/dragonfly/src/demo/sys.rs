//! The one system call that std does not offer: a child that dies with its parent.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child that `command` starts a process group of its own, which the kernel kills with SIGKILL when the **thread**
/// that starts it ends, in whatever way: so nothing survives even a `kill -9` of this process. Start the command from
/// a thread that lives as long as the process; the main thread does.
pub(super) fn bind_to_this_process(command: &mut Command) {
    let parent = rustix::process::getpid();
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. Both calls made here are plain system calls
    // (prctl, getppid); nothing is allocated and no lock is taken, also on the error path, as the error is an errno.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the call above; then no signal will come.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(rustix::io::Errno::CHILD.into())
            }
        });
    }
}
