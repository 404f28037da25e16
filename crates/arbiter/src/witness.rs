//! The register on a third host, where `checksync witness` keeps it.

use std::time::{Duration, Instant};

use image::Register;
use wire::{Client, RegisterAnswer, RegisterQuestion, TlsFiles};

use crate::encoding::is_name;
use crate::members::{Dial, Members};
use crate::{Arbiter, ArbiterError, Swap};

/// The caller's deadline is shorter.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct WitnessArbiter {
    witness: Members<Dialler>,
}

#[derive(Debug, Clone)]
struct Dialler {
    tls: TlsFiles,
}

impl Dial for Dialler {
    type Client = Client;

    async fn dial(&self, address: &str) -> Result<Client, String> {
        Client::connect(address, &self.tls, PATIENCE).await.map_err(|why| chain(&why))
    }
}

impl WitnessArbiter {
    /// `address` is HOST:PORT. Nothing is connected before the first call.
    pub fn new(address: &str, tls: &TlsFiles) -> Result<Self, ArbiterError> {
        let register = format!("witness:{address}");
        let witness = Members::new(register, &[address.to_owned()], Dialler { tls: tls.clone() })?;
        Ok(Self { witness })
    }

    fn ask(
        &mut self,
        app: &str,
        question: RegisterQuestion,
        deadline: Instant,
    ) -> Result<RegisterAnswer, ArbiterError> {
        if !is_name(app) {
            return Err(ArbiterError::BadName(app.to_owned()));
        }
        let app = app.to_owned();
        self.witness.ask(deadline, move |client| {
            let (app, question) = (app.clone(), question.clone());
            async move { client.register(&app, question).await.map_err(|why| chain(&why)) }
        })
    }

    fn confused(&self) -> ArbiterError {
        let why = "it says that a question has won; install the same release on all hosts".to_owned();
        ArbiterError::Unreachable { register: self.witness.register().to_owned(), why }
    }
}

impl Arbiter for WitnessArbiter {
    fn read(&mut self, app: &str, deadline: Instant) -> Result<Option<Register>, ArbiterError> {
        match self.ask(app, RegisterQuestion::Read, deadline)? {
            RegisterAnswer::Holds(current) => Ok(current),
            RegisterAnswer::Won => Err(self.confused()),
        }
    }

    fn swap(
        &mut self,
        app: &str,
        expected: Option<&Register>,
        new: Register,
        deadline: Instant,
    ) -> Result<Swap, ArbiterError> {
        assert!(new.follows(expected), "the register of {app} can't go from {expected:?} to {new:?}");
        let question = RegisterQuestion::Swap { expected: expected.cloned(), new: new.clone() };
        Ok(match self.ask(app, question, deadline)? {
            RegisterAnswer::Won => Swap::Won,
            // An attempt whose answer was lost has won.
            RegisterAnswer::Holds(Some(current)) if current == new => Swap::Won,
            RegisterAnswer::Holds(current) => Swap::Lost(current),
        })
    }
}

fn chain(why: &wire::WireError) -> String {
    match std::error::Error::source(why) {
        Some(source) => format!("{why}: {source}"),
        None => why.to_string(),
    }
}
