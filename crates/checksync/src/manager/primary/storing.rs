//! The store beside the app: it follows what the standbys have committed, or has to hold each epoch itself.

use std::sync::mpsc;

use image::Member;
use replica::PrimaryEvent;
use replica::primary::CommitOn;
use store::Life;

use super::{Actor, Input};
use crate::config::{PrimarySettings, Shared};
use crate::manager::store::{self as stores, StoreFeed, StoreNews, StoreSeat};
use crate::manager::wall_clock_ns;

/// The store as one of the members, where it commits.
pub(super) fn member_of(settings: &PrimarySettings, me: &Member) -> Option<Member> {
    let store = settings.store.as_ref().filter(|_| settings.commit_on == CommitOn::Store)?;
    Some(stores::member(&store.location, me.incarnation))
}

/// What the store of an app is to its primary: one of these, or none.
#[derive(Default)]
pub(super) struct Stores {
    feed: Option<StoreFeed>,
    seat: Option<StoreSeat>,
}

impl Stores {
    /// The store's threads are made before anything depends on them, and know the term when there is one.
    pub fn open(settings: &PrimarySettings, me: &Member, post: &mpsc::Sender<Input>) -> anyhow::Result<Self> {
        let Some(store) = &settings.store else { return Ok(Self::default()) };
        let life = life_of(&settings.shared, me);
        if settings.commit_on != CommitOn::Store {
            let feed = Some(StoreFeed::start(store, &settings.app, life)?);
            return Ok(Self { feed, seat: None });
        }
        let post = post.clone();
        let news = move |news| drop(post.send(Input::Store(news)));
        let seat = Some(StoreSeat::start(store, &settings.app, life, news)?);
        Ok(Self { feed: None, seat })
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
        let Stores { feed, seat } = stores;
        let status = feed.as_ref().map(StoreFeed::status).or(seat.as_ref().map(StoreSeat::status));
        if let Some(status) = status {
            self.board.set_store(&self.settings.app, status);
        }
        (self.store, self.store_seat) = (feed, seat);
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
