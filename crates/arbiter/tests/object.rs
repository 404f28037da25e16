//! The register in a bucket, against real servers of S3's protocol and of Azure's; and what is refused: a server whose
//! conditional puts race, and a proxy that makes of a good one what others are, who take conditional headers and do not
//! heed them.

mod contract;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbiter::{Arbiter, ArbiterError, Member, ObjectArbiter, Register, Swap};
use contract::soon;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::{DynObjectStore, ObjectStoreExt, PutPayload};
use testkit::needs;
use testkit::servers::{Azurite, Moto, S3sFs, own_address};

const BUCKET: &str = "registers";

fn objects(at: SocketAddr) -> Arc<DynObjectStore> {
    wire::prefer_our_tls();
    let bucket = AmazonS3Builder::new()
        .with_endpoint(format!("http://{at}"))
        .with_allow_http(true)
        .with_bucket_name(BUCKET)
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_region("us-east-1");
    Arc::new(bucket.build().unwrap())
}

fn container(endpoint: &str) -> Arc<DynObjectStore> {
    wire::prefer_our_tls();
    let container = MicrosoftAzureBuilder::new()
        .with_endpoint(endpoint.to_owned())
        .with_allow_http(true)
        .with_account(Azurite::ACCOUNT)
        .with_access_key(Azurite::KEY)
        .with_container_name(BUCKET);
    Arc::new(container.build().unwrap())
}

fn open(at: SocketAddr) -> Box<dyn Arbiter> {
    Box::new(ObjectArbiter::over(objects(at), "some/prefix", format!("s3://{BUCKET}/some/prefix")).unwrap())
}

#[test]
fn a_bucket_with_conditional_puts_keeps_a_register() {
    needs!("debian:python3");
    let moto = Moto::start(BUCKET);
    let address = moto.address();
    keeps_a_register(|| open(address));
}

#[test]
fn a_container_of_azure_keeps_a_register() {
    needs!("debian:nodejs", "debian:npm");
    let azurite = Azurite::start(BUCKET);
    let (endpoint, name) = (azurite.endpoint(), format!("az://{BUCKET}/some/prefix"));
    keeps_a_register(|| {
        Box::new(ObjectArbiter::over(container(&endpoint), "some/prefix", name.clone()).unwrap())
    });
}

fn keeps_a_register(open: impl Fn() -> Box<dyn Arbiter> + Sync) {
    let mut arbiter = open();
    contract::swaps_win_only_against_the_expected_value(&mut *arbiter, "app");
    contract::a_repeated_swap_has_won(&mut *arbiter, "again");
    contract::each_term_has_one_winner(&open, "race", 15);
    // Another manager sees what is there, and what has changed since it looked.
    let mut other = open();
    let current = other.read("app", soon()).unwrap().unwrap();
    let next = current.with_members(vec![Member::new("b", 1)]);
    assert_eq!(arbiter.swap("app", Some(&current), next.clone(), soon()).unwrap(), Swap::Won);
    let late = current.taken_by(Member::new("c", 1));
    assert_eq!(other.swap("app", Some(&current), late, soon()).unwrap(), Swap::Lost(Some(next)));
}

#[test]
fn what_is_no_register_is_named_and_kept() {
    needs!("debian:python3");
    let moto = Moto::start(BUCKET);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let garbage = PutPayload::from_static(b"garbage");
    let path = "some/prefix/app.register".into();
    runtime.block_on(objects(moto.address()).put(&path, garbage)).unwrap();
    let mut arbiter = open(moto.address());
    let first = Register::first(Member::new("a", 1));
    for error in
        [arbiter.read("app", soon()).unwrap_err(), arbiter.swap("app", None, first, soon()).unwrap_err()]
    {
        assert!(
            matches!(&error, ArbiterError::Corrupt { register, .. } if register.contains("some/prefix/app.register")),
            "{error}"
        );
    }
}

#[test]
fn a_bucket_that_does_not_heed_conditions_is_refused_with_the_reason_and_the_way_out() {
    needs!("debian:python3");
    let moto = Moto::start(BUCKET);
    for dropped in [&["if-match", "if-none-match"][..], &["if-none-match"], &["if-match"]] {
        is_refused(&mut *open(heedless(moto.address(), dropped)), &format!("without {dropped:?}"));
    }
    assert_eq!(open(moto.address()).read("app", soon()).unwrap(), None, "nothing was written");
}

/// Such a bucket is good enough for a store, whose tests have the same server.
#[test]
fn a_bucket_whose_conditional_puts_race_is_refused() {
    let server = S3sFs::start(BUCKET);
    is_refused(&mut *open(server.address()), "of s3s-fs");
}

fn is_refused(arbiter: &mut dyn Arbiter, what: &str) {
    let first = Register::first(Member::new("a", 1));
    for refused in
        [arbiter.swap("app", None, first, soon()).unwrap_err(), arbiter.read("app", soon()).unwrap_err()]
    {
        assert!(matches!(&refused, ArbiterError::Setup { .. }), "{what}: {refused}");
        let text = refused.to_string();
        assert!(text.contains(BUCKET) && text.contains("racing") && text.contains("witness"), "{text}");
    }
}

#[test]
fn a_bucket_that_is_not_there_costs_the_deadline() {
    let mut arbiter = open(own_address());
    let asked_at = Instant::now();
    let down = arbiter.read("app", asked_at + Duration::from_millis(300)).unwrap_err();
    assert!(matches!(&down, ArbiterError::Unreachable { .. }), "{down}");
    assert!(asked_at.elapsed() < Duration::from_secs(5));
}

/// A proxy that passes everything on but these headers.
fn heedless(server: SocketAddr, dropped: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind(own_address()).unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process: nothing tells a listener that nobody asks any more.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || pass_on(&client, server, dropped));
        }
    });
    address
}

fn pass_on(client: &TcpStream, server: SocketAddr, dropped: &[&str]) -> Option<()> {
    let mut upstream = TcpStream::connect(server).ok()?;
    let (mut from, mut to) = (upstream.try_clone().ok()?, client.try_clone().ok()?);
    thread::spawn(move || {
        let _ended = std::io::copy(&mut from, &mut to);
        let _gone = to.shutdown(Shutdown::Both);
    });
    let mut requests = BufReader::new(client.try_clone().ok()?);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line).ok()? == 0 {
                return upstream.shutdown(Shutdown::Both).ok();
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
            if !dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped)) {
                head.push_str(&line);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        requests.read_exact(&mut body).ok()?;
        upstream.write_all(head.as_bytes()).ok()?;
        upstream.write_all(&body).ok()?;
    }
}
