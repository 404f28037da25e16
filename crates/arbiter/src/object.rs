//! The register in a bucket: the object `PREFIX/APP.register`, replaced by conditional puts.
//!
//! Not every server that takes the headers of a conditional put heeds them, and none of those says so. So nothing is
//! asked of a bucket before a [`probe`] of that very bucket has passed; it begins when the register is opened, and the
//! first question waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use image::Register;
use object_store::path::Path;
use object_store::{DynObjectStore, Error, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use store::Location;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};

use crate::encoding::{LEN_BYTES_MAX, decode, encode, is_name};
use crate::probe::{self, ProbeError};
use crate::{Arbiter, ArbiterError, Swap};

const PROBE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct ObjectArbiter {
    /// For messages: how the operator named it.
    name: String,
    objects: Arc<DynObjectStore>,
    prefix: Path,
    probed: watch::Receiver<Probed>,
    /// What was there last, and what the store calls it.
    seen: Option<(String, Register, UpdateVersion)>,
    runtime: Runtime,
}

#[derive(Debug, Clone)]
enum Probed {
    NotYet(String),
    Fit,
    Unfit(String),
}

/// What became of one conditional put.
enum Put {
    Done(UpdateVersion),
    Refused,
}

impl ObjectArbiter {
    pub fn open(location: &Location) -> Result<Self, ArbiterError> {
        let setup = |why: String| ArbiterError::Setup { register: location.to_string(), why };
        let (objects, prefix) = location.open().map_err(|why| {
            let source =
                std::error::Error::source(&why).map(|source| format!(": {source}")).unwrap_or_default();
            setup(format!("{why}{source}"))
        })?;
        Self::over(objects, &prefix, location.to_string())
    }

