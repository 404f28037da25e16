//! What one side says is what the other side hears.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Call, DEADLINE, Standby, armed_token, hello, soon, welcome};
use image::frame::PAYLOAD_BYTES_MAX;
use image::layout::FileIdentity;
use image::{CheckpointId, Frame, FrameKind, Term};
use wire::*;

#[tokio::test]
async fn hello_and_welcome_arrive_unchanged_and_both_sides_know_whom_they_talk_to() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    assert_eq!(client.peer().name, "standby");
    let (primary, (peer, heard, ..)) =
        tokio::join!(client.replicate(hello("kv")), standby.welcome(welcome()));
    assert_eq!(heard, hello("kv"));
    assert_eq!(peer.name, "primary");
    assert_eq!(primary.unwrap().welcome, welcome());
}

#[tokio::test]
async fn frames_up_to_the_longest_arrive_unchanged_and_in_order() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (primary, _answers, mut incoming) = standby.replication(&client).await;
    let frames: Vec<Bytes> = [0, 1, 4096, 1 << 20, PAYLOAD_BYTES_MAX]
        .into_iter()
        .enumerate()
        .map(|(n, len)| Frame::encode(FrameKind::Pages, n as u64, &noise(len)))
        .collect();
    let sent = frames.clone();
    let sender = async {
        for frame in sent {
            primary.outgoing.send(FromPrimary::Frames(frame)).await.unwrap();
        }
    };
    let receiver = async {
        for frame in frames {
            assert!(
                soon(incoming.recv()).await.unwrap().unwrap() == FromPrimary::Frames(frame),
                "a frame changed"
            );
        }
    };
    tokio::join!(sender, receiver);
}

#[tokio::test]
async fn control_messages_of_both_sides_arrive_unchanged() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (mut primary, outgoing, mut incoming) = standby.replication(&client).await;
    let hash = GuardToken::random().hash();
    for message in [
        FromPrimary::GuardArmed(GuardArmed { term: Term(4), token_hash: hash }),
        FromPrimary::AppExited { how: Exit::Code(-3), silenced: false },
        FromPrimary::AppExited { how: Exit::Signal(9), silenced: true },
    ] {
        primary.outgoing.send(message.clone()).await.unwrap();
        assert_eq!(soon(incoming.recv()).await.unwrap().unwrap(), message);
    }
    let (id, why) = (CheckpointId::new(3, 8), "frame 2 came twice".to_owned());
    let file = |path: &[u8], build_id: Option<Vec<u8>>| FileIdentity {
        path: path.to_vec(),
        size: 7,
        build_id: build_id.map(Into::into),
    };
    let lacks =
        vec![file(b"/opt/kv", Some(vec![1; 20])), file(b"/opt/\xff", Some(Vec::new())), file(b"/data", None)];
    let progress = Progress { receiving: Some(id.next()), received_bytes: u64::MAX, applied: Some(id) };
    let refusal = Refusal { code: RefusalCode::Other(77), why: why.clone(), way_out: "none".to_owned() };
    for message in [
        FromStandby::Ack(id),
        FromStandby::EpochRefused(EpochRefused { id, why: why.clone(), lacks: Vec::new() }),
        FromStandby::EpochRefused(EpochRefused { id, why, lacks }),
        FromStandby::Progress(progress),
        FromStandby::Progress(Progress::default()),
        FromStandby::Refusal(refusal),
    ] {
        outgoing.send(message.clone()).await.unwrap();
        assert_eq!(soon(primary.incoming.recv()).await.unwrap().unwrap(), message);
    }
}

const ENGINES: [EngineState; 6] = [
    EngineState::Starting,
    EngineState::Syncing,
    EngineState::Capturing,
    EngineState::Unprotected,
    EngineState::Stuck,
    EngineState::Stopping,
];
const STANDBYS: [StandbyState; 6] = [
    StandbyState::Empty,
    StandbyState::Syncing,
    StandbyState::Ready,
    StandbyState::TakingOver,
    StandbyState::Serving,
    StandbyState::Stopping,
];

#[tokio::test]
async fn heartbeat_and_its_answer_arrive_unchanged() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (heart, (peer, mut beats, answers)) = tokio::join!(client.beat(), standby.heart());
    let (outgoing, mut incoming) = heart.unwrap();
    assert_eq!(peer.name, "primary");
    for (sequence, engine) in (0..).zip(ENGINES) {
        let newest_captured = (sequence > 2).then(|| CheckpointId::new(3, sequence));
        let app = "kv".to_owned();
        let beat =
            Heartbeat { app, term: Term(3), sequence, sent_at_ns: u64::MAX - 1, newest_captured, engine };
        outgoing.send(beat.clone()).await.unwrap();
        assert_eq!(soon(beats.recv()).await.unwrap().unwrap(), beat);
    }
    for (sequence, state) in (0..).zip(STANDBYS) {
        let held = (sequence > 2).then(|| CheckpointId::new(3, sequence));
        let answer = HeartbeatAnswer { sequence, sent_at_ns: u64::MAX - 1, term: Term(5), held, state };
        answers.send(answer).await.unwrap();
        assert_eq!(soon(incoming.recv()).await.unwrap().unwrap(), answer);
    }
}

