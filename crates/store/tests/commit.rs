//! A checkpoint that somebody relies on is found by whoever begins a later run, whenever he does.

mod world;

use std::sync::Arc;

use image::Frame;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use store::{Gathered, Store, StoreError, Which};
use world::faults::{Fault, Faulty};
use world::{APP, App, begin};

fn over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, "some/prefix", "mem:".to_owned())
}

fn next(app: &mut App, gathered: &mut Gathered, full: bool) {
    app.live();
    for frame in app.epoch(full) {
        gathered.take(&Frame::parse(frame).unwrap()).unwrap();
    }
}

/// A primary stands still at each of its steps while another begins a run, and then goes on.
#[test]
fn what_is_committed_is_on_the_list_of_whoever_begins_a_run_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (mut at, mut reached, mut superseded, mut committed) = (0, true, 0, 0);
    while reached {
        runtime.block_on(async {
            let inner = Arc::new(InMemory::new());
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut app = App::new(7, 1);
            let mut full = Gathered::full(dir.path()).unwrap();
            next(&mut app, &mut full, true);
            let first = full.id().unwrap();
            let mut later = Gathered::since(first, full.layouts().clone(), dir.path()).unwrap();
            next(&mut app, &mut later, false);
            let second = later.id().unwrap();
            let mut relied_on = None;
            let work = async {
                let mut run = begin(over(objects), 1).await?;
                run.upload(&full).await?;
                relied_on = Some(first);
                run.upload(&later).await?;
                relied_on = Some(second);
                Ok::<_, StoreError>(())
            };
            let mut work = Box::pin(work);
            let ended = tokio::select! {
                ended = &mut work => ended,
                () = plan.waiting.notified() => {
                    begin(over(inner.clone()), 2).await.unwrap();
                    plan.go_on.notify_one();
                    work.as_mut().await
                }
            };
            drop(work);
            reached = plan.reached();
            match ended {
                Ok(()) => committed += 1,
                Err(StoreError::Superseded { .. } | StoreError::OldTerm { .. }) => superseded += 1,
                Err(why) => panic!("stalled at {at}: {why}"),
            }
            let found = over(inner).pick(APP, Which::Latest).await.ok().map(|listed| listed.id());
            assert!(found >= relied_on, "stalled at {at}: {relied_on:?} was relied on, {found:?} is listed");
        });
        at += 1;
    }
    assert!(at > 10 && superseded > 5 && committed > 0, "{at} steps, {superseded} and {committed}");
}
