//! What the gate costs: a client and an app on a bridge of their own, with no gate, with one that passes, and
//! with one that holds each epoch for a few milliseconds. `cargo run --release --example gate_cost`

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gate::netlink::Netlink;
use gate::{CellNetwork, Claim, Namespace, NetworkSpec, TapGate, TapHandle, TapOptions};
use image::CheckpointId;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const SPAN: Duration = Duration::from_secs(3);
const RUNS: usize = 3;
const BLOCK: usize = 256 << 10;

#[derive(Debug, Clone, Copy)]
enum Way {
    NoGate,
    Passing,
    Holding(Duration),
}

struct Street {
    bridge: Namespace,
    client: Namespace,
}

impl Street {
    fn new() -> Outcome<Self> {
        let street = Self { bridge: Namespace::new()?, client: Namespace::new()? };
        street.bridge.within(|| {
            let netlink = Netlink::open()?;
            netlink.add_bridge("br0")?;
            netlink.add_veth("client", "eth0", street.client.as_fd())?;
            let index = netlink.link("client")?.index;
            netlink.set_master(index, netlink.link("br0")?.index)?;
            netlink.set_up(index)
        })?;
        street.client.within(|| {
            let netlink = Netlink::open()?;
            let index = netlink.link("eth0")?.index;
            netlink.add_address(index, [10, 9, 0, 1].into(), 24)?;
            netlink.set_up(index)
        })?;
        Ok(street)
    }

    fn cell(&self) -> Outcome<CellNetwork> {
        let spec = NetworkSpec::new("10.9.0.9/24".parse()?, "br0", None)?;
        let made = thread::scope(|scope| {
            let make = || {
                self.bridge.enter().map_err(gate::NetworkError::from)?;
                CellNetwork::create(spec, "cost")
            };
            scope.spawn(make).join()
        });
        Ok(made.map_err(|_| "the thread panicked")??)
    }
}

/// The app: echoes, swallows or pours out, as the first byte of a connection says.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming().map_while(Result::ok) {
        thread::spawn(move || {
            // The client hangs up when it has seen enough.
            let _ = serve_one(stream);
        });
    }
}

fn serve_one(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    let mut block = vec![0; BLOCK];
    loop {
        match order[0] {
            b'e' => {
                stream.read_exact(&mut block[..32])?;
                stream.write_all(&block[..32])?;
            }
            b's' => {
                if stream.read(&mut block)? == 0 {
                    return Ok(());
                }
            }
            _ => stream.write_all(&block)?,
        }
    }
}

fn connect(street: &Street, to: SocketAddr, order: u8) -> io::Result<TcpStream> {
    let mut stream = street.client.within(|| TcpStream::connect(to))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[order])?;
    Ok(stream)
}

/// Gb/s of one connection from the app to the client.
fn egress(street: &Street, to: SocketAddr) -> io::Result<f64> {
    let mut stream = connect(street, to, b'p')?;
    let mut block = vec![0; BLOCK];
    let (begin, mut bytes) = (Instant::now(), 0);
    while begin.elapsed() < SPAN {
        bytes += stream.read(&mut block)?;
    }
    Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
}

fn ingress(street: &Street, to: SocketAddr) -> io::Result<f64> {
    let mut stream = connect(street, to, b's')?;
    let block = vec![0; BLOCK];
    let (begin, mut bytes) = (Instant::now(), 0);
    while begin.elapsed() < SPAN {
        bytes += stream.write(&block)?;
    }
    stream.shutdown(Shutdown::Both)?;
    Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
}

/// Requests per second, and the median of one.
fn ping_pong(street: &Street, to: SocketAddr, clients: usize) -> io::Result<(f64, Duration)> {
    let begin = Instant::now();
    let streams = (0..clients).map(|_| connect(street, to, b'e')).collect::<io::Result<Vec<_>>>()?;
    let threads: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            thread::spawn(move || -> io::Result<Vec<Duration>> {
                let mut taken = Vec::new();
                let mut answer = [0; 32];
                while begin.elapsed() < SPAN {
                    let asked = Instant::now();
                    stream.write_all(&[7; 32])?;
                    stream.read_exact(&mut answer)?;
                    taken.push(asked.elapsed());
                }
                Ok(taken)
            })
        })
        .collect();
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| io::ErrorKind::Other)??);
    }
    all.sort();
    let median = all.get(all.len() / 2).copied().unwrap_or_default();
    Ok((all.len() as f64 / SPAN.as_secs_f64(), median))
}

/// Makes epochs until it is told to stop; the median and the longest time of a barrier.
fn make_epochs(gate: &TapHandle, span: Duration, over: &AtomicBool, longest_ns: &AtomicU64) {
    for number in 1.. {
        let begin = Instant::now();
        let marked = gate.barrier(CheckpointId::new(1, number));
        longest_ns.fetch_max(begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let released = gate.release(CheckpointId::new(1, number));
        if marked.is_err() || released.is_err() || over.load(Ordering::Relaxed) {
            return;
        }
        thread::park_timeout(span);
    }
}

fn measure(way: Way) -> Outcome<()> {
    let street = Street::new()?;
    let cell = street.cell()?;
    let gate = match way {
        Way::NoGate => None,
        Way::Passing | Way::Holding(_) => Some(TapGate::open(&cell, TapOptions::default())?),
    };
    cell.raise(Claim::Takeover)?;
    let (over, longest_ns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut epochs = None;
    match (way, &gate) {
        (Way::Holding(span), Some(gate)) => {
            gate.hold()?;
            let (gate, over, longest_ns) = (gate.handle(), Arc::clone(&over), Arc::clone(&longest_ns));
            epochs = Some(thread::spawn(move || make_epochs(&gate, span, &over, &longest_ns)));
        }
        (_, Some(gate)) => gate.pass()?,
        (_, None) => cell.let_out(),
    }
    let listener = thread::scope(|scope| {
        let listen = || -> io::Result<TcpListener> {
            move_into_link_name_space(cell.namespace(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind("10.9.0.9:0")
        };
        scope.spawn(listen).join()
    });
    let listener = listener.map_err(|_| "the thread panicked")??;
    let to = listener.local_addr()?;
    thread::spawn(move || serve(&listener));
    for _ in 0..RUNS {
        let (out, inwards) = (egress(&street, to)?, ingress(&street, to)?);
        let (one, one_median) = ping_pong(&street, to, 1)?;
        let (many, many_median) = ping_pong(&street, to, 16)?;
        println!(
            "{way:?}: out {out:.1} Gb/s, in {inwards:.1} Gb/s, 1 client {one:.0}/s (median {one_median:?}), \
             16 clients {many:.0}/s (median {many_median:?})"
        );
    }
    over.store(true, Ordering::Relaxed);
    if let Some(epochs) = epochs {
        epochs.join().map_err(|_| "the thread panicked")?;
        println!("longest barrier: {:?}", Duration::from_nanos(longest_ns.load(Ordering::Relaxed)));
    }
    if let Some(gate) = &gate {
        println!("{:?}", gate.counters());
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let millisecond = Duration::from_millis(1);
    for way in [Way::NoGate, Way::Passing, Way::Holding(millisecond), Way::Holding(5 * millisecond)] {
        measure(way)?;
    }
    Ok(())
}
