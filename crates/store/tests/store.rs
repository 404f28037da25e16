//! What is listed restores byte for byte: after merging, folding and collecting, after a death at every step of them,
//! beside a primary that stalls at any step; and what is damaged is named.

mod world;

use std::path::Path;
use std::sync::Arc;

use image::PageTarget;
use image::layout::ObjectKey;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use store::{Basis, Retention, Store, StoreError, Which};
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
            let (mut app, mut truth, mut basis) = (App::new(seed, 1), Truth::new(), Basis::default());
            let mut run = begin(store.clone(), 1).await.unwrap();
            let mut folds = 0;
            for _ in 0..40 {
                let epochs = 1 + app.dice.below(4);
                let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
                uploader.upload(&mut run, &mut basis, epochs).await.unwrap();
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
    dir: &Path,
    rounds: u64,
) -> Result<(), StoreError> {
    let mut run = begin(store, term).await?;
    let mut basis = Basis::default();
    for round in 1..=rounds {
        Uploader { app: &mut *app, truth: &mut *truth, dir }.upload(&mut run, &mut basis, 2).await?;
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
        let (mut app, mut truth, mut basis) = (App::new(3, 1), Truth::new(), Basis::default());
        let mut run = begin(store.clone(), 1).await.unwrap();
        for _ in 0..10 {
            let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
            uploader.upload(&mut run, &mut basis, 1).await.unwrap();
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
fn what_is_distrusted_is_sent_again_over_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let store = over(inner.clone());
        let mut run = begin(store.clone(), 1).await.unwrap();
        let (mut app, mut truth) = (App::new(5, 1), Truth::new());
        let mut full = async |run: &mut store::Run| {
            let mut gathered = store::Gathered::full(dir.path()).unwrap();
            take(&mut gathered, &app.epoch(true));
            truth.insert(app.id, app.memory.content());
            run.upload(&gathered).await.unwrap();
        };
        full(&mut run).await;
        for path in paths(&inner, "/segments/").await {
            flip(&inner, &path).await;
        }
        run.distrust();
        full(&mut run).await;
        let newest = store.pick(APP, Which::Latest).await.unwrap();
        assert!(restore(&store, &newest).await.unwrap().content() == truth[&newest.id()]);
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

async fn flip(objects: &InMemory, path: &ObjectPath) {
    let mut bytes = objects.get(path).await.unwrap().bytes().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    objects.put(path, PutPayload::from(bytes)).await.unwrap();
}

async fn paths(objects: &InMemory, part: &str) -> Vec<ObjectPath> {
    let all: Vec<_> = futures_util::TryStreamExt::try_collect(objects.list(None)).await.unwrap();
    let paths = all.into_iter().map(|meta| meta.location);
    let mut paths: Vec<_> = paths.filter(|path| path.as_ref().contains(part)).collect();
    paths.sort();
    paths
}

#[test]
fn a_damaged_manifest_hides_its_own_checkpoint_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let store = over(inner.clone());
        let (mut app, mut truth, mut basis) = (App::new(13, 1), Truth::new(), Basis::default());
        let mut run = begin(store.clone(), 1).await.unwrap();
        for _ in 0..6 {
            let mut uploader = Uploader { app: &mut app, truth: &mut truth, dir: dir.path() };
            uploader.upload(&mut run, &mut basis, 1).await.unwrap();
        }
        // Whole, each with its base, so that none needs another.
        run.fold().await.unwrap();
        let manifests = paths(&inner, "/manifests/").await;
        flip(&inner, &manifests[2]).await;
        assert_eq!(store.list(APP).await.unwrap().len(), 5);
        let newest = store.pick(APP, Which::Latest).await.unwrap();
        assert!(restore(&store, &newest).await.unwrap().content() == truth[&newest.id()]);
        let verdicts = store.verify(APP).await.unwrap();
        let named =
            |n: usize| verdicts[n].why_not.as_ref().is_some_and(|why| why.contains(manifests[2].as_ref()));
        assert_eq!((0..6).map(named).collect::<Vec<_>>(), [false, false, true, true, true, false]);
        let wanted = Which::Named(image::CheckpointId::new(1, verdicts[2].epoch));
        let why = store.pick(APP, wanted).await.unwrap_err().to_string();
        assert!(why.contains(manifests[2].as_ref()), "{why}");
        // A collection goes on, and removes nothing that the damaged one may name.
        let segments = paths(&inner, "/segments/").await.len();
        run.collect(Retention { last: 6, hourly: 0, daily: 0 }).await.unwrap();
        assert_eq!(paths(&inner, "/segments/").await.len(), segments);
        let collected = run.collect(Retention { last: 1, hourly: 0, daily: 0 }).await.unwrap();
        assert!(collected.segments > 0, "it is older than what is kept");
        assert_eq!(paths(&inner, "/manifests/").await, manifests[5..]);
        flip(&inner, &manifests[5]).await;
        let why = store.pick(APP, Which::Latest).await.unwrap_err().to_string();
        assert!(why.contains(manifests[5].as_ref()), "nobody gets an older one instead: {why}");
    });
}

