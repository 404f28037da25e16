//! TCP connections, and datagrams, go on in another process, on what is another host as far as their peers can tell: three
//! network namespaces of the test's own, and one address that moves. Needs root, as the manager does.

#[path = "../descriptors/stage.rs"]
#[allow(dead_code, reason = "shared with the tests of descriptors, which use all of it")]
mod stage;

mod bulk;
mod carried;
mod closed;
mod datagrams;
mod endings;
mod inside;
mod queues;
mod states;
mod strays;
mod waiting;
mod world;
