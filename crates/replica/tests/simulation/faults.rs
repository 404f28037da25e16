//! What goes wrong in the simulated world, and what is made wrong to see that it would be noticed.

use replica::Nanos;

/// What is broken on purpose, to show that the simulation sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// The kernel lets the app speak this long after its permit has run out: T1 > T2.
    PermitTooLong,
    /// The standby takes an epoch for prepared when its header comes.
    PreparedTooEarly,
    /// Every swap wins, whatever it expects.
    RegisterForgets,
    /// Output leaves whether or not it is covered.
    GateLeaks,
    /// A standby whose copy is lost keeps the stream open.
    LossKeptSilent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ManagerDies,
    HostDies,
    /// The cell's init dies, and with it the app; nobody says a word.
    GuardDies,
    StandbyDies,
    AppCrashes,
    AppExits,
    AppExecutes,
    CaptureFails,
    /// The standby's next epoch can't be applied.
    ApplyFails,
    Child(bool),
    StreamBreaks,
    /// No message gets from one host to the other.
    Cut(usize, bool),
    /// A host does not reach the register.
    Unreachable(usize, bool),
    Paused(usize, Nanos),
    /// Everything works again, dead managers are started anew.
    Heal,
}