#[test]
fn a_damaged_base_costs_nothing_while_its_parents_are_there() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let store = over(inner.clone());
        let mut truth = Truth::new();
        let mut run = four_checkpoints(&inner, 17, &mut truth, dir.path()).await;
        run.fold().await.unwrap();
        let bases = paths(&inner, "/bases/").await;
        flip(&inner, &bases[0]).await;
        assert_eq!(check_all(&store, &truth, "with a damaged base").await, 4);
        run.collect(Retention { last: 1, hourly: 0, daily: 0 }).await.unwrap();
        assert_eq!(check_all(&store, &truth, "collected with a damaged base").await, 4);
    });
}

#[test]
fn a_run_whose_list_is_damaged_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let inner = Arc::new(InMemory::new());
        let (store, mut truth) = (over(inner.clone()), Truth::new());
        let mut app = App::new(19, 1);
        one_life(store.clone(), 1, &mut app, &mut truth, dir.path(), 2).await.unwrap();
        let mut run = begin(store.clone(), 2).await.unwrap();
        flip(&inner, &paths(&inner, "/closed").await[0]).await;
        let before = paths(&inner, "-0000000001-").await;
        let why = store.pick(APP, Which::Latest).await.unwrap_err().to_string();
        assert!(why.contains("closed"), "{why}");
        let (mut next, mut basis) = (App::new(20, 2), Basis::default());
        let mut uploader = Uploader { app: &mut next, truth: &mut truth, dir: dir.path() };
        uploader.upload(&mut run, &mut basis, 1).await.unwrap();
        run.collect(Retention { last: 1, hourly: 0, daily: 0 }).await.unwrap();
        assert_eq!(store.pick(APP, Which::Latest).await.unwrap().id(), next.id);
        assert!(store.verify(APP).await.unwrap()[0].why_not.as_ref().unwrap().contains("closed"));
        begin(store.clone(), 3).await.unwrap();
        assert_eq!(paths(&inner, "-0000000001-").await, before);
    });
}

/// Two begin with the same number: neither saw the other, so neither closed the other. The lower one stalls at a step,
/// while the higher one uploads and collects, and then goes on.
#[test]
fn of_two_that_begin_at_once_the_lower_one_breaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = true;
    let mut at = 0;
    while reached {
        runtime().block_on(async {
            let what = format!("the lower one stalled at {at}");
            let (inner, mut truth, mut late) = (Arc::new(InMemory::new()), Truth::new(), Truth::new());
            // It has listed the runs, and its own is not written yet.
            let (objects, higher_plan) = Faulty::new(&inner, Fault::Waits, 1);
            let (mut app, mut next) = (App::new(23, 1), App::new(24, 2));
            let mut higher = Box::pin(one_life(over(objects), 2, &mut next, &mut truth, dir.path(), 4));
            tokio::select! {
                _ended = &mut higher => panic!("it was to stand still"),
                () = higher_plan.waiting.notified() => {}
            }
            let (objects, plan) = Faulty::new(&inner, Fault::Waits, at);
            let mut lower = Box::pin(one_life(over(objects), 1, &mut app, &mut late, dir.path(), 4));
            let stalled = tokio::select! {
                _ended = &mut lower => false,
                () = plan.waiting.notified() => true,
            };
            higher_plan.go_on.notify_one();
            higher.await.unwrap();
            if stalled {
                plan.go_on.notify_one();
                // It may find that it is superseded, or that what it looks for was collected.
                let _ = lower.as_mut().await;
            }
            reached = plan.reached();
            drop(lower);
            truth.extend(late);
            check_all(&over(inner), &truth, &what).await;
        });
        at += 1;
    }
    assert!(at > 40, "only {at} steps");
}

async fn four_checkpoints(objects: &Arc<InMemory>, seed: u64, truth: &mut Truth, dir: &Path) -> store::Run {
    let (mut app, mut basis) = (App::new(seed, 1), Basis::default());
    let mut run = begin(over(objects.clone()), 1).await.unwrap();
    for _ in 0..4 {
        Uploader { app: &mut app, truth: &mut *truth, dir }.upload(&mut run, &mut basis, 1).await.unwrap();
    }
    run
}

