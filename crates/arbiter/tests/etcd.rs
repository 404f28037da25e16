//! The register in a real etcd: one member and three, members that die, hang and come back, and TLS.

mod contract;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterError, ArbiterSpec, EtcdArbiter, EtcdSpec, Member, Register, Swap};
use contract::soon;
use testkit::needs;
use testkit::servers::{Etcd, EtcdFiles};
use testkit::wait::wait_for;

fn spec(etcd: &Etcd, rest: &str) -> EtcdSpec {
    match format!("etcd://{}{rest}", etcd.endpoints()).parse() {
        Ok(ArbiterSpec::Etcd(spec)) => spec,
        other => panic!("{other:?}"),
    }
}

fn open(etcd: &Etcd, rest: &str) -> Box<dyn Arbiter> {
    Box::new(EtcdArbiter::new(&spec(etcd, rest)).unwrap())
}

#[test]
fn one_member_keeps_a_register_through_its_own_death() {
    needs!("debian:etcd-server");
    let directory = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(1, directory.path());
    let mut arbiter = open(&etcd, "/checksync/test");
    contract::swaps_win_only_against_the_expected_value(&mut *arbiter, "app");
    contract::a_repeated_swap_has_won(&mut *arbiter, "again");
    let same = spec(&etcd, "/checksync");
    contract::each_term_has_one_winner(|| Box::new(EtcdArbiter::new(&same).unwrap()), "race", 30);
    let kept = arbiter.read("app", soon()).unwrap().unwrap();

    etcd.kill(0);
    let asked_at = Instant::now();
    let down = arbiter.read("app", asked_at + Duration::from_millis(500)).unwrap_err();
    assert!(asked_at.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(&down, ArbiterError::Unreachable { register, .. } if register.starts_with("etcd://")),
        "{down}"
    );
    etcd.restart(0);
    let taken = kept.taken_by(Member::new("z", 1));
    assert_eq!(arbiter.swap("app", Some(&kept), taken.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.read("app", soon()).unwrap(), Some(taken));
}

#[test]
fn a_member_that_hangs_costs_no_more_than_the_deadline() {
    needs!("debian:etcd-server");
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(1, directory.path());
    let mut arbiter = open(&etcd, "/checksync");
    let first = Register::first(Member::new("a", 1));
    assert_eq!(arbiter.swap("app", None, first.clone(), soon()).unwrap(), Swap::Won);
    etcd.pause(0);
    let asked_at = Instant::now();
    let taken = first.taken_by(Member::new("b", 1));
    let late = arbiter.swap("app", Some(&first), taken.clone(), asked_at + Duration::from_millis(200));
    assert!(asked_at.elapsed() < Duration::from_secs(5));
    assert!(matches!(late, Err(ArbiterError::Late { .. })), "{late:?}");
    etcd.resume(0);
    // What became of it is unknown; asking again settles it, and it has won once.
    assert_eq!(arbiter.swap("app", Some(&first), taken.clone(), soon()).unwrap(), Swap::Won);
    assert_eq!(arbiter.read("app", soon()).unwrap(), Some(taken));
}

/// The member that the connection goes to dies together with the primary's host: it must not cost a timeout.
#[test]
fn of_three_members_any_one_may_hang_or_die() {
    needs!("debian:etcd-server");
    let directory = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(3, directory.path());
    let mut arbiter = open(&etcd, "/checksync");
    let mut register = Register::first(Member::new("a", 1));
    let ask = |arbiter: &mut dyn Arbiter, old: Option<&Register>, new: &Register| {
        // While the members elect a leader they answer nothing, or that they can't.
        wait_for("a swap to win", Duration::from_secs(30), || {
            let deadline = Instant::now() + Duration::from_secs(2);
            match arbiter.swap("app", old, new.clone(), deadline) {
                Ok(Swap::Won) => Some(()),
                Ok(Swap::Lost(current)) => panic!("lost against {current:?}"),
                Err(_) => None,
            }
        });
    };
    ask(&mut *arbiter, None, &register);
    for number in 0..3 {
        let next = register.taken_by(Member::new(format!("while {number} hangs"), 1));
        etcd.pause(number);
        ask(&mut *arbiter, Some(&register), &next);
        etcd.resume(number);
        let after = next.taken_by(Member::new(format!("while {number} is dead"), 1));
        etcd.kill(number);
        ask(&mut *arbiter, Some(&next), &after);
        etcd.restart(number);
        register = after;
    }
    let same = spec(&etcd, "/checksync");
    contract::each_term_has_one_winner(|| Box::new(EtcdArbiter::new(&same).unwrap()), "race", 20);
    // Without a majority there is no register, whatever a member still holds.
    etcd.kill(0);
    etcd.kill(1);
    let alone = arbiter.read("app", Instant::now() + Duration::from_secs(2));
    assert!(matches!(alone, Err(ArbiterError::Late { .. } | ArbiterError::Unreachable { .. })), "{alone:?}");
}

#[test]
fn what_is_no_register_is_named_and_kept() {
    needs!("debian:etcd-server");
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(1, directory.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = wire::EtcdClient::connect(&etcd.endpoints(), None).await.unwrap();
        let absent = wire::EtcdExpected::Absent;
        assert_eq!(
            client.swap("/checksync/app", absent, b"garbage".to_vec()).await.unwrap(),
            wire::EtcdSwap::Won
        );
    });
    let mut arbiter = open(&etcd, "/checksync");
    let first = Register::first(Member::new("a", 1));
    for error in [
        arbiter.read("app", soon()).unwrap_err(),
        arbiter.swap("app", None, first.clone(), soon()).unwrap_err(),
    ] {
        let named =
            matches!(&error, ArbiterError::Corrupt { register, .. } if register.contains("/checksync/app"));
        assert!(named, "{error}");
    }
}