    /// Over any objects; begins to probe them.
    pub fn over(objects: Arc<DynObjectStore>, prefix: &str, name: String) -> Result<Self, ArbiterError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("register-io")
            .enable_all()
            .build()
            .map_err(|why| ArbiterError::Setup { register: name.clone(), why: why.to_string() })?;
        let prefix = Path::from(prefix);
        let (tell, probed) = watch::channel(Probed::NotYet("it has not answered the probe yet".to_owned()));
        let (probing, below) = (Arc::clone(&objects), prefix.clone());
        runtime.spawn(async move {
            loop {
                let outcome = match probe::run(&probing, &below).await {
                    Ok(()) => Probed::Fit,
                    Err(why @ ProbeError::Unfit(_)) => Probed::Unfit(why.to_string()),
                    Err(why @ ProbeError::Asking { .. }) => Probed::NotYet(why.to_string()),
                };
                let over = !matches!(outcome, Probed::NotYet(_));
                if tell.send(outcome).is_err() || over {
                    return;
                }
                sleep(PROBE_AGAIN).await;
            }
        });
        Ok(Self { name, objects, prefix, probed, seen: None, runtime })
    }

    fn path(&self, app: &str) -> Result<Path, ArbiterError> {
        if !is_name(app) {
            return Err(ArbiterError::BadName(app.to_owned()));
        }
        Ok(self.prefix.clone().join(format!("{app}.register")))
    }

    /// Waits for the probe, and refuses a bucket that has failed it.
    fn wait_until_fit(&mut self, deadline: Instant) -> Result<(), ArbiterError> {
        let probed = &mut self.probed;
        let outcome = self.runtime.block_on(async {
            let fit =
                timeout_at(deadline.into(), probed.wait_for(|it| !matches!(it, Probed::NotYet(_)))).await;
            fit.ok().and_then(|fit| fit.ok().map(|fit| fit.clone()))
        });
        let register = self.name.clone();
        match outcome.unwrap_or_else(|| self.probed.borrow().clone()) {
            Probed::Fit => Ok(()),
            Probed::Unfit(why) => Err(ArbiterError::Setup { register, why }),
            Probed::NotYet(why) => Err(ArbiterError::Unreachable { register, why }),
        }
    }

    fn ask<T>(
        &self,
        deadline: Instant,
        question: impl Future<Output = Result<T, ArbiterError>>,
    ) -> Result<T, ArbiterError> {
        let asked_at = Instant::now();
        let answered = self.runtime.block_on(async { timeout_at(deadline.into(), question).await });
        let late = |_| ArbiterError::Late { register: self.name.clone(), waited: asked_at.elapsed() };
        answered.map_err(late)?
    }

    fn unreachable(&self, why: &Error) -> ArbiterError {
        ArbiterError::Unreachable { register: self.name.clone(), why: why.to_string() }
    }

    async fn load(&self, path: &Path) -> Result<Option<(Register, UpdateVersion)>, ArbiterError> {
        let found = match self.objects.get(path).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(why) => return Err(self.unreachable(&why)),
        };
        let corrupt = |why| ArbiterError::Corrupt { register: format!("{path} in {}", self.name), why };
        if found.meta.size > LEN_BYTES_MAX as u64 {
            return Err(corrupt(format!("it is longer than {LEN_BYTES_MAX} bytes")));
        }
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|why| self.unreachable(&why))?;
        Ok(Some((decode(&bytes).map_err(corrupt)?, version)))
    }

    async fn put(&self, path: &Path, mode: PutMode, new: &Register) -> Result<Put, ArbiterError> {
        match self.objects.put_opts(path, PutPayload::from(encode(new)), mode.into()).await {
            Ok(done) => Ok(Put::Done(UpdateVersion { e_tag: done.e_tag, version: done.version })),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. }) => {
                Ok(Put::Refused)
            }
            Err(why) => Err(self.unreachable(&why)),
        }
    }

    async fn compare_and_put(
        &self,
        app: &str,
        expected: Option<&Register>,
        new: &Register,
    ) -> Result<(Swap, Option<(Register, UpdateVersion)>), ArbiterError> {
        let path = self.path(app)?;
        let seen = self.seen.as_ref().filter(|(of, value, _)| of == app && Some(value) == expected);
        let mut mode = match (expected, seen) {
            (None, _) => Some(PutMode::Create),
            (Some(_), Some((_, _, version))) => Some(PutMode::Update(version.clone())),
            (Some(_), None) => None,
        };
        loop {
            if let Some(mode) = mode.take()
                && let Put::Done(version) = self.put(&path, mode, new).await?
            {
                return Ok((Swap::Won, Some((new.clone(), version))));
            }
            match self.load(&path).await? {
                // An attempt whose answer was lost has won.
                Some((current, version)) if current == *new => {
                    return Ok((Swap::Won, Some((current, version))));
                }
                Some((current, version)) if Some(&current) == expected => {
                    mode = Some(PutMode::Update(version))
                }
                None if expected.is_none() => mode = Some(PutMode::Create),
                current => {
                    return Ok((Swap::Lost(current.as_ref().map(|(value, _)| value.clone())), current));
                }
            }
        }
    }

    fn remember(&mut self, app: &str, seen: Option<(Register, UpdateVersion)>) {
        self.seen = seen.map(|(value, version)| (app.to_owned(), value, version));
    }
}

impl Arbiter for ObjectArbiter {
    fn read(&mut self, app: &str, deadline: Instant) -> Result<Option<Register>, ArbiterError> {
        let path = self.path(app)?;
        self.wait_until_fit(deadline)?;
        let found = self.ask(deadline, self.load(&path))?;
        let register = found.as_ref().map(|(register, _)| register.clone());
        self.remember(app, found);
        Ok(register)
    }

    fn swap(
        &mut self,
        app: &str,
        expected: Option<&Register>,
        new: Register,
        deadline: Instant,
    ) -> Result<Swap, ArbiterError> {
        assert!(new.follows(expected), "the register of {app} can't go from {expected:?} to {new:?}");
        self.wait_until_fit(deadline)?;
        let (swap, seen) = self.ask(deadline, self.compare_and_put(app, expected, &new))?;
        self.remember(app, seen);
        Ok(swap)
    }
}
