//! A primary and the next one, which begins at any step of the other's work: what was acknowledged stays listed, and
//! what is listed is whole.

mod world;

use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use image::CheckpointId;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use store::{Basis, Retention, Run, Store, StoreError, Which};
use tokio::runtime::Runtime;
use world::faults::{Fault, Faulty, Plan};
use world::{APP, App, Truth, Uploader, begin, check_all};

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, "some/prefix", "mem:".to_owned())
}

fn last(count: usize) -> Retention {
    Retention { last: count, hourly: 0, daily: 0 }
}

/// A primary at work.
struct Life {
    app: App,
    basis: Basis,
    truth: Truth,
    acknowledged: Vec<CheckpointId>,
}

impl Life {
    fn new(seed: u64, term: u64) -> Self {
        let (app, basis) = (App::new(seed, term), Basis::default());
        Self { app, basis, truth: Truth::new(), acknowledged: Vec::new() }
    }

    async fn upload(&mut self, run: &mut Run, times: usize, dir: &Path) -> Result<(), StoreError> {
        for _ in 0..times {
            // So much that a base has segments of its own.
            (0..20).for_each(|_| self.app.live());
            let mut uploader = Uploader { app: &mut self.app, truth: &mut self.truth, dir };
            uploader.upload(run, &mut self.basis, 1).await?;
            self.acknowledged.push(self.app.id);
        }
        Ok(())
    }

    async fn are_listed(&self, store: &Store, what: &str) {
        let listed: Vec<_> = store.list(APP).await.unwrap().iter().map(store::Listed::id).collect();
        for id in &self.acknowledged {
            assert!(listed.contains(id), "{what}: {id} was acknowledged, and {listed:?} are listed");
        }
    }
}

/// Goes on until it has ended, or stands still: then there is no end yet.
async fn end_of<T>(work: &mut (impl Future<Output = T> + Unpin), plan: &Plan) -> Option<T> {
    tokio::select! {
        ended = work => Some(ended),
        () = plan.waiting.notified() => None,
    }
}

#[test]
fn what_is_acknowledged_is_listed_at_whatever_step_another_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (mut reached, mut at, mut superseded, mut done) = (true, 0, 0, 0);
    while reached {
        runtime().block_on(async {
            let inner = Arc::new(InMemory::new());
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut life = Life::new(7, 1);
            let mut work = Box::pin(async {
                let mut run = begin(over(objects), 1).await?;
                life.upload(&mut run, 3, dir.path()).await
            });
            let ended = match end_of(&mut work, &plan).await {
                Some(ended) => ended,
                None => {
                    begin(over(inner.clone()), 2).await.unwrap();
                    plan.go_on.notify_one();
                    work.as_mut().await
                }
            };
            drop(work);
            match ended {
                Ok(()) => done += 1,
                Err(StoreError::Superseded { .. } | StoreError::OldTerm { .. }) => superseded += 1,
                Err(why) => panic!("stalled at {at}: {why}"),
            }
            let store = over(inner);
            life.are_listed(&store, &format!("stalled at {at}")).await;
            let newest = store.pick(APP, Which::Latest).await.ok().map(|listed| listed.id());
            let relied_on = life.acknowledged.last().copied();
            assert!(
                newest >= relied_on,
                "stalled at {at}: {relied_on:?} was relied on, {newest:?} is the newest"
            );
            reached = plan.reached();
        });
        at += 1;
    }
    assert!(at > 15, "only {at} steps");
    assert!(superseded > 5 && done > 0, "{superseded} and {done}");
}