#[test]
fn tls_asks_both_sides_for_a_certificate() {
    needs!("debian:etcd-server");
    let directory = tempfile::tempdir().unwrap();
    let files = make_files(directory.path());
    let etcd = Etcd::start_with(1, directory.path(), Some(files.clone()));
    let (ca, certificate, key) = (files.ca.display(), files.certificate.display(), files.key.display());
    let mut arbiter = open(&etcd, &format!("/checksync?ca={ca}&cert={certificate}&key={key}"));
    contract::swaps_win_only_against_the_expected_value(&mut *arbiter, "app");
    let soon_over = || Instant::now() + Duration::from_secs(2);
    for wrong in ["/checksync".to_owned(), format!("/checksync?ca={ca}")] {
        let refused = open(&etcd, &wrong).read("app", soon_over());
        assert!(matches!(&refused, Err(ArbiterError::Unreachable { .. })), "{wrong}: {refused:?}");
    }
    let absent = EtcdArbiter::new(&spec(&etcd, "/x?ca=/no/such/ca.crt"));
    let error = absent.unwrap_err().to_string();
    assert!(error.contains("/no/such/ca.crt"), "{error}");
}

/// An authority, and one certificate of it that serves both sides.
fn make_files(directory: &Path) -> EtcdFiles {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let secret = rcgen::KeyPair::generate().unwrap();
    // Every loopback address that a test may take can't be listed, so the server is asked for by one name.
    let [_, high, low] = [0, 8, 0].map(|shift| (std::process::id() >> shift) as u8);
    let addresses = (2..=60).map(|last| format!("127.{}.{low}.{last}", high.max(1)));
    let certificate = rcgen::CertificateParams::new(addresses.collect::<Vec<_>>())
        .unwrap()
        .signed_by(&secret, &issuer)
        .unwrap();
    let files = EtcdFiles {
        ca: directory.join("ca.crt"),
        certificate: directory.join("both.crt"),
        key: directory.join("both.key"),
    };
    fs::write(&files.ca, authority_certificate.pem()).unwrap();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, secret.serialize_pem()).unwrap();
    files
}
