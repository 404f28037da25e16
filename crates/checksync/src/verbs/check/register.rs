//! The register: whether it answers, compares, and how long a swap takes. It is tried with a register of its own, named
//! after this host, which stays and counts the checks.

use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterError, ArbiterSpec, Member, Register, Swap};
use wire::TlsFiles;

use super::finding::{Area, Finding, chain};

const PATIENCE: Duration = Duration::from_secs(3);
const SWAPS: usize = 5;
/// Half of the silence that is taken for a death by default: a decision that takes longer is most of the outage.
const SLOW: Duration = Duration::from_millis(50);

enum Wrong {
    Asked(ArbiterError),
    /// It answered what no register may.
    Answered(&'static str),
    /// Somebody else checks at the same time.
    Disturbed,
}

impl From<ArbiterError> for Wrong {
    fn from(error: ArbiterError) -> Self {
        Self::Asked(error)
    }
}

pub fn look(spec: &ArbiterSpec, tls: &TlsFiles) -> Finding {
    let what = spec.to_string();
    let tried = spec.open(tls).map_err(Wrong::from).and_then(|mut arbiter| probe(&mut *arbiter, tls.host()));
    match tried {
        Ok(slowest) => judge(spec, what, slowest),
        Err(Wrong::Asked(error @ (ArbiterError::Corrupt { .. } | ArbiterError::BadName(_)))) => {
            Finding::red_by(Area::Register, what, &error)
        }
        Err(Wrong::Asked(error)) => Finding::red(Area::Register, what, chain(&error), fix_of(spec)),
        Err(Wrong::Answered(cause)) => Finding::red(
            Area::Register,
            what,
            cause,
            "use another register; with this one two hosts may serve",
        ),
        Err(Wrong::Disturbed) => {
            Finding::yellow(Area::Register, what, "another check of this host is going on", "check again")
        }
    }
}

fn judge(spec: &ArbiterSpec, what: String, slowest: Duration) -> Finding {
    let took = format!("{:.1} ms", slowest.as_secs_f64() * 1e3);
    match spec {
        _ if slowest > SLOW => Finding::yellow(
            Area::Register,
            what,
            format!("a swap takes {took}, and each takeover waits for one"),
            "put the register nearer to the hosts, or on a faster disk",
        ),
        ArbiterSpec::File(_) => Finding::yellow(
            Area::Register,
            what,
            format!("swaps win once, in {took}; a directory serves managers on one host only"),
            "for two hosts use witness: or etcd:",
        ),
        ArbiterSpec::Etcd(_) | ArbiterSpec::Witness(_) | ArbiterSpec::Bucket(_) => {
            Finding::green(Area::Register, what, format!("swaps win once, in {took}"))
        }
    }
}

/// The slowest of a few swaps.
fn probe(arbiter: &mut dyn Arbiter, host: &str) -> Result<Duration, Wrong> {
    let app = format!("check.{}", host.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let soon = || Instant::now() + PATIENCE;
    let me = Member::new(host, u64::from(std::process::id()));
    let mut current = arbiter.read(&app, soon())?;
    let mut slowest = Duration::ZERO;
    for _ in 0..SWAPS {
        let old = current.clone();
        let next = |old: Option<&Register>| {
            old.map_or_else(|| Register::first(me.clone()), |old| old.taken_by(me.clone()))
        };
        let new = next(old.as_ref());
        let asked_at = Instant::now();
        let swapped = arbiter.swap(&app, old.as_ref(), new.clone(), soon())?;
        slowest = slowest.max(asked_at.elapsed());
        if swapped != Swap::Won {
            return Err(Wrong::Disturbed);
        }
        let mut rival = next(old.as_ref());
        rival.owner.incarnation.0 += 1 << 32;
        match arbiter.swap(&app, old.as_ref(), rival, soon())? {
            Swap::Won => return Err(Wrong::Answered("a swap that expects an old value wins")),
            Swap::Lost(Some(found)) if found == new => {}
            Swap::Lost(_) => return Err(Wrong::Disturbed),
        }
        if arbiter.read(&app, soon())?.as_ref() != Some(&new) {
            return Err(Wrong::Answered("it does not hold what was just written"));
        }
        current = Some(new);
    }
    Ok(slowest)
}

fn fix_of(spec: &ArbiterSpec) -> &'static str {
    match spec {
        ArbiterSpec::File(_) => "make the directory, and give this user the right to write in it",
        ArbiterSpec::Etcd(_) => "start etcd there, and let its port through every firewall between",
        ArbiterSpec::Witness(_) => {
            "start `checksync witness` there, and let its port through every firewall between"
        }
        ArbiterSpec::Bucket(_) => {
            "make the bucket, and give these credentials the right to read and write in it"
        }
    }
}
