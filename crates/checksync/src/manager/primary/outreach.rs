//! What of a primary reaches beyond its host, the same for an app that was started here and for one that was taken
//! over: its inbox, the register, the heartbeats, and what it says when it knocks.

use std::sync::{Arc, Mutex};

use gate::TapState;
use image::Member;
use wire::Hello;

use super::report::hello;
use super::seats::Seats;
use super::{HostFacts, Input, RegisterDesk};
use crate::config::PrimarySettings;
use crate::manager::network::AppNetwork;
use crate::manager::span;
use crate::mpsc;

pub(super) struct Outreach {
    pub post: mpsc::Sender<Input>,
    pub inbox: mpsc::Receiver<Input>,
    pub register: Option<RegisterDesk>,
    pub seats: Seats,
    pub hello: Arc<Mutex<Hello>>,
}

impl Outreach {
    /// Nothing is said to anybody yet.
    pub fn open(settings: &PrimarySettings, me: &Member, facts: &HostFacts) -> anyhow::Result<Self> {
        let (post, inbox) = mpsc::channel();
        let shared = &settings.shared;
        let answered = post.clone();
        let patience = span(settings.timing.register_timeout());
        let answer = move |ask, answer| drop(answered.send(Input::Register(ask, answer)));
        let register = shared
            .arbiter
            .as_ref()
            .map(|spec| RegisterDesk::open(spec, &shared.tls, &settings.app, patience, answer));
        let register = register.transpose()?;
        let seats = Seats::prepare(settings, &post)?;
        let hello = Arc::new(Mutex::new(hello(settings, me, facts)));
        Ok(Self { post, inbox, register, seats, hello })
    }
}

/// From now on the app's output goes through a gate, and both it and what comes in are told to the actor.
pub(super) fn hold_back(
    network: &mut AppNetwork,
    at_first: TapState,
    post: &mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let (waits, packets) = (post.clone(), post.clone());
    let waits = move |waiting| drop(waits.send(Input::OutputWaits(waiting)));
    let packets = Box::new(move |arrived| drop(packets.send(Input::Arrived(arrived))));
    network.hold_back(at_first, waits, packets)
}
