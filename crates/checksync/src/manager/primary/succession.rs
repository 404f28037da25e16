//! A copy that became the app goes on as a primary: it is looked for a standby, and is protected again.
//!
//! In two steps, because the app runs by then and must not be lost to a failure: [`Succession::prepare`] does all that can
//! fail while the app still belongs to the copy's actor, and [`Succession::begin`] only takes it over.

use std::sync::{Arc, OnceLock};

use engine::{Barrier, Engine};
use gate::TapState;
use image::{CheckpointId, Member};
use replica::primary::{Consistency, OnStandbyLoss};
use replica::{Primary, PrimaryEvent, Right};
use tokio::runtime::Handle;

use super::outreach::{Outreach, hold_back};
use super::storing::Stores;
use super::{Actor, Fence, HostFacts, Input, Target, config, now};
use crate::config::PrimarySettings;
use crate::manager::app_socket::AppSocket;
use crate::manager::cell::GuardLine;
use crate::manager::network::{AppNetwork, CopyNetwork};
use crate::manager::output::Forwarding;
use crate::manager::survivor::Note;
use crate::mpsc;
use crate::status::Board;

/// The number of its engine: of a copy there is only one.
pub const ENGINE: u64 = 1;

/// What the winner needs in order to find a standby.
pub struct Succession {
    settings: PrimarySettings,
    me: Member,
    right: Right,
    machine: Primary,
    outreach: Outreach,
    stores: Stores,
    network: Option<AppNetwork>,
}

/// What passes from the copy's actor to the primary's.
pub struct Estate {
    pub pid: i32,
    pub engine: Arc<Engine>,
    pub guard: GuardLine,
    pub forwarding: Option<Forwarding>,
    pub fence: Fence,
    pub socket: AppSocket,
    pub note: Option<Note>,
}

impl Succession {
    /// On failure the app goes on as it was. `barrier` is what its engine calls from then on.
    pub fn prepare(
        settings: PrimarySettings,
        me: Member,
        (right, restored): (Right, CheckpointId),
        facts: &HostFacts,
        network: Option<&CopyNetwork>,
        barrier: &OnceLock<Barrier>,
    ) -> anyhow::Result<Self> {
        let outreach = Outreach::open(&settings, &me, facts)?;
        let stores = Stores::open_if_it_can_be(&settings, &me, &outreach.post)?;
        let machine = Primary::after_takeover(config(&settings, &me), &right, restored, now());
        let mut network = network.map(AppNetwork::of_copy);
        if let (Some(network), Consistency::Strong { on_standby_loss }) = (&mut network, settings.consistency)
        {
            // Nothing that the app says meanwhile is lost. What it says before the gate stands has nobody to cover it,
            // whatever was asked for.
            let at_first = match on_standby_loss {
                OnStandbyLoss::Continue => TapState::Passing,
                OnStandbyLoss::Stop => TapState::Holding,
            };
            // The last step: a gate that goes again takes all output with it.
            hold_back(network, at_first, &outreach.post)?;
            if let Some(made) = network.barrier() {
                // It is set once: there is one takeover.
                let _ = barrier.set(made);
            }
        }
        Ok(Self { settings, me, right, machine, outreach, stores, network })
    }

    /// Where inputs go from now on.
    pub fn post(&self) -> mpsc::Sender<Input> {
        self.outreach.post.clone()
    }

    /// The primary of an app that runs.
    pub fn begin(self, estate: Estate, board: Board, runtime: Handle) -> Actor {
        let Self { settings, me, right, machine, outreach, stores, network } = self;
        let Estate { pid, engine, guard, forwarding, fence, socket, note } = estate;
        let mut actor = Actor::make(settings, Target::Copy, me, machine, outreach, fence, board, runtime);
        actor.network = network;
        actor.engines = ENGINE;
        actor.engine = Some(engine);
        actor.guard = Some(guard);
        actor.forwarding = forwarding;
        actor.socket = Some(socket);
        actor.app_pid = Some(pid);
        actor.note = note;
        actor.begun = true;
        actor.keep(stores);
        actor.store_seat.iter().for_each(|seat| seat.begin(right.term()));
        {
            let mut hello = actor.hello();
            hello.term = right.term();
            hello.guard_token_hash = Some(actor.token.hash());
        }
        actor.board.set_stages(&actor.settings.app, actor.passage.stages());
        actor.seats.iter().for_each(|seat| seat.heart.begin(right.term()));
        actor.step(PrimaryEvent::Tick);
        actor.dial();
        actor
    }
}
