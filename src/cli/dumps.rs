//! Keeps what is in memory out of core dumps, and other processes of the same user out of the memory.
//!
//! Children that are started later have the core limit too.

use std::io;

/// Sets the limit of core dumps to zero and, on Linux, the process to not dumpable (`PR_SET_DUMPABLE`), which also keeps
/// debuggers of the same user away. Root may still do both.
///
/// # Errors
/// The system refuses.
#[cfg(target_os = "linux")]
pub(super) fn prevent() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Sets the limit of core dumps to zero.
///
/// # Errors
/// The system refuses.
#[cfg(not(target_os = "linux"))]
pub(super) fn prevent() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};

    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};

    #[test]
    fn afterwards_nothing_can_be_dumped() {
        super::prevent().unwrap();
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
