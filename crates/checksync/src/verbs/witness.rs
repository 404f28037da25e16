//! `witness`: keep registers on a third host, for pairs without etcd.
//!
//! One synced file per app in the state directory, and nothing else: a witness can be stopped, started and moved with
//! its directory. A pair whose witness is away runs on, and `status` says that nobody could take over.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arbiter::{Arbiter, ArbiterError, FileArbiter, Register, Swap};
use async_trait::async_trait;
use tokio::net::TcpListener;
use wire::{
    Handler, Heartbeat, HeartbeatAnswer, Hello, Incoming, Opening, Outgoing, PeerIdentity, Refusal,
    RefusalCode, RegisterAnswer, RegisterQuestion, Silent, TlsFiles,
};

use super::attach::{lock_state, runtime};
use super::standby::{announce, on_stop};
use crate::arguments::WitnessArgs;
use crate::exit::{Coded, Exit};

/// Whoever asked has given up long before.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn run(args: WitnessArgs) -> anyhow::Result<ExitCode> {
    let _state = lock_state(Some(&args.state))?;
    /// Each answer waits for the disk, and nothing else does.
    const NETWORK_THREADS: usize = 1;
    runtime(NETWORK_THREADS)?.block_on(serve(args))
}

async fn serve(args: WitnessArgs) -> anyhow::Result<ExitCode> {
    let tls = TlsFiles::load(&args.pki, args.host.as_deref())?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; does another process?", args.listen))
        .map_err(|why| Coded::new(Exit::Failure, why))?;
    let stop = on_stop()?;
    announce(listener.local_addr()?, args.output.format)?;
    let witness = Arc::new(Witness { registers: FileArbiter::new(&args.state) });
    wire::serve(listener, &tls, wire::Limits::default(), witness, async {
        // The task that sends it lives as long as the runtime.
        let _ = stop.await;
    })
    .await;
    Ok(ExitCode::SUCCESS)
}

struct Witness {
    registers: FileArbiter,
}

impl Witness {
    /// Only who owns a register, or takes it, writes it: any other swap is a confused peer's.
    fn examine(peer: &PeerIdentity, expected: Option<&Register>, new: &Register) -> Result<(), Refusal> {
        if new.owner.name != peer.name {
            let why = format!("{} would make {} the owner", peer.name, new.owner);
            return Err(refusal(why, "give --host as the certificate says"));
        }
        if !new.follows(expected) {
            return Err(refusal("the new value does not follow the old".to_owned(), "report this as a bug"));
        }
        Ok(())
    }
}

fn refusal(why: String, way_out: &str) -> Refusal {
    Refusal { code: RefusalCode::Register, why, way_out: way_out.to_owned() }
}

fn answer(
    mut registers: FileArbiter,
    app: &str,
    question: RegisterQuestion,
) -> Result<RegisterAnswer, ArbiterError> {
    let deadline = Instant::now() + PATIENCE;
    Ok(match question {
        RegisterQuestion::Read => RegisterAnswer::Holds(registers.read(app, deadline)?),
        RegisterQuestion::Swap { expected, new } => {
            let owner = (new.term, new.owner.clone());
            match registers.swap(app, expected.as_ref(), new, deadline)? {
                Swap::Won => {
                    tracing::info!(app, term = %owner.0, owner = %owner.1, "a swap has won");
                    RegisterAnswer::Won
                }
                Swap::Lost(current) => RegisterAnswer::Holds(current),
            }
        }
    })
}

#[async_trait]
impl Handler for Witness {
    async fn replicate(&self, _peer: PeerIdentity, _hello: Hello, opening: Opening) {
        opening.refuse(refusal("this is a witness".to_owned(), "name the port of `checksync standby`"));
    }

    /// The link ends, as nobody holds it.
    async fn beat(&self, _: PeerIdentity, _: Incoming<Heartbeat>, _: Outgoing<HeartbeatAnswer>) {}

    async fn silent(&self, _peer: PeerIdentity, _silent: Silent) -> Result<(), Refusal> {
        Err(refusal("this is a witness".to_owned(), "name the port of `checksync standby`"))
    }

    async fn register(
        &self,
        peer: PeerIdentity,
        app: String,
        question: RegisterQuestion,
    ) -> Result<RegisterAnswer, Refusal> {
        if let RegisterQuestion::Swap { expected, new } = &question {
            Self::examine(&peer, expected.as_ref(), new)?;
        }
        let registers = self.registers.clone();
        let answered = tokio::task::spawn_blocking(move || answer(registers, &app, question)).await;
        let told = |why: &dyn std::error::Error| {
            let cause = why.source().map_or(String::new(), |source| format!(": {source}"));
            tracing::error!("{why}{cause}");
            refusal(format!("{why}{cause}"), "see the witness's log")
        };
        answered.map_err(|panicked| told(&panicked))?.map_err(|why| told(&why))
    }
}
