//! What is listed restores byte for byte: after merging, folding and collecting, after a death at every step of them,
//! beside a primary that stalls at any step; and what is damaged is named.

mod world;

use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use store::{Layouts, Retention, Store, StoreError, Which};
use tokio::runtime::Runtime;
use world::faults::{Fault, Faulty};
use world::{APP, App, Memory, Truth, Uploader, begin, check_all, restore, take};

const FEW: Retention = Retention { last: 3, hourly: 0, daily: 0 };

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn over(objects: Arc<dyn ObjectStore>) -> Store {
    Store::over(objects, "some/prefix", "mem:".to_owned())
}

#[test]
fn the_made_up_app_is_what_a_standby_makes_of_its_epochs() {
    for seed in 0..30 {
        let mut app = App::new(seed, 1);
        let (mut copy, mut held) = (Memory::default(), None);
        for n in 0..60 {
            (0..app.dice.below(8)).for_each(|_| app.live());
            let frames = app.epoch(n == 0);
            held = Some(copy.receive(&frames, held));
            assert!(copy.content() == app.memory.content(), "seed {seed}, epoch {n}");
        }
    }
}

#[test]
fn merged_folded_and_thinned_out_every_listed_checkpoint_restores() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        for seed in 0..25 {
            let store = over(Arc::new(InMemory::new()));
            let (mut app, mut truth, mut layouts) = (App::new(seed, 1), Truth::new(), Layouts::new());
            let mut run = begin(store.clone(), 1).await.unwrap();
            let mut folds = 0;
            for _ in 0..40 {
                let epochs = 1 + app.dice.below(4);
                let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
                uploader.upload(&mut run, &mut layouts, epochs).await.unwrap();
                if run.fold_is_due() || app.dice.below(8) == 0 {
                    run.fold().await.unwrap();
                    folds += 1;
                }
                if app.dice.below(6) == 0 {
                    run.collect(FEW).await.unwrap();
                }
            }
            assert!(folds > 2);
            run.collect(FEW).await.unwrap();
            let what = format!("seed {seed}");
            let count = check_all(&store, &truth, &what).await;
            assert!((3..25).contains(&count), "{what}: {count} are listed");
            let newest = store.pick(APP, Which::Latest).await.unwrap();
            assert_eq!(newest.id(), app.id);
            let bad: Vec<_> =
                store.verify(APP).await.unwrap().into_iter().filter_map(|it| it.why_not).collect();
            assert!(bad.is_empty(), "{bad:?}");
        }
    });
}

/// A life of a primary: it uploads, folds and collects until something fails.
async fn one_life(
    store: Store,
    term: u64,
    app: &mut App,
    truth: &mut Truth,
    dir: &std::path::Path,
    rounds: u64,
) -> Result<(), StoreError> {
    let mut run = begin(store, term).await?;
    let mut layouts = Layouts::new();
    for round in 1..=rounds {
        Uploader { app: &mut *app, truth: &mut *truth, dir }.upload(&mut run, &mut layouts, 2).await?;
        if round % 3 == 0 {
            run.fold().await?;
            run.collect(Retention { last: 2, hourly: 0, daily: 0 }).await?;
        }
    }
    Ok(())
}

#[test]
fn a_death_at_any_step_breaks_nothing_that_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    for fault in [Fault::Dies, Fault::DiesAfter] {
        let mut reached = true;
        let mut at = 0;
        while reached {
            runtime().block_on(async {
                let what = format!("{fault:?} at {at}");
                let (inner, mut truth) = (Arc::new(InMemory::new()), Truth::new());
                let mut app = App::new(7, 1);
                let (objects, plan) = Faulty::new(&inner, fault, at);
                let ended = one_life(over(objects), 1, &mut app, &mut truth, dir.path(), 7).await;
                reached = plan.reached();
                assert_eq!(ended.is_err(), reached, "{what}");
                check_all(&over(inner.clone()), &truth, &what).await;
                // The next life goes on beside what is there, and cleans up.
                app.id = image::CheckpointId::new(2, app.id.epoch.0);
                one_life(over(inner.clone()), 2, &mut app, &mut truth, dir.path(), 4).await.unwrap();
                let left = check_all(&over(inner), &truth, &what).await;
                assert!(left >= 2, "{what}: {left}");
            });
            at += 1;
        }
        assert!(at > 80, "only {at} steps");
    }
}

/// A primary stands still at a step while another takes over, and then goes on.
#[test]
fn a_stalled_primary_breaks_nothing_whenever_it_wakes() {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = true;
    let mut at = 0;
    while reached {
        runtime().block_on(async {
            let what = format!("stalled at {at}");
            let (inner, mut truth, mut late) = (Arc::new(InMemory::new()), Truth::new(), Truth::new());
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut app = App::new(7, 1);
            let mut next = App::new(8, 2);
            let old = one_life(over(objects), 1, &mut app, &mut late, dir.path(), 7);
            let mut old = Box::pin(old);
            let stalled = tokio::select! {
                _ended = &mut old => false,
                () = plan.waiting.notified() => true,
            };
            one_life(over(inner.clone()), 2, &mut next, &mut truth, dir.path(), 4).await.unwrap();
            if stalled {
                plan.go_on.notify_one();
                // It may find that it is superseded, or that what it looks for was collected.
                let _ = old.as_mut().await;
            }
            reached = plan.reached();
            drop(old);
            truth.extend(late);
            check_all(&over(inner.clone()), &truth, &what).await;
            let newest = over(inner).pick(APP, Which::Latest).await.unwrap();
            assert_eq!(newest.id(), next.id, "{what}: the old one's checkpoint counts as newer");
        });
        at += 1;
    }
    assert!(at > 80, "only {at} steps");
}

