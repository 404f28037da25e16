//! The standby daemon: the door that primaries knock at, and one actor per app behind it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_trait::async_trait;
use replica::{Fencing, Timing};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use wire::{
    Consistency, Handler, Heartbeat, HeartbeatAnswer, Hello, Incoming, Opening, Outgoing, PeerIdentity,
    Refusal, RefusalCode, Silent, TlsFiles,
};

use super::control::News;
use super::copy::{Actor, Input, Schedule, Setup};
use super::drill::Order;
use super::ear::Ear;
use super::host::HostFacts;
use super::places::{Found, NoPlace, Places, Reservation};
use super::policy::Policy;
use super::store::StoreSettings;
use super::structures::{self, Copies};
use crate::config::{check_name, fencing_name, nanos, network_spec};
use crate::mpsc;
use crate::status::{self, Board};

/// Each app takes a thread or two and a copy of its memory.
pub const APPS_MAX: usize = 100;

pub struct Daemon {
    pub host: String,
    pub fencing: Fencing,
    pub arbiter: Option<arbiter::ArbiterSpec>,
    pub tls: TlsFiles,
    pub state: Option<PathBuf>,
    pub shipped: Arc<engine::Cache>,
    pub promote_hook: Option<OsString>,
    pub pki: PathBuf,
    /// Of what is served here after a takeover.
    pub standbys: Vec<String>,
    /// Where checkpoints of that go, instead of where the primary says.
    pub store: Option<StoreSettings>,
    /// Where the apps' addresses are; the primary's word without it.
    pub link: Option<String>,
    pub drills: Schedule,
    pub facts: HostFacts,
    pub board: Board,
    pub runtime: Handle,
    pub ear: Ear,
    pub apps: Arc<Places<App>>,
}

/// An app, as the door knows it.
pub struct App {
    keeper: Keeper,
    timing: Timing,
    network: Option<gate::NetworkSpec>,
}

/// Who keeps it: the actor of a process's copy, or its structures.
enum Keeper {
    Process { post: mpsc::Sender<Input>, thread: JoinHandle<()> },
    Structures(Arc<Copies>),
}

/// Where what is said of an app goes.
#[derive(Clone)]
enum Post {
    Process(mpsc::Sender<Input>),
    Structures(Arc<Copies>),
}

impl App {
    fn is_over(&self) -> bool {
        match &self.keeper {
            Keeper::Process { thread, .. } => thread.is_finished(),
            Keeper::Structures(copies) => copies.is_over(),
        }
    }

    fn post(&self) -> Post {
        match &self.keeper {
            Keeper::Process { post, .. } => Post::Process(post.clone()),
            Keeper::Structures(copies) => Post::Structures(Arc::clone(copies)),
        }
    }

    /// Dropping a copy is quick; what is served here gets `grace`.
    fn stop(&self, grace: Duration) {
        match &self.keeper {
            // One that has ended needs no telling.
            Keeper::Process { post, .. } => drop(post.send(Input::Stop { grace })),
            Keeper::Structures(copies) => copies.stop(grace),
        }
    }

    /// The way to its keeper, if that is what this primary needs.
    fn fits(
        &self,
        hello: &Hello,
        timing: Timing,
        network: Option<&gate::NetworkSpec>,
    ) -> Result<Post, Refusal> {
        let app = &hello.app;
        if matches!(self.keeper, Keeper::Structures(_)) != hello.structures.is_some() {
            return Err(Refusal {
                code: RefusalCode::Host,
                why: format!("{app} was followed with another --replicate here"),
                way_out: "choose another name, or restart the standby".to_owned(),
            });
        }
        if self.network.as_ref() != network {
            return Err(Refusal {
                code: RefusalCode::Host,
                why: format!("{app} was followed with another address here"),
                way_out: "give the same --address, --link and --gateway, or restart the standby".to_owned(),
            });
        }
        if self.timing != timing {
            return Err(Refusal {
                code: RefusalCode::Fencing,
                why: format!("{app} was followed with other heartbeats here"),
                way_out: "give the same --heartbeat and --missed, or restart the standby".to_owned(),
            });
        }
        Ok(self.post())
    }
}

