//! One question to whichever member of a cluster answers first.
//!
//! The member that answered last is asked first, on the connection that is there. If it has not answered after a
//! moment the next one is asked as well, and so on: the member that died together with the primary's host is the
//! usual reason for a takeover, and must not cost it a timeout. A connection that failed, or whose answer nobody
//! waited for, is not used again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

use crate::ArbiterError;

/// Many times what a healthy member needs, a fraction of what suspicion takes.
const HEDGE: Duration = Duration::from_millis(15);

/// How a connection to a member is made.
pub(crate) trait Dial: Clone + Send + Sync + 'static {
    type Client: Clone + Send + 'static;

    fn dial(&self, address: &str) -> impl Future<Output = Result<Self::Client, String>> + Send;
}

#[derive(Debug)]
pub(crate) struct Members<D: Dial> {
    /// For messages: how the operator named the register.
    register: String,
    dial: D,
    members: Vec<Arc<Member<D::Client>>>,
    first: usize,
    /// Its one worker keeps the connections alive while nobody asks.
    runtime: Runtime,
}

#[derive(Debug)]
struct Member<C> {
    address: String,
    idle: Mutex<Option<C>>,
}

impl<C> Member<C> {
    fn idle(&self) -> MutexGuard<'_, Option<C>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Dial> Members<D> {
    pub(crate) fn new(register: String, addresses: &[String], dial: D) -> Result<Self, ArbiterError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("register-io")
            .enable_all()
            .build()
            .map_err(|why| ArbiterError::Setup { register: register.clone(), why: why.to_string() })?;
        let member = |address: &String| Arc::new(Member { address: address.clone(), idle: Mutex::default() });
        Ok(Self { members: addresses.iter().map(member).collect(), register, dial, first: 0, runtime })
    }

    pub(crate) fn register(&self) -> &str {
        &self.register
    }

    /// `call` may be made on several members, and on each more than once.
    pub(crate) fn ask<T, F, W>(&mut self, deadline: Instant, call: W) -> Result<T, ArbiterError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, String>> + Send + 'static,
        W: Fn(D::Client) -> F + Clone + Send + Sync + 'static,
    {
        let asked_at = Instant::now();
        let order: Vec<usize> =
            (0..self.members.len()).map(|n| (self.first + n) % self.members.len()).collect();
        let racing = async {
            let mut racing = JoinSet::new();
            let mut failures: Vec<String> = Vec::new();
            let mut waiting = order.iter();
            let mut next_at = tokio::time::Instant::now();
            loop {
                tokio::select! {
                    biased;
                    Some(ended) = racing.join_next() => match ended {
                        Ok((index, Ok(answer))) => return Ok((index, answer)),
                        Ok((_, Err(why))) => {
                            failures.push(why);
                            next_at = tokio::time::Instant::now();
                        }
                        Err(panicked) => failures.push(panicked.to_string()),
                    },
                    () = sleep_until(next_at), if waiting.len() > 0 => {
                        let index = *waiting.next().expect("it is not empty");
                        let (member, dial, call) =
                            (Arc::clone(&self.members[index]), self.dial.clone(), call.clone());
                        racing.spawn(async move { (index, attempt(&member, dial, call).await) });
                        next_at = tokio::time::Instant::now() + HEDGE;
                    },
                    else => return Err(failures.join("; ")),
                }
            }
        };
        let answered = self.runtime.block_on(async { timeout_at(deadline.into(), racing).await });
        match answered {
            Ok(Ok((index, answer))) => {
                self.first = index;
                Ok(answer)
            }
            Ok(Err(why)) => Err(ArbiterError::Unreachable { register: self.register.clone(), why }),
            Err(_) => Err(ArbiterError::Late { register: self.register.clone(), waited: asked_at.elapsed() }),
        }
    }
}

/// On the connection that is there, and on a new one if that turns out to be dead.
async fn attempt<D, T, F, W>(member: &Member<D::Client>, dial: D, call: W) -> Result<T, String>
where
    D: Dial,
    F: Future<Output = Result<T, String>>,
    W: Fn(D::Client) -> F,
{
    let idle = member.idle().take();
    if let Some(client) = idle
        && let Ok(answer) = call(client.clone()).await
    {
        *member.idle() = Some(client);
        return Ok(answer);
    }
    let client = dial.dial(&member.address).await?;
    let answer = call(client.clone()).await?;
    *member.idle() = Some(client);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Members by what they do; counts how often each was connected to.
    #[derive(Debug, Clone, Default)]
    struct Fake {
        dialled: Arc<AtomicU32>,
    }

    impl Dial for Fake {
        type Client = String;

        async fn dial(&self, address: &str) -> Result<String, String> {
            self.dialled.fetch_add(1, Ordering::SeqCst);
            if address == "dead" { Err("refused".to_owned()) } else { Ok(address.to_owned()) }
        }
    }

    async fn answer(member: String) -> Result<String, String> {
        match member.as_str() {
            "hangs" => std::future::pending().await,
            _ => Ok(member),
        }
    }

    fn members(addresses: &[&str]) -> (Members<Fake>, Arc<AtomicU32>) {
        let addresses: Vec<_> = addresses.iter().map(|&address| address.to_owned()).collect();
        let fake = Fake::default();
        let dialled = Arc::clone(&fake.dialled);
        (Members::new("test".to_owned(), &addresses, fake).unwrap(), dialled)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn who_hangs_or_is_dead_costs_a_moment_and_not_the_deadline() {
        let (mut members, dialled) = members(&["hangs", "dead", "well"]);
        let asked_at = Instant::now();
        assert_eq!(members.ask(soon(), answer).unwrap(), "well");
        assert!(asked_at.elapsed() < Duration::from_secs(5));
        assert_eq!(dialled.load(Ordering::SeqCst), 3);
        assert_eq!(members.ask(soon(), answer).unwrap(), "well");
        assert_eq!(dialled.load(Ordering::SeqCst), 3, "who answered is asked first, on the same connection");
    }

    #[test]
    fn a_connection_that_died_is_made_anew_within_the_question() {
        let (mut members, dialled) = members(&["well"]);
        assert_eq!(members.ask(soon(), answer).unwrap(), "well");
        let calls = Arc::new(AtomicU32::new(0));
        let flaky = move |member| {
            let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if first { Err("broken pipe".to_owned()) } else { Ok(member) } }
        };
        assert_eq!(members.ask(soon(), flaky).unwrap(), "well");
        assert_eq!(dialled.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_error_says_what_each_member_said() {
        let (mut members, _) = members(&["dead", "dead"]);
        let error = members.ask(soon(), answer).unwrap_err().to_string();
        assert!(error.contains("test") && error.contains("refused; refused"), "{error}");
    }
}
