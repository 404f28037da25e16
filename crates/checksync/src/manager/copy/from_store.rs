//! A copy that is made from a store, by whoever has taken the term for it.

use anyhow::{Context, bail};
use bytes::Bytes;
use engine::{Command, Event};
use image::{CheckpointId, Member};
use replica::{Right, Standby, StandbyConfig};

use super::{Actor, Input};
use crate::manager::policy::Policy;
use crate::manager::primary::Outcome;

impl Actor {
    pub fn me(&self) -> Member {
        Member::new(&self.setup.host, self.incarnation)
    }

    /// Takes in a full checkpoint, to the last thing that can fail.
    pub fn fill(
        &self,
        id: CheckpointId,
        frames: impl Iterator<Item = anyhow::Result<Bytes>>,
    ) -> anyhow::Result<()> {
        let mut frames = frames;
        let first = frames.next().context("a checkpoint without a header")??;
        self.command(Command::Frames(first));
        self.until(|event| matches!(event, Event::EpochBegins { .. }))?;
        self.command(Command::Receive { id, full: true, keep_old: false });
        for frame in frames {
            self.command(Command::Frames(frame?));
        }
        self.until(|event| matches!(event, Event::Prepared { .. }))?;
        self.command(Command::Apply(id));
        self.until(|event| matches!(event, Event::Applied { .. }))
    }

    /// Waits for an event, or for what makes it impossible.
    fn until(&self, awaited: impl Fn(&Event) -> bool) -> anyhow::Result<()> {
        loop {
            match self.inbox.recv().context("the copy's inbox is closed")? {
                Input::Engine(event) if awaited(&event) => return Ok(()),
                Input::Engine(
                    Event::Refused { why, .. } | Event::ApplyFailed { why, .. } | Event::Failed { why },
                ) => bail!(why),
                Input::Engine(Event::Ended) => bail!("the engine ended; see the log"),
                Input::Stop { .. } => bail!("interrupted; nothing was restored"),
                other => tracing::debug!(?other, "while the copy is made"),
            }
        }
    }

    /// Goes on with what was taken in, to the app's end.
    pub fn go_on(mut self, right: Right, id: CheckpointId, policy: Policy) -> Outcome {
        let config = StandbyConfig { me: self.me(), timing: self.setup.timing, fencing: self.setup.fencing };
        self.machine = Standby::from_store(config, right, id);
        self.succession.be_told(policy);
        self.only_to_go_on = true;
        self.run().unwrap_or_else(|| Outcome::Failed("the app's engine ended; see the log".to_owned()))
    }

    /// Leaves nothing behind.
    pub fn give_up(self) {
        self.finish();
    }
}
