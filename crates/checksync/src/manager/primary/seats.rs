//! Where standbys are: a seat has a page stream, heartbeats of its own, and one standby at a time.
//!
//! Each standby that is to be kept up to date has its seat. Without a register there is one seat for all: whoever takes
//! the app first has it, and the others are spares.

use std::sync::Arc;

use anyhow::Context;
use image::Member;
use tokio::task::JoinHandle;

use super::{Heart, Input};
use crate::config::PrimarySettings;
use crate::manager::candidates::Candidates;
use crate::manager::introduction;
use crate::manager::link::LinkSender;
use crate::mpsc;

/// A session as the machine sees it.
pub(super) struct Session {
    pub number: u64,
    pub standby: Member,
    pub sender: LinkSender,
}

pub(super) struct Seat {
    pub candidates: Arc<Candidates>,
    pub heart: Heart,
    pub dialling: Option<JoinHandle<()>>,
    pub session: Option<Session>,
    /// Where the standby listens that is connected, or was last, as a number.
    pub address: Option<String>,
    /// Why nobody is there.
    pub trouble: Option<String>,
    pub end_confirmed: bool,
}

#[derive(Default)]
pub(super) struct Seats(Vec<Seat>);

impl Seats {
    /// Nothing is said to anybody yet.
    pub fn prepare(settings: &PrimarySettings, post: &mpsc::Sender<Input>) -> anyhow::Result<Self> {
        let make = |(number, addresses): (usize, Vec<String>)| {
            let candidates = Arc::new(Candidates::new(addresses));
            let post = post.clone();
            let on_answer = move |from: &str, answer| {
                drop(post.send(Input::Heart { seat: number, from: from.to_owned(), answer }));
            };
            let heart = introduction::prepare_heart(settings, &candidates, on_answer);
            let heart = heart.context("no heartbeats can be sent")?;
            let (dialling, session, address, trouble) = (None, None, None, None);
            Ok(Seat { candidates, heart, dialling, session, address, trouble, end_confirmed: false })
        };
        settings.seats().into_iter().enumerate().map(make).collect::<anyhow::Result<_>>().map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Seat> {
        self.0.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.0.iter_mut()
    }

    pub fn at(&mut self, number: usize) -> &mut Seat {
        &mut self.0[number]
    }

    /// Everybody who is connected.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.0.iter().filter_map(|seat| seat.session.as_ref())
    }

    pub fn of(&self, standby: &Member) -> Option<&Session> {
        self.sessions().find(|session| session.standby == *standby)
    }

    /// Lets a standby go.
    pub fn dismiss(&mut self, standby: &Member) {
        for seat in &mut self.0 {
            seat.session.take_if(|session| session.standby == *standby);
        }
    }

    pub fn stop_hearts(&mut self) {
        self.0.iter_mut().for_each(|seat| seat.heart.stop());
    }

    /// Why nobody is there, as far as somebody was looked for.
    pub fn trouble(&self) -> Option<&String> {
        self.0.iter().find_map(|seat| seat.trouble.as_ref())
    }
}