impl Daemon {
    /// What keeps this primary and us from being a pair, whatever the app.
    fn examine(&self, peer: &PeerIdentity, hello: &Hello) -> Result<Timing, Refusal> {
        let refuse = |code, why: String, way_out: &str| Refusal { code, why, way_out: way_out.to_owned() };
        check_name(&hello.app).map_err(|why| refuse(RefusalCode::Busy, why.to_string(), "choose another"))?;
        if hello.primary_name != peer.name {
            let why = format!("{} calls itself {:?}", peer.name, hello.primary_name);
            return Err(refuse(RefusalCode::Host, why, "say --host as the certificate does"));
        }
        let ours = fencing_name(self.fencing);
        if hello.fencing != ours {
            let why = format!("fencing is {:?} on the primary and {ours:?} on the standby", hello.fencing);
            return Err(refuse(RefusalCode::Fencing, why, "give both the same --arbiter, or --fencing none"));
        }
        if hello.structures.is_none() {
            let theirs = HostFacts::decode(&hello.host_facts);
            let fits = theirs.and_then(|theirs| theirs.fits(&self.facts));
            fits.map_err(|why| refuse(RefusalCode::Host, why.to_string(), why.way_out()))?;
        }
        Timing::new(nanos(hello.heartbeat), hello.missed)
            .map_err(|why| refuse(RefusalCode::Fencing, why.to_string(), "change --heartbeat or --missed"))
    }

    /// The app's network, as it is to be here.
    fn network(&self, hello: &Hello) -> Result<Option<gate::NetworkSpec>, Refusal> {
        let Some(network) = &hello.network else { return Ok(None) };
        let refuse = |why: String| Refusal {
            code: RefusalCode::Host,
            why,
            way_out: "change --address, --link or --gateway on the primary, or --link here".to_owned(),
        };
        let link = self.link.as_ref().unwrap_or(&network.link);
        network_spec(&network.address, link, network.gateway.as_deref())
            .map(Some)
            .map_err(|why| refuse(format!("{why:#}")))
    }

    /// The actor of an app, made if there is none.
    async fn actor(&self, hello: &Hello, timing: Timing) -> Result<Post, Refusal> {
        let app = hello.app.as_str();
        let network = self.network(hello)?;
        let look = |known: &App| known.fits(hello, timing, network.as_ref());
        let place = match self.apps.find_or_reserve(app, App::is_over, look) {
            Ok(Found::There(known)) => return known,
            Ok(Found::Free(place)) => place,
            Err(no_place) => return Err(crowded(app, &no_place)),
        };
        let failed = |why: anyhow::Error| Refusal {
            code: RefusalCode::Host,
            why: format!("{why:#}"),
            way_out: "see the standby's log".to_owned(),
        };
        if hello.structures.is_some() {
            let keeper = self.keep_structures(app, timing).map_err(failed)?;
            return settle(App { keeper, timing, network }, place).map_err(failed);
        }
        // Without a primary here its output is held back by nobody.
        let goes_on = !self.standbys.is_empty() || self.store.is_some() || names_a_store(hello);
        let gated = hello.consistency == Consistency::Strong && network.is_some() && goes_on;
        let setup = Setup {
            app: app.to_owned(),
            host: self.host.clone(),
            timing,
            fencing: self.fencing,
            arbiter: self.arbiter.clone(),
            tls: self.tls.clone(),
            state: self.state.clone(),
            shipped: Arc::clone(&self.shipped),
            promote_hook: self.promote_hook.clone(),
            pki: self.pki.clone(),
            standbys: self.standbys.clone(),
            store: self.store.clone(),
            gated,
            network,
            host_facts: self.facts.encode(),
            drills: self.drills.clone(),
            board: self.board.clone(),
            runtime: self.runtime.clone(),
        };
        // Devices, control groups and packet filters take their time, and the network has other apps' heartbeats.
        let made = self.runtime.spawn_blocking(move || start_actor(setup, place)).await;
        made.unwrap_or_else(|why| Err(why.into())).map_err(failed)
    }

    fn keep_structures(&self, app: &str, timing: Timing) -> anyhow::Result<Keeper> {
        let address = self.board.address().unwrap_or_default();
        let port = address.rsplit(':').next().unwrap_or_default();
        let copies = Copies::new(structures::Setup {
            app: app.to_owned(),
            host: self.host.clone(),
            timing,
            fencing: self.fencing,
            arbiter: self.arbiter.clone(),
            tls: self.tls.clone(),
            promote_hook: self.promote_hook.clone(),
            pki: self.pki.clone(),
            state: self.state.clone(),
            standbys: self.standbys.clone(),
            board: self.board.clone(),
            runtime: self.runtime.clone(),
            socket: status::run_dir()?.join(format!("standby-{port}-{app}.structures")),
        })?;
        Ok(Keeper::Structures(copies))
    }

    fn find(&self, app: &str) -> Option<Post> {
        self.apps.find(app, App::post)
    }