#[tokio::test]
async fn guard_is_believed_with_its_token_and_refused_by_name_with_another() {
    let standby = Standby::start().await;
    let client = standby.client().await;
    let word = |token| Silent { app: "kv".to_owned(), term: Term(3), token };
    soon(client.silent(word(armed_token()))).await.unwrap();
    let why = soon(client.silent(word(GuardToken::random()))).await.unwrap_err();
    assert!(
        matches!(&why, WireError::Refused { refusal, .. } if refusal.code == RefusalCode::Guard),
        "{why:?}"
    );
    assert!(why.to_string().contains("primary shows another token"), "{why}");
    // A guard that is refused may speak again: the connection lives.
    soon(client.silent(word(armed_token()))).await.unwrap();
}

#[tokio::test]
async fn guards_word_is_handled_to_its_end_though_the_guard_is_gone() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let word = Silent { app: "slow".to_owned(), term: Term(3), token: armed_token() };
    let guard = tokio::spawn(async move { client.silent(word).await });
    let Some(Call::Silent { go, done }) = soon(standby.calls.recv()).await else { panic!("no word came") };
    guard.abort();
    assert!(guard.await.unwrap_err().is_cancelled());
    // By the time that another connection has had its answers, the end of the first one has been seen.
    let client = standby.client().await;
    for app in ["a", "b"] {
        let _ = tokio::join!(client.replicate(hello(app)), standby.welcome(welcome()));
    }
    go.send(()).expect("the handler was cancelled");
    soon(done).await.expect("the handler was cancelled");
}

#[tokio::test]
async fn refused_hello_gives_the_standbys_reason_and_way_out() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let refusal = Refusal {
        code: RefusalCode::Host,
        why: "this host's processor lacks avx512f".to_owned(),
        way_out: "choose a standby with the same processor".to_owned(),
    };
    let refuse = async { standby.hello().await.2.refuse(refusal.clone()) };
    let (answer, ()) = tokio::join!(client.replicate(hello("kv")), refuse);
    match answer.unwrap_err() {
        WireError::Refused { refusal: heard, .. } => assert_eq!(heard, refusal),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn primary_of_another_version_is_told_what_to_do_and_never_reaches_the_handler() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let newer = Hello { protocol_version: PROTOCOL_VERSION + 1, release: "9.9".to_owned(), ..hello("kv") };
    let why = soon(client.replicate(newer)).await.unwrap_err();
    assert!(matches!(why, WireError::Version { .. }), "{why:?}");
    let theirs = format!("release 9.9 speaks protocol {}", PROTOCOL_VERSION + 1);
    for part in [&theirs, RELEASE, "install the same release on both hosts"] {
        assert!(why.to_string().contains(part), "{part:?} is missing in {why}");
    }
    assert!(standby.log_line().await.contains("another version"));
    assert!(standby.calls.try_recv().is_err(), "the handler was asked");
}

#[tokio::test]
async fn standby_of_another_version_is_not_accepted() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let newer = Welcome { protocol_version: PROTOCOL_VERSION + 1, ..welcome() };
    let (answer, _) = tokio::join!(client.replicate(hello("kv")), standby.welcome(newer));
    let why = answer.unwrap_err();
    assert!(matches!(why, WireError::Version { .. }), "{why:?}");
    assert!(why.to_string().contains("install the same release"), "{why}");
}

#[tokio::test]
async fn one_standby_serves_many_apps_at_once() {
    let mut standby = Standby::start().await;
    let mut pairs = Vec::new();
    for n in 0..8 {
        let client = standby.client().await;
        let (primary, (_, heard, outgoing, _incoming)) =
            tokio::join!(client.replicate(hello(&format!("app-{n}"))), standby.welcome(welcome()));
        pairs.push((n, primary.unwrap(), heard.app, outgoing, _incoming));
    }
    for (n, primary, app, outgoing, _incoming) in &mut pairs {
        assert_eq!(*app, format!("app-{n}"));
        outgoing.send(FromStandby::Ack(CheckpointId::new(1, *n))).await.unwrap();
        let ack = soon(primary.incoming.recv()).await.unwrap().unwrap();
        assert_eq!(ack, FromStandby::Ack(CheckpointId::new(1, *n)));
    }
}