/// A folder that somebody copied over another: each object is whole, and none is the one that is meant.
#[test]
fn what_lies_in_anothers_place_is_not_taken_for_it() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (inner, other) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        let mut truth = Truth::new();
        four_checkpoints(&other, 29, &mut truth, dir.path()).await;
        four_checkpoints(&inner, 28, &mut truth, dir.path()).await;
        let manifests = paths(&inner, "/manifests/").await;
        let put = async |path: &ObjectPath, from: &InMemory, of: &ObjectPath| {
            let bytes = from.get(of).await.unwrap().bytes().await.unwrap();
            inner.put(path, PutPayload::from(bytes)).await.unwrap();
        };
        let store = over(inner.clone());
        let newest = store.pick(APP, Which::Latest).await.unwrap();

        put(&manifests[1], &other, &manifests[1]).await;
        let why = restore(&store, &newest).await.unwrap_err().to_string();
        assert!(why.contains(manifests[1].as_ref()) && why.contains("means another"), "{why}");
        put(&manifests[1], &inner, &manifests[2]).await;
        let why = restore(&store, &newest).await.unwrap_err().to_string();
        assert!(why.contains(manifests[1].as_ref()) && why.contains("1/3"), "{why}");
    });
}

#[test]
fn a_base_of_another_checkpoint_is_none() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (inner, other) = (Arc::new(InMemory::new()), Arc::new(InMemory::new()));
        let mut truth = Truth::new();
        four_checkpoints(&other, 29, &mut truth, dir.path()).await.fold().await.unwrap();
        let mut run = four_checkpoints(&inner, 28, &mut truth, dir.path()).await;
        for part in ["/bases/", "/segments/"] {
            for path in paths(&other, part).await {
                let bytes = other.get(&path).await.unwrap().bytes().await.unwrap();
                inner.put(&path, PutPayload::from(bytes)).await.unwrap();
            }
        }
        let store = over(inner);
        assert_eq!(check_all(&store, &truth, "beside another's base").await, 4);
        run.collect(Retention { last: 1, hourly: 0, daily: 0 }).await.unwrap();
        assert_eq!(check_all(&store, &truth, "collected beside another's base").await, 4);
    });
}

#[test]
fn what_does_not_follow_the_newest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let (mut app, mut truth, mut basis) = (App::new(31, 1), Truth::new(), Basis::default());
        let mut run = begin(store.clone(), 1).await.unwrap();
        let mut one = async |run: &mut store::Run, app: &mut App, basis: &mut Basis| {
            let mut uploader = Uploader { app, truth: &mut truth, dir: dir.path() };
            uploader.upload(run, basis, 1).await.unwrap();
        };
        one(&mut run, &mut app, &mut basis).await;
        let since = |app: &App, basis: &Basis| {
            let mut gathered = store::Gathered::since(app.id, basis.clone(), dir.path()).unwrap();
            take(&mut gathered, &app.clone().epoch(false));
            gathered
        };
        let early = since(&app, &basis);
        one(&mut run, &mut app, &mut basis).await;
        let why = run.upload(&early).await.unwrap_err();
        assert!(matches!(why, StoreError::Gap { .. }), "{why}");
        let mut next = begin(store.clone(), 2).await.unwrap();
        let why = next.upload(&since(&app, &basis)).await.unwrap_err();
        assert!(matches!(why, StoreError::NotFull { .. }), "{why}");
        assert_eq!(check_all(&store, &truth, "beside what was refused").await, 2);
    });
}

const PAGE_BYTES: u64 = image::PAGE_BYTES;
const OBJECT: ObjectKey = ObjectKey { device: 1, inode: 77 };

/// A shared object, full of bytes, has each of these sizes for an epoch (none: it is away) and then its first one
/// again: what was gone for a while is empty.
async fn an_object_changes_its_size(pages: u64, sizes: &[Option<u64>], dir: &Path) {
    let what = format!("{pages} pages, then {sizes:?}");
    let store = over(Arc::new(InMemory::new()));
    let (mut app, mut truth) = (App::new(33, 1), Truth::new());
    app.set_object(OBJECT, Some(pages * PAGE_BYTES));
    for page in pages.saturating_sub(4)..pages {
        app.fill_page(PageTarget::Object(OBJECT), page * PAGE_BYTES, 0xaa);
    }
    let mut run = begin(store.clone(), 1).await.unwrap();
    let mut gathered = store::Gathered::full(dir).unwrap();
    take(&mut gathered, &app.epoch(true));
    for size in sizes.iter().copied().chain([Some(pages * PAGE_BYTES)]) {
        // The uploader is slow: what can be on top of each other is.
        if run.tip().is_none() || gathered.is_sealed() {
            truth.insert(app.id, app.memory.content());
            run.upload(&gathered).await.unwrap();
            gathered = store::Gathered::since(app.id, gathered.basis(), dir).unwrap();
        }
        app.set_object(OBJECT, size);
        take(&mut gathered, &app.epoch(false));
    }
    truth.insert(app.id, app.memory.content());
    run.upload(&gathered).await.unwrap();
    check_all(&store, &truth, &what).await;
    run.fold().await.unwrap();
    check_all(&store, &truth, &format!("{what}, folded")).await;
}

