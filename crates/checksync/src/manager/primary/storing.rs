//! The store beside the app: it follows what the standbys have committed, or has to hold each epoch itself.

use image::Member;
use replica::primary::CommitOn;
use replica::{Nanos, PrimaryEvent};
use store::Life;

use super::{Actor, Input};
use crate::config::{PrimarySettings, Shared, nanos};
use crate::manager::store::{self as stores, StoreFeed, StoreNews, StoreSeat, StoreStatus};
use crate::manager::wall_clock_ns;
use crate::mpsc;

/// The store as one of the members, where it commits.
pub(super) fn member_of(settings: &PrimarySettings, me: &Member) -> Option<Member> {
    let store = settings.store.as_ref().filter(|_| settings.commit_on == CommitOn::Store)?;
    Some(stores::member(&store.location, me.incarnation))
}

/// How often a store gets a checkpoint while nobody protects the app, where it follows.
pub(super) fn archive_of(settings: &PrimarySettings) -> Option<Nanos> {
    let store = settings.store.as_ref().filter(|_| settings.commit_on != CommitOn::Store)?;
    Some(nanos(store.interval))
}

/// What the store of an app is to its primary: one of these, or none.
#[derive(Default)]
pub(super) struct Stores {
    feed: Option<StoreFeed>,
    seat: Option<StoreSeat>,
    /// What is said of one that can't be used.
    unusable: Option<StoreStatus>,
}

impl Stores {
    /// The store's threads are made before anything depends on them, and know the term when there is one.
    pub fn open(settings: &PrimarySettings, me: &Member, post: &mpsc::Sender<Input>) -> anyhow::Result<Self> {
        let Some(store) = &settings.store else { return Ok(Self::default()) };
        let life = life_of(&settings.shared, me);
        if settings.commit_on != CommitOn::Store {
            let feed = Some(StoreFeed::start(store, &settings.app, life)?);
            return Ok(Self { feed, ..Self::default() });
        }
        let post = post.clone();
        let news = move |news| drop(post.send(Input::Store(news)));
        let seat = Some(StoreSeat::start(store, &settings.app, life, news)?);
        Ok(Self { seat, ..Self::default() })
    }

    /// Of an app that runs: it is worth more than checkpoints of it, unless they are all that protects it.
    pub fn open_if_it_can_be(
        settings: &PrimarySettings,
        me: &Member,
        post: &mpsc::Sender<Input>,
    ) -> anyhow::Result<Self> {
        match (Self::open(settings, me, post), &settings.store) {
            (Err(why), Some(store)) if settings.commit_on != CommitOn::Store => {
                let (location, why) = (store.location.to_string(), format!("{why:#}"));
                tracing::error!(app = settings.app, "its checkpoints go to no store: {why}");
                let unusable = Some(StoreStatus::at_rest(location, store.named_by, Some(why)));
                Ok(Self { unusable, ..Self::default() })
            }
            (opened, _) => opened,
        }
    }
}

/// Who writes into the store.
pub fn life_of(shared: &Shared, me: &Member) -> Life {
    Life {
        host: shared.host().to_owned(),
        register: shared.arbiter.as_ref().map(ToString::to_string),
        incarnation: me.incarnation.0,
        begun_at_ns: wall_clock_ns(),
    }
}

impl Actor {
    pub(super) fn keep(&mut self, stores: Stores) {
        let Stores { feed, seat, unusable } = stores;
        let status = feed.as_ref().map(StoreFeed::status).or(seat.as_ref().map(StoreSeat::status));
        let status = status.or(unusable);
        if let Some(status) = status {
            self.board.set_store(&self.settings.app, status);
        }
        (self.store, self.store_seat) = (feed, seat);
        self.tell_stores();
    }

    /// Whose files they keep.
    pub(super) fn tell_stores(&self) {
        let Some(pid) = self.app_pid else { return };
        self.store.iter().for_each(|feed| feed.app_is(pid));
        self.store_seat.iter().for_each(|seat| seat.app_is(pid));
    }

    /// What it can't go on from it gets anew, standby or not.
    pub(super) fn look_at_the_store(&mut self) {
        if self.store.as_mut().is_some_and(StoreFeed::has_lost) {
            self.step(PrimaryEvent::ArchiveLost);
        }
    }

    pub(super) fn take_store_news(&mut self, news: StoreNews) {
        let Some(seat) = &mut self.store_seat else { return };
        let standby = seat.member.clone();
        match news {
            StoreNews::Ready { session } => {
                tracing::info!(%standby, "the store takes checkpoints");
                seat.open(session);
                self.step(PrimaryEvent::PeerConnected { standby, held: None });
            }
            StoreNews::Stored { session, id } if seat.has(session) => {
                self.step(PrimaryEvent::Acked { from: standby, id });
            }
            StoreNews::Looked { sent_at } if seat.is_open() => {
                self.step(PrimaryEvent::HeartbeatAnswered { from: standby, sent_at, held: None });
            }
            // Whoever has begun a later run ends all sessions.
            StoreNews::Lost { session, why }
                if seat.has(session) || session == u64::MAX && seat.is_open() =>
            {
                seat.let_go();
                self.step(PrimaryEvent::PeerLost { standby, why });
            }
            StoreNews::Trouble { why } => {
                seat.trouble = Some(why);
                self.publish();
            }
            // Of a session that we let go.
            StoreNews::Stored { .. } | StoreNews::Looked { .. } | StoreNews::Lost { .. } => {}
        }
    }

    /// Its session is over, as the machine knows.
    pub(super) fn dismiss(&mut self, standby: &Member) {
        self.seats.dismiss(standby);
        let seat = self.store_seat.as_mut().filter(|seat| seat.member == *standby);
        seat.into_iter().for_each(StoreSeat::let_go);
    }
}
