//! A store that dies at a step, or stands still at one until it is told to go on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Notify;

/// What becomes of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It does not take place, and nothing does after it.
    Dies,
    /// It takes place, nobody hears of it, and nothing takes place after it.
    DiesAfter,
    /// It waits until it is told to go on.
    Waits,
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<InMemory>,
    plan: Arc<Plan>,
}

#[derive(Debug)]
pub struct Plan {
    fault: Fault,
    at: u64,
    steps: AtomicU64,
    pub waiting: Notify,
    pub go_on: Notify,
}

impl Plan {
    /// Whether the step was ever reached.
    pub fn reached(&self) -> bool {
        self.steps.load(Ordering::SeqCst) > self.at
    }

    async fn step<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        let dead = || Error::Generic { store: "faulty", source: "the process has died".into() };
        match self.fault {
            Fault::Waits if step == self.at => {
                self.waiting.notify_one();
                self.go_on.notified().await;
                work.await
            }
            Fault::Waits => work.await,
            Fault::DiesAfter if step == self.at => {
                work.await?;
                Err(dead())
            }
            Fault::Dies | Fault::DiesAfter if step >= self.at => Err(dead()),
            Fault::Dies | Fault::DiesAfter => work.await,
        }
    }
}

impl Faulty {
    pub fn new(inner: &Arc<InMemory>, fault: Fault, at: u64) -> (Arc<Self>, Arc<Plan>) {
        let (steps, waiting, go_on) = (AtomicU64::new(0), Notify::new(), Notify::new());
        let plan = Arc::new(Plan { fault, at, steps, waiting, go_on });
        (Arc::new(Self { inner: Arc::clone(inner), plan: Arc::clone(&plan) }), plan)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.plan.step(self.inner.put_opts(at, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.plan.step(self.inner.put_multipart_opts(at, options)).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.plan.step(self.inner.get_opts(at, options)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, plan) = (Arc::clone(&self.inner), Arc::clone(&self.plan));
        let delete = move |path: Result<Path>| {
            let (inner, plan) = (Arc::clone(&inner), Arc::clone(&plan));
            async move {
                let path = path?;
                plan.step(inner.delete(&path)).await.map(|()| path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (listed, plan) = (self.inner.list(prefix), Arc::clone(&self.plan));
        let listing = async move { plan.step(listed.try_collect::<Vec<_>>()).await };
        stream::once(listing).map_ok(|found| stream::iter(found.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.plan.step(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.plan.step(self.inner.copy_opts(from, to, options)).await
    }
}
