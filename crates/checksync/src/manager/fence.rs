//! The gate of one app: a cgroup with a permit where a word or silence must be true, nothing with
//! `--fencing none`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use gate::{CellCgroup, Permit, PermitHandle, Revoked};
use replica::Fencing;
use replica::primary::Permit as Allowed;

use crate::exit::{Coded, Exit};

/// The cgroup that all cells' cgroups are in.
const PARENT: &str = "checksync";

#[derive(Debug)]
pub struct Fence {
    permit: Option<(CellCgroup, Permit)>,
    ours: bool,
}

impl Fence {
    /// A fence that is shut, for an app that has made no socket yet.
    pub fn raise(app: &str, fencing: Fencing) -> anyhow::Result<Self> {
        Self::with(fencing, true, || {
            let cgroup = CellCgroup::create(PARENT, app)?;
            sweep(&cgroup);
            Ok(cgroup)
        })
    }

    /// A fence around a process that runs already, in the cgroup that it has to itself.
    pub fn around(pid: i32, fencing: Fencing) -> anyhow::Result<Self> {
        Self::with(fencing, false, || Ok(CellCgroup::adopt(pid, &[])?))
    }

    fn with(
        fencing: Fencing,
        ours: bool,
        cgroup: impl FnOnce() -> anyhow::Result<CellCgroup>,
    ) -> anyhow::Result<Self> {
        if fencing == Fencing::None {
            return Ok(Self { permit: None, ours });
        }
        let permit = cgroup().and_then(|cgroup| {
            let permit = Permit::attach(&cgroup)?;
            Ok((cgroup, permit))
        });
        let permit =
            permit.context("cannot fence the app").map_err(|why| Coded::new(Exit::Unsupported, why))?;
        Ok(Self { permit: Some(permit), ours })
    }

    /// In force when this returns. `Revoked`: the guard took the manager for dead.
    pub fn allow(&self, allowed: Allowed) -> Result<(), Revoked> {
        let Some((_, permit)) = &self.permit else { return Ok(()) };
        match allowed {
            Allowed::Shut => permit.shut(),
            Allowed::Open => permit.open_for_ever()?,
            Allowed::Until(deadline) => {
                // An extension never shortens, and what was open for ever must come to an end.
                if permit.handle().deadline_ns() == u64::MAX {
                    permit.shut();
                }
                permit.extend_to(deadline.0)?;
            }
        }
        Ok(())
    }

    pub fn handle(&self) -> Option<&PermitHandle> {
        self.permit.as_ref().map(|(_, permit)| permit.handle())
    }

    /// The cgroup that the app is to be in.
    pub fn directory(&self) -> Option<PathBuf> {
        self.permit.as_ref().filter(|_| self.ours).map(|(cgroup, _)| cgroup.path())
    }

    /// Takes the fence down, with whatever is still alive inside one of ours.
    pub fn take_down(mut self) {
        self.remove();
    }

    fn remove(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let Some((cgroup, permit)) = self.permit.take() else { return };
        if !self.ours {
            if let Err(why) = permit.remove() {
                tracing::warn!("the permit stays on cgroup {}: {why:#}", cgroup.name());
            }
            return;
        }
        permit.shut();
        let name = cgroup.name().to_owned();
        if let Err(why) = cgroup.kill_all().and_then(|()| cgroup.remove(PATIENCE)) {
            tracing::warn!("cgroup {name} stays: {why:#}");
        }
    }
}

/// Whoever fails on the way leaves no cgroup behind.
impl Drop for Fence {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Removes what dead managers left: `APP-PID-N` beside ours, whose manager is gone and whose app is, too.
fn sweep(ours: &CellCgroup) {
    let path = ours.path();
    let Some(entries) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let manager = name.to_str().and_then(|name| name.rsplit('-').nth(1)?.parse::<u32>().ok());
        if manager.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // The kernel refuses while a process is in it: an app may outlive its manager.
            let _ = fs::remove_dir(entry.path());
        }
    }
}