#[test]
fn what_is_acknowledged_is_listed_while_another_takes_his_time_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let (mut reached, mut at) = (true, 0);
    while reached {
        runtime().block_on(async {
            let inner = Arc::new(InMemory::new());
            let mut life = Life::new(7, 1);
            let mut run = begin(over(inner.clone()), 1).await.unwrap();
            life.upload(&mut run, 1, dir.path()).await.unwrap();
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut next = Box::pin(begin(over(objects), 2));
            if end_of(&mut next, &plan).await.is_none() {
                let _superseded = life.upload(&mut run, 2, dir.path()).await;
                plan.go_on.notify_one();
                next.await.unwrap();
            }
            life.are_listed(&over(inner), &format!("the next one stalled at {at}")).await;
            reached = plan.reached();
        });
        at += 1;
    }
    assert!(at > 5, "only {at} steps");
}

/// The list of what a run is made of is written in steps. A base that is not on it must cost no parent.
#[test]
fn a_fold_and_a_collection_break_nothing_while_another_takes_his_time_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let (mut reached, mut at) = (true, 0);
    while reached {
        runtime().block_on(async {
            let what = format!("the next one stalled at {at}");
            let inner = Arc::new(InMemory::new());
            let mut life = Life::new(7, 1);
            let mut run = begin(over(inner.clone()), 1).await.unwrap();
            life.upload(&mut run, 4, dir.path()).await.unwrap();
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut next = Box::pin(begin(over(objects), 2));
            if end_of(&mut next, &plan).await.is_none() {
                run.fold().await.unwrap();
                let _superseded = run.collect(last(1)).await;
                plan.go_on.notify_one();
                next.await.unwrap();
            }
            let store = over(inner);
            check_all(&store, &life.truth, &what).await;
            assert_eq!(store.pick(APP, Which::Latest).await.unwrap().id(), life.app.id, "{what}");
            reached = plan.reached();
        });
        at += 1;
    }
    assert!(at > 5, "only {at} steps");
}

/// The next one collects before the base comes, and has no use for its segments; and once more after it came.
#[test]
fn a_base_that_comes_when_its_run_is_closed_counts_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (mut reached, mut at) = (true, 0);
    let mut late_bases = 0;
    while reached {
        runtime().block_on(async {
            let what = format!("stalled at {at}");
            let inner = Arc::new(InMemory::new());
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let (mut life, mut after) = (Life::new(7, 1), Life::new(8, 2));
            let mut work = Box::pin(async {
                let mut run = begin(over(objects), 1).await?;
                life.upload(&mut run, 4, dir.path()).await?;
                run.fold().await
            });
            let stalled = end_of(&mut work, &plan).await.is_none();
            let mut run = begin(over(inner.clone()), 2).await.unwrap();
            after.upload(&mut run, 1, dir.path()).await.unwrap();
            run.collect(last(2)).await.unwrap();
            if stalled {
                let before = bases(&inner).await;
                plan.go_on.notify_one();
                let _ended = work.as_mut().await;
                late_bases += bases(&inner).await - before;
            }
            drop(work);
            let mut truth = life.truth;
            truth.extend(after.truth);
            check_all(&over(inner.clone()), &truth, &what).await;
            run.collect(last(2)).await.unwrap();
            check_all(&over(inner), &truth, &format!("{what}, collected")).await;
            reached = plan.reached();
        });
        at += 1;
    }
    assert!(late_bases > 0, "of {at} steps none was before a base");
}

async fn bases(objects: &InMemory) -> usize {
    paths(objects).await.iter().filter(|path| path.contains("/bases/")).count()
}

async fn paths(objects: &InMemory) -> Vec<String> {
    let all: Vec<_> = objects.list(None).try_collect().await.unwrap();
    all.iter().map(|meta| meta.location.to_string()).collect()
}

#[test]
fn a_superseded_primary_writes_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let mut life = Life::new(7, 1);
        let mut run = begin(over(inner.clone()), 1).await.unwrap();
        life.upload(&mut run, 1, dir.path()).await.unwrap();
        begin(over(inner.clone()), 2).await.unwrap();
        let before = paths(&inner).await;
        let why = life.upload(&mut run, 1, dir.path()).await.unwrap_err();
        assert!(matches!(why, StoreError::Superseded { .. }), "{why}");
        assert_eq!(paths(&inner).await, before);
    });
}