#[tokio::test]
async fn slow_standby_makes_the_primary_wait_and_loses_nothing() {
    const FRAME_BYTES: usize = 1 << 20;
    // The queue, HTTP/2's window, both send buffers and what loopback's sockets hold.
    const FRAMES_HELD_MAX: u64 = 40;
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (primary, _answers, mut incoming) = standby.replication(&client).await;
    let outgoing = primary.outgoing.with_deadline(Duration::from_millis(300));
    let payload = noise(FRAME_BYTES);
    let mut taken = 0;
    let why = loop {
        let frame = Frame::encode(FrameKind::Pages, taken, &payload);
        match outgoing.send(FromPrimary::Frames(frame)).await {
            Ok(()) => taken += 1,
            Err(why) => break why,
        }
        assert!(taken < FRAMES_HELD_MAX, "nobody reads, and {taken} frames were taken");
    };
    assert!(matches!(why, WireError::TimedOut { .. }), "{why:?}");
    drop(outgoing);
    for sequence in 0..taken {
        let Some(Ok(FromPrimary::Frames(frame))) = soon(incoming.recv()).await else {
            panic!("frame {sequence} is lost")
        };
        assert_eq!(Frame::parse(frame).unwrap().sequence, sequence);
    }
    assert!(soon(incoming.recv()).await.is_none(), "the stream ends in order");
}

#[tokio::test]
async fn full_queue_hands_a_message_back_that_must_not_wait() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (primary, _answers, _incoming) = standby.replication(&client).await;
    let frame = || FromPrimary::Frames(Frame::encode(FrameKind::Pages, 0, b""));
    // Nothing else runs on this thread between two of these.
    let back = (0..100).find_map(|_| primary.outgoing.try_send(frame()).unwrap());
    assert_eq!(back, Some(frame()));
}

/// Not where pages are read; also not by a handler that the others run beside.
#[tokio::test]
async fn heart_is_heard_where_the_handler_wants_it_and_other_calls_are_not() {
    let ears = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ear = ears.spawn(async { std::thread::current().id() }).await.unwrap();
    let mut standby = Standby::start_where(Limits::default(), ears.handle().clone()).await;
    let (plain, heart) = (standby.client().await, standby.heart_client().await);
    let (_beats, (.., heard)) = tokio::join!(plain.beat(), standby.call_of_a_heart());
    assert_ne!(heard, ear);
    let (beats, (_, mut from, answers, heard)) = tokio::join!(heart.beat(), standby.call_of_a_heart());
    assert_eq!(heard, ear);
    let (outgoing, mut incoming) = beats.unwrap();
    let beat = Heartbeat {
        app: "kv".to_owned(),
        term: Term(3),
        sequence: 1,
        sent_at_ns: 7,
        newest_captured: None,
        engine: EngineState::Syncing,
    };
    outgoing.send(beat.clone()).await.unwrap();
    assert_eq!(soon(from.recv()).await.unwrap().unwrap(), beat);
    drop((from, answers));
    standby.stop().await;
    assert!(
        soon(incoming.recv()).await.is_none_or(|answer| answer.is_err()),
        "it goes on without its standby"
    );
    ears.shutdown_background();
}

#[tokio::test]
async fn standby_that_stops_ends_the_primarys_links_with_an_error() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (mut primary, _answers, mut incoming) = standby.replication(&client).await;
    standby.stop().await;
    let end = soon(primary.incoming.recv()).await;
    assert!(matches!(end, Some(Err(WireError::Lost { .. }))), "{end:?}");
    assert!(!matches!(soon(incoming.recv()).await, Some(Ok(_))));
    let why = soon(client.replicate(hello("kv"))).await.unwrap_err();
    assert!(matches!(why, WireError::Lost { .. }), "{why:?}");
}

#[tokio::test]
async fn primary_that_goes_ends_the_standbys_links() {
    let mut standby = Standby::start().await;
    let client = standby.client().await;
    let (primary, outgoing, mut incoming) = standby.replication(&client).await;
    drop((primary, client));
    assert!(!matches!(soon(incoming.recv()).await, Some(Ok(_))));
    let refused = async {
        while outgoing.send(FromStandby::Ack(CheckpointId::default())).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
}

#[tokio::test]
async fn standby_that_answers_no_hello_is_given_up_after_the_deadline() {
    let mut standby = Standby::start().await;
    let tls = TlsFiles::load(standby.pki.path(), Some("primary")).unwrap();
    let client = soon(Client::connect(&standby.address, &tls, Duration::from_millis(300))).await.unwrap();
    let why = soon(client.replicate(hello("kv"))).await.unwrap_err();
    assert!(matches!(why, WireError::TimedOut { waited, .. } if waited < DEADLINE), "{why:?}");
    drop(standby.hello().await);
}

/// Bytes that repeat only after a long while.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
