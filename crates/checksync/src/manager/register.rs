//! The register, asked on a thread of its own: its calls block.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use arbiter::{Arbiter, ArbiterError, ArbiterSpec, Swap};
use replica::{Answer, Ask, Question};
use wire::TlsFiles;

use crate::mpsc;

/// Where questions go. Dropping it ends the thread, once it has its last answer.
#[derive(Debug)]
pub struct RegisterDesk {
    questions: mpsc::Sender<(Ask, Question)>,
}

impl RegisterDesk {
    /// `patience`: how long a question may take; the machine then counts it as unanswered.
    pub fn open(
        spec: &ArbiterSpec,
        tls: &TlsFiles,
        app: &str,
        patience: Duration,
        answer: impl Fn(Ask, Answer) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (questions, asked) = mpsc::channel::<(Ask, Question)>();
        let (mut arbiter, app) = (spec.open(tls).context("no register")?, app.to_owned());
        thread::Builder::new().name("register".to_owned()).spawn(move || {
            for (ask, question) in asked.iter() {
                let answered = put(&mut *arbiter, &app, question, Instant::now() + patience);
                answer(ask, answered.unwrap_or_else(|why| Answer::Unreachable { why: chain(&why) }));
            }
        })?;
        Ok(Self { questions })
    }

    pub fn ask(&self, ask: Ask, question: Question) {
        // The thread ends only with us; if it has panicked, the machine's own deadline tells.
        let _ = self.questions.send((ask, question));
    }
}

/// Waits for the answer.
pub fn put(
    arbiter: &mut dyn Arbiter,
    app: &str,
    question: Question,
    deadline: Instant,
) -> Result<Answer, ArbiterError> {
    match question {
        Question::Read => arbiter.read(app, deadline).map(Answer::Value),
        Question::Swap { expected, new } => match arbiter.swap(app, expected.as_ref(), new, deadline)? {
            Swap::Won => Ok(Answer::Won),
            Swap::Lost(current) => Ok(Answer::Lost(current)),
        },
    }
}

pub fn chain(why: &ArbiterError) -> String {
    match std::error::Error::source(why) {
        Some(source) => format!("{why}: {source}"),
        None => why.to_string(),
    }
}
