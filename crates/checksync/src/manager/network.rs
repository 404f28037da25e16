//! The network of one app that has an address of its own: namespace, address and gate go together, and so does the
//! giving up of all three.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use engine::Barrier;
use gate::{
    CellNetwork, Claim, GateError, NetworkError, NetworkSpec, PermitHandle, Recorded, Recorder, TapGate,
    TapHandle, TapOptions, TapState, Waiting, replay,
};
use image::CheckpointId;
use replica::primary::Output;

/// What the record of incoming packets may take while the link to the standby is slow.
const RECORD_BYTES_MAX: usize = 16 << 20;

/// The primary's side.
#[derive(Debug)]
pub struct AppNetwork {
    // Before the network that it is on.
    strong: Option<Strong>,
    network: Arc<CellNetwork>,
    muted: bool,
}

#[derive(Debug)]
struct Strong {
    gate: TapGate,
    recorder: Arc<Recorder>,
}

impl AppNetwork {
    /// Nothing leaves it yet, and nobody finds it.
    pub fn create(spec: NetworkSpec, app: &str, permit: Option<&PermitHandle>) -> anyhow::Result<Self> {
        let network = make(spec, app, permit).context("cannot give the app a network of its own")?;
        Ok(Self { network: Arc::new(network), strong: None, muted: false })
    }

    /// That of a copy which was taken over: raised already.
    pub fn of_copy(copy: &CopyNetwork) -> Self {
        Self { strong: None, network: Arc::clone(&copy.0), muted: false }
    }

    /// From now on output goes through the gate, which is `at_first` as said; `waits` is called when it begins to wait, and when
    /// nobody else is to be expected.
    pub fn hold_back(
        &mut self,
        at_first: TapState,
        waits: impl Fn(Waiting) + Send + Sync + 'static,
        packets: gate::OnPackets,
    ) -> anyhow::Result<()> {
        let options = TapOptions { at_first, on_waiting: Some(Box::new(waits)), ..TapOptions::default() };
        let gate = TapGate::open(&self.network, options).context("cannot hold the app's output back")?;
        let recorder = Recorder::start(&self.network, RECORD_BYTES_MAX, packets);
        let recorder = Arc::new(recorder.context("cannot record what comes in for the app")?);
        self.strong = Some(Strong { gate, recorder });
        Ok(())
    }

    pub fn namespace(&self) -> io::Result<OwnedFd> {
        self.network.namespace().try_clone_to_owned()
    }

    /// What the engine calls in each freeze.
    pub fn barrier(&self) -> Option<Barrier> {
        let Strong { gate, recorder } = self.strong.as_ref()?;
        let (gate, recorder) = (gate.handle(), Arc::clone(recorder));
        Some(Barrier(Arc::new(move |id| {
            gate.barrier(id).map_err(|why| why.to_string())?;
            recorder.mark(id);
            tracing::trace!(target: "epochs", %id, "epoch marked");
            Ok(())
        })))
    }

    /// What the engine calls in the last freeze before a move, where output is not held back anyway: from then on
    /// nothing gets in or out, so that the connections stay as they are read.
    pub fn last_barrier(&self) -> Option<Barrier> {
        let network = Arc::clone(&self.network);
        self.strong.is_none().then_some(Barrier(Arc::new(move |_| {
            network.shut_out();
            network.shut_in();
            Ok(())
        })))
    }

    /// The move was called off.
    pub fn open_again(&self) {
        if self.strong.is_none() {
            self.network.let_in();
            self.network.let_out();
        }
    }

    /// The term is ours, and nobody has served before.
    pub fn serve(&self) -> anyhow::Result<()> {
        self.network.raise(Claim::Fresh).context("cannot take the app's address")?;
        if self.strong.is_none() {
            self.network.let_out();
        }
        Ok(())
    }

    pub fn set_output(&mut self, output: Output) {
        match output {
            Output::Shut => self.give_up(),
            // The permit has run out: somebody else may have the address by now.
            Output::Muted => {
                self.muted = true;
                lower(&self.network);
            }
            Output::Held => self.speak(TapHandle::hold),
            Output::Passing => self.speak(TapHandle::pass),
        }
    }

