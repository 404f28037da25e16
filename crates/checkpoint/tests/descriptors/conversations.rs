//! Connections to the manager's own socket: carried with what was asked and answered in them.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use checkpoint::descriptors::{ManagerSocket, Unanswered};
use image::descriptor::{Conversation, FileKind};
use sys::sockets::connect;

use crate::stage::{Circumstances, DEADLINE, Servant, cache};

/// A manager that reads nothing: what was said is in its queues.
#[derive(Debug, Default)]
struct Manager {
    /// Lets in whoever waits.
    listener: Option<UnixListener>,
    talks: Mutex<Vec<UnixStream>>,
    taken_up: Mutex<Vec<(UnixStream, Vec<u8>)>>,
}

#[derive(Debug, Clone)]
struct Shared(Arc<Manager>);

fn inode(stream: &UnixStream) -> u64 {
    rustix::fs::fstat(stream).expect("our own socket").st_ino
}

fn unread(stream: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let len = rustix::net::recv(
        stream,
        &mut bytes,
        rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT,
    );
    bytes.truncate(len.map_or(0, |(len, _)| len));
    bytes
}

impl ManagerSocket for Shared {
    fn listen(&self, _root: &Path) -> std::io::Result<()> {
        Ok(())
    }

    fn hold(&self, look: &mut dyn FnMut(&Unanswered<'_>)) {
        let mut talks = self.0.talks.lock().unwrap();
        while let Some(Ok((stream, _))) = self.0.listener.as_ref().map(UnixListener::accept) {
            talks.push(stream);
        }
        look(&|number| talks.iter().find(|talk| inode(talk) == number).map(unread));
    }

    fn take_up(&self, ours: OwnedFd, unanswered: &[u8]) {
        self.0.taken_up.lock().unwrap().push((ours.into(), unanswered.to_vec()));
    }
}

/// A manager that listens, and an app that is connected to it and not let in yet.
struct Scene {
    _dir: tempfile::TempDir,
    manager: Shared,
    app: Servant,
    number: i32,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let manager = Shared(Arc::new(Manager { listener: Some(listener), ..Manager::default() }));
        let mut app = Servant::start();
        let number = app.socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        connect(std::os::fd::AsFd::as_fd(&app.borrow(number)), &address(&path)).unwrap();
        Self { _dir: dir, manager, app, number }
    }

    fn app_end(&self) -> UnixStream {
        self.app.borrow(self.number).into()
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances { manager: Some(Box::new(self.manager.clone())), ..Circumstances::default() }
    }

    /// Saves the app, kills it, and builds another: its end, and what the manager was handed.
    fn carry(self) -> (UnixStream, UnixStream, Vec<u8>) {
        let circumstances = self.circumstances();
        let saved = circumstances.save(&self.app, &mut cache()).expect("it can be saved");
        assert!(matches!(&saved.files[0].kind, FileKind::Conversation(_)), "{saved:?}");
        drop(self.app);
        let skeleton = circumstances.rebuild(&saved).expect("it can be rebuilt");
        let end: UnixStream = skeleton.borrow(self.number).into();
        end.set_read_timeout(Some(DEADLINE)).unwrap();
        let (ours, unanswered) = self.manager.0.taken_up.lock().unwrap().pop().expect("it is taken up");
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        (end, ours, unanswered)
    }
}

fn address(path: &Path) -> Vec<u8> {
    let path: PathBuf = path.into();
    [&(libc::AF_UNIX as u16).to_ne_bytes(), path.as_os_str().as_encoded_bytes(), b"\0"].concat()
}

#[test]
fn what_was_said_before_it_was_let_in_is_carried() {
    let scene = Scene::new();
    scene.app_end().write_all(b"a question").unwrap();
    let (mut app, mut ours, unanswered) = scene.carry();
    assert_eq!(unanswered, b"a question");
    ours.write_all(b"an answer").unwrap();
    let mut heard = [0; 9];
    app.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"an answer");
    app.write_all(b"more").unwrap();
    let mut heard = [0; 4];
    ours.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"more", "and nothing of what was carried comes twice");
}

#[test]
fn answers_that_are_not_read_and_a_side_that_is_shut_are_carried() {
    let scene = Scene::new();
    scene.manager.hold(&mut |_| ());
    scene.app_end().shutdown(std::net::Shutdown::Write).unwrap();
    scene.manager.0.talks.lock().unwrap()[0].write_all(b"unread").unwrap();
    let (mut app, mut ours, unanswered) = scene.carry();
    assert_eq!(unanswered, b"");
    let mut heard = [0; 6];
    app.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"unread");
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the app says nothing more");
    drop(ours);
    assert_eq!(app.read(&mut [0]).unwrap(), 0);
}

#[test]
fn one_that_the_manager_has_ended_is_one_whose_peer_is_gone() {
    let scene = Scene::new();
    scene.manager.hold(&mut |_| ());
    scene.manager.0.talks.lock().unwrap().clear();
    let saved = scene.circumstances().save(&scene.app, &mut cache()).expect("it can be saved");
    assert!(matches!(&saved.files[0].kind, FileKind::UnixPair(end) if end.peer == 0), "{saved:?}");
}

/// The manager lets in whom it has no room for, and closes: in the middle of the save, that is.
#[test]
fn one_that_ends_while_it_is_looked_at_is_one_whose_peer_is_gone() {
    #[derive(Debug)]
    struct Full(Shared);
    impl ManagerSocket for Full {
        fn listen(&self, _root: &Path) -> std::io::Result<()> {
            Ok(())
        }

        fn hold(&self, look: &mut dyn FnMut(&Unanswered<'_>)) {
            drop(self.0.0.listener.as_ref().unwrap().accept());
            look(&|_| None);
        }

        fn take_up(&self, _ours: OwnedFd, _unanswered: &[u8]) {}
    }
    let scene = Scene::new();
    let manager = Some(Box::new(Full(scene.manager.clone())) as Box<dyn ManagerSocket>);
    let circumstances = Circumstances { manager, ..Circumstances::default() };
    let saved = circumstances.save(&scene.app, &mut cache()).expect("it can be saved");
    assert!(matches!(&saved.files[0].kind, FileKind::UnixPair(end) if end.peer == 0), "{saved:?}");
}

#[test]
fn without_a_manager_that_goes_on_the_app_finds_the_end() {
    let scene = Scene::new();
    let saved = scene.circumstances().save(&scene.app, &mut cache()).expect("it can be saved");
    let FileKind::Conversation(Conversation { unanswered, .. }) = &saved.files[0].kind else {
        panic!("{saved:?}")
    };
    assert!(unanswered.is_empty());
    let skeleton = Circumstances::default().rebuild(&saved).expect("it can be rebuilt");
    let mut end: UnixStream = skeleton.borrow(scene.number).into();
    end.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stranger_is_refused_as_ever() {
    let scene = Scene::new();
    let stranger = Shared(Arc::new(Manager::default()));
    let circumstances = Circumstances { manager: Some(Box::new(stranger)), ..Circumstances::default() };
    let refused = circumstances.save(&scene.app, &mut cache()).unwrap_err().to_string();
    assert!(refused.contains("is a unix socket connected to"), "{refused}");
}