#[test]
fn a_base_shares_what_has_not_changed_and_ends_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let (mut app, mut truth, mut layouts) = (App::new(3, 1), Truth::new(), Layouts::new());
        let mut run = begin(store.clone(), 1).await.unwrap();
        for _ in 0..10 {
            let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
            uploader.upload(&mut run, &mut layouts, 1).await.unwrap();
        }
        let newest = store.pick(APP, Which::Latest).await.unwrap();
        assert_eq!(store.chain(APP, &newest).await.unwrap().links.len(), 10);
        run.fold().await.unwrap();
        assert_eq!(store.chain(APP, &newest).await.unwrap().links.len(), 1);
        // Nothing was done in between, so that a second base is the first once more.
        let again = run.fold().await.unwrap();
        assert_eq!(again.segments, again.segments_shared);
        let earlier = store.list(APP).await.unwrap().remove(4);
        assert_eq!(store.chain(APP, &earlier).await.unwrap().links.len(), 5, "what was before is as it was");
        check_all(&store, &truth, "after a fold").await;
    });
}

#[test]
fn the_same_pages_are_sent_once() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let mut run = begin(store, 1).await.unwrap();
        let mut app = App::new(5, 1);
        (0..200).for_each(|_| app.live());
        let full = |app: &mut App| {
            let mut gathered = store::Gathered::full(dir.path()).unwrap();
            take(&mut gathered, &app.epoch(true));
            gathered
        };
        let first = run.upload(&full(&mut app)).await.unwrap();
        let second = run.upload(&full(&mut app)).await.unwrap();
        // Only the state is another: its clock has gone on.
        assert_eq!(second.segments_shared, second.segments - 1);
        assert!(second.segments > 3 && second.bytes_sent < first.bytes_sent);
    });
}

#[test]
fn damage_and_loss_are_named_by_the_object() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let store = over(inner.clone());
        let (mut app, mut truth) = (App::new(11, 1), Truth::new());
        one_life(store.clone(), 1, &mut app, &mut truth, dir.path(), 4).await.unwrap();
        let newest = store.pick(APP, Which::Latest).await.unwrap();
        let all: Vec<_> = futures_util::TryStreamExt::try_collect(inner.list(None)).await.unwrap();
        let mut blamed = 0;
        for meta in &all {
            let path: &ObjectPath = &meta.location;
            let good = inner.get(path).await.unwrap().bytes().await.unwrap();
            let mut flipped = good.to_vec();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 4;
            for bad in [Some(flipped), None] {
                match &bad {
                    Some(bytes) => drop(inner.put(path, PutPayload::from(bytes.clone())).await.unwrap()),
                    None => inner.delete(path).await.unwrap(),
                }
                // What is not needed for this one does not matter to it.
                match restore(&store, &newest).await {
                    Ok(memory) => {
                        assert!(memory.content() == truth[&newest.id()], "{path}: silently another")
                    }
                    // Without its base, a checkpoint needs what was collected because of it.
                    Err(StoreError::Missing { .. }) if path.as_ref().contains("/bases/") => blamed += 1,
                    Err(why @ (StoreError::Damaged { .. } | StoreError::Missing { .. })) => {
                        blamed += 1;
                        assert!(why.to_string().contains(path.as_ref()), "{path} is not in: {why}");
                    }
                    Err(why) => panic!("{path}: {why}"),
                }
            }
            inner.put(path, PutPayload::from(good)).await.unwrap();
        }
        assert!(blamed > 10, "only {blamed} of {}", all.len());
        check_all(&store, &truth, "all is back").await;
    });
}

#[test]
fn what_is_not_there_is_refused_with_what_is() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let why = store.pick("kv", Which::Latest).await.unwrap_err().to_string();
        assert!(why.contains("\"kv\"") && why.contains("empty"), "{why}");
        let (mut app, mut truth) = (App::new(1, 1), Truth::new());
        one_life(store.clone(), 1, &mut app, &mut truth, dir.path(), 2).await.unwrap();
        let why = store.pick("kv", Which::Latest).await.unwrap_err().to_string();
        assert!(why.contains(APP), "{why}");
        let wanted = image::CheckpointId::new(1, 99);
        let why = store.pick(APP, Which::Named(wanted)).await.unwrap_err().to_string();
        let listed = store.list(APP).await.unwrap();
        let ends = [listed[0].id().to_string(), listed[1].id().to_string()];
        assert!(why.contains("1/99") && ends.iter().all(|end| why.contains(end)), "{why}");
        let between = listed[1].manifest.frozen_at_ns - 1;
        assert_eq!(store.pick(APP, Which::At(between)).await.unwrap().id(), listed[0].id());
        let why = store.pick(APP, Which::At(1)).await.unwrap_err().to_string();
        assert!(why.contains(&ends[0]), "{why}");
        let why = store.list("../x").await.unwrap_err();
        assert!(matches!(why, StoreError::BadName { .. }), "{why}");
    });
}