    /// With the address, if it was given up for the time.
    fn speak(&mut self, set: fn(&TapHandle) -> Result<(), GateError>) {
        if std::mem::take(&mut self.muted)
            && let Err(why) = self.network.raise(Claim::Takeover)
        {
            tracing::error!("the app does not get its address back: {why}");
        }
        if let Some(Err(why)) = self.gate().as_ref().map(set) {
            tracing::error!("the app's output stays shut in: {why}");
        }
    }

    /// Whether output waits that no barrier has covered.
    pub fn waits(&self) -> bool {
        self.gate().is_some_and(|gate| gate.waiting().is_some())
    }

    /// The standby has this epoch.
    pub fn release(&self, id: CheckpointId) {
        if let Some(Err(why)) = self.gate().map(|gate| gate.release(id)) {
            tracing::debug!(%id, "nothing is let out: {why}");
        }
    }

    /// Nothing leaves any more, and nobody is answered.
    pub fn give_up(&self) {
        if let Some(gate) = self.gate() {
            gate.discard();
        }
        self.network.shut_out();
        lower(&self.network);
    }

    fn gate(&self) -> Option<TapHandle> {
        self.strong.as_ref().map(|strong| strong.gate.handle())
    }
}

/// Whoever fails to is killed with all that it has, or is mute by its permit.
fn lower(network: &CellNetwork) {
    if let Err(why) = network.lower() {
        tracing::error!("the app's address is not given up: {why}");
    }
}

/// When we die, the permit goes on: what the cell's kernel says by itself, for the address above all, ends with it, and
/// not only when the guard has torn down the last process.
fn make(spec: NetworkSpec, app: &str, permit: Option<&PermitHandle>) -> Result<CellNetwork, NetworkError> {
    let network = CellNetwork::create(spec, app)?;
    permit.map_or(Ok(()), |permit| network.obey(permit))?;
    Ok(network)
}

/// The standby's side: there before a takeover, for the copy to be made in, and silent until then.
#[derive(Debug, Clone)]
pub struct CopyNetwork(Arc<CellNetwork>);

impl CopyNetwork {
    pub fn create(spec: NetworkSpec, app: &str, permit: Option<&PermitHandle>) -> anyhow::Result<Self> {
        let network = make(spec, app, permit).context("cannot give the copy a network of its own")?;
        network.shut_in();
        Ok(Self(Arc::new(network)))
    }

    pub fn namespace(&self) -> io::Result<OwnedFd> {
        self.0.namespace().try_clone_to_owned()
    }

    /// After a takeover that failed.
    pub fn give_up(&self) {
        self.0.shut_out();
        self.0.shut_in();
        lower(&self.0);
    }

    /// For the takeover: `packets` came in on the primary, and the copy has not seen them.
    pub fn to_be_raised(&self, packets: Vec<Recorded>) -> Box<dyn engine::CellNetwork> {
        Box::new(Raising { network: Arc::clone(&self.0), packets })
    }
}

#[derive(Debug)]
struct Raising {
    network: Arc<CellNetwork>,
    packets: Vec<Recorded>,
}

impl engine::CellNetwork for Raising {
    fn raise(&mut self) -> io::Result<()> {
        self.network.let_out();
        self.network.raise(Claim::Takeover).map_err(io::Error::other)
    }

    fn let_in(&mut self) -> io::Result<()> {
        self.network.let_in();
        let packets: Vec<&[u8]> = self.packets.iter().map(|recorded| recorded.packet.as_slice()).collect();
        let address = self.network.spec().address.ip();
        match replay(self.network.namespace().as_fd(), address, &packets) {
            Ok(replayed) => tracing::debug!(?replayed, "what came in last was repeated"),
            // Their senders will repeat it themselves, later.
            Err(why) => tracing::warn!("what came in last is not repeated: {why}"),
        }
        Ok(())
    }
}