#[test]
fn what_an_object_lost_does_not_come_back_with_its_size() {
    const WINDOW_PAGES: u64 = 1024;
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        for (pages, size) in [
            (4, None),
            (4, Some(0)),
            (4, Some(PAGE_BYTES)),
            (4, Some(PAGE_BYTES + 100)),
            (4, Some(4 * PAGE_BYTES - 100)),
            // In the last page of what a fold looks at as one.
            (WINDOW_PAGES, Some(WINDOW_PAGES * PAGE_BYTES - 100)),
        ] {
            an_object_changes_its_size(pages, &[size], dir.path()).await;
            an_object_changes_its_size(pages, &[size, size.map(|size| size + 10)], dir.path()).await;
            an_object_changes_its_size(pages, &[Some(pages / 4 * 3 * PAGE_BYTES), size], dir.path()).await;
        }
    });
}

/// Gathers one epoch, and uploads it.
async fn store_one(run: &mut store::Run, app: &mut App, basis: &mut Basis, dir: &Path) -> store::Uploaded {
    let mut gathered = match run.tip() {
        None => store::Gathered::full(dir).unwrap(),
        Some(tip) => store::Gathered::since(tip, basis.clone(), dir).unwrap(),
    };
    take(&mut gathered, &app.epoch(run.tip().is_none()));
    *basis = gathered.basis();
    run.upload(&gathered).await.unwrap()
}

#[test]
fn of_files_that_came_and_went_nothing_is_in_a_base() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let (mut app, mut basis) = (App::new(41, 1), Basis::default());
        let mut run = begin(store.clone(), 1).await.unwrap();
        let mut first = None;
        for round in 0..12 {
            app.put_file(&format!("log-{round}"), 40 * PAGE_BYTES, round + 1);
            app.put_file("kept", 100 * PAGE_BYTES, round + 1);
            if round > 0 {
                app.remove_file(&format!("log-{}", round - 1));
            }
            store_one(&mut run, &mut app, &mut basis, dir.path()).await;
            let bytes = run.fold().await.unwrap().bytes;
            let first = *first.get_or_insert(bytes);
            assert!(
                bytes < first + PAGE_BYTES,
                "in round {round} the base has {bytes} bytes, at first {first}"
            );
        }
    });
}

#[test]
fn many_small_files_share_objects_and_what_changed_is_sent_alone() {
    const FILES: u64 = 1000;
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let (mut app, mut truth, mut basis) = (App::new(42, 1), Truth::new(), Basis::default());
        let mut run = begin(store.clone(), 1).await.unwrap();
        (0..FILES).for_each(|n| app.put_file(&format!("small-{n}"), 100, n as u8));
        let full = store_one(&mut run, &mut app, &mut basis, dir.path()).await;
        truth.insert(app.id, app.memory.content());
        assert!(full.segments < FILES / 20, "{full:?}");
        app.put_file("small-500", 200, 1);
        app.remove_file("small-100");
        let since = store_one(&mut run, &mut app, &mut basis, dir.path()).await;
        truth.insert(app.id, app.memory.content());
        assert!(since.segments < 5, "{since:?}");
        let folded = run.fold().await.unwrap();
        // Names, the two groups, and the clock.
        assert!(folded.segments - folded.segments_shared <= 4, "{folded:?}");
        assert_eq!(check_all(&store, &truth, "small files").await, 2);
    });
}

/// They come with the others, as they were at the freeze.
#[test]
fn mapped_files_of_state_directories_are_not_stored_once_more() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let store = over(Arc::new(InMemory::new()));
        let run = begin(store.clone(), 1).await.unwrap();
        let mut app = App::new(43, 1);
        app.put_file("table", PAGE_BYTES, 1);
        for (n, path) in ["/var/made-up/table", "/var/made-up/gone", "/usr/lib/table"].iter().enumerate() {
            app.map_file(path, 0x1000_0000 + n as u64 * 0x10_000);
        }
        let mut gathered = store::Gathered::full(dir.path()).unwrap();
        take(&mut gathered, &app.epoch(true));
        let lacks: Vec<_> = run.lacks(&gathered).into_iter().map(|file| file.path).collect();
        assert_eq!(lacks, [b"/usr/lib/table".to_vec(), b"/var/made-up/gone".to_vec()]);
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