    /// Has a drill of this app's copy held. Whoever asked hears what came of it.
    pub fn drill(&self, app: &str, order: Order) {
        let refuse = |order: Order, why: String| {
            if let Some(listener) = order.listener {
                listener.say(News::CalledOff { why });
            }
        };
        match self.find(app) {
            Some(Post::Process(actor)) => {
                if let Err(mpsc::SendError(Input::Drill(order))) = actor.send(Input::Drill(order)) {
                    refuse(order, "the app has ended here".to_owned());
                }
            }
            Some(Post::Structures(_)) => {
                let why = "its structures are kept here, and no process that could be restored".to_owned();
                refuse(order, why);
            }
            None => refuse(order, "no copy of it is kept here".to_owned()),
        }
    }

    /// Ends every app: copies are dropped, and what is served here gets `grace`.
    pub fn stop(&self, grace: Duration) {
        let apps = self.apps.take_all();
        apps.iter().for_each(|app| app.stop(grace));
        for app in apps {
            if let Keeper::Process { thread, .. } = app.keeper {
                // A panic was logged.
                drop(thread.join());
            }
        }
    }
}

fn names_a_store(hello: &Hello) -> bool {
    Policy::of_hello(hello).is_some_and(|policy| policy.names_a_store())
}

fn crowded(app: &str, no_place: &NoPlace) -> Refusal {
    let (why, way_out) = match no_place {
        NoPlace::Reserved => (format!("{app} is just being prepared here"), "wait a moment"),
        NoPlace::Full(max) => (format!("{max} apps are kept here already"), "use another standby"),
    };
    Refusal { code: RefusalCode::Busy, why, way_out: way_out.to_owned() }
}

fn start_actor(setup: Setup, place: Reservation<App>) -> anyhow::Result<Post> {
    let (timing, network) = (setup.timing, setup.network.clone());
    let (actor, post) = Actor::new(setup)?;
    let thread = thread::Builder::new().name("standby".to_owned()).spawn(move || drop(actor.run()))?;
    settle(App { keeper: Keeper::Process { post, thread }, timing, network }, place)
}

/// Puts an app in its place, unless the daemon was stopped meanwhile.
fn settle(app: App, place: Reservation<App>) -> anyhow::Result<Post> {
    let post = app.post();
    place.fill(app).map(|()| post).map_err(|app| {
        // It keeps nothing yet, so it ends at once.
        app.stop(Duration::ZERO);
        anyhow::anyhow!("the standby is stopping")
    })
}

#[async_trait]
impl Handler for Daemon {
    async fn replicate(&self, peer: PeerIdentity, hello: Hello, opening: Opening) {
        let actor = match self.examine(&peer, &hello) {
            Ok(timing) => self.actor(&hello, timing).await,
            Err(refusal) => Err(refusal),
        };
        match actor {
            // An actor that ends right now drops the opening, and the primary tries again.
            Ok(Post::Process(actor)) => drop(actor.send(Input::Hello(Box::new(hello), opening))),
            Ok(Post::Structures(copies)) => copies.hello(Box::new(hello), opening),
            Err(refusal) => {
                tracing::warn!(%peer, app = hello.app, "refused a primary: {refusal}");
                opening.refuse(refusal);
            }
        }
    }

    fn heartbeats_run_on(&self) -> Handle {
        self.ear.runtime().clone()
    }

    async fn beat(
        &self,
        peer: PeerIdentity,
        mut beats: Incoming<Heartbeat>,
        answers: Outgoing<HeartbeatAnswer>,
    ) {
        let mut known: Option<(String, Post)> = None;
        while let Some(Ok(beat)) = beats.recv().await {
            let over = |post: &Post| matches!(post, Post::Structures(copies) if copies.is_over());
            if known.as_ref().is_none_or(|(app, post)| *app != beat.app || over(post)) {
                known = self.find(&beat.app).map(|actor| (beat.app.clone(), actor));
            }
            let Some((_, actor)) = &known else { continue };
            match actor {
                Post::Process(actor) => {
                    let input = Input::Beat { from: peer.name.clone(), beat, answers: answers.clone() };
                    if actor.send(input).is_err() {
                        known = None;
                    }
                }
                Post::Structures(copies) => copies.beat(&peer.name, beat, answers.clone()),
            }
        }
    }

    async fn silent(&self, _peer: PeerIdentity, silent: Silent) -> Result<(), Refusal> {
        let refuse = |why: &str| Refusal {
            code: RefusalCode::Guard,
            why: why.to_owned(),
            way_out: "nothing is to be done".to_owned(),
        };
        let Some(Post::Process(actor)) = self.find(&silent.app) else {
            return Err(refuse("no such process is kept here"));
        };
        let (answer, answered) = oneshot::channel();
        let ended = || refuse("the app has ended here");
        actor.send(Input::Silent(silent, answer)).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}
