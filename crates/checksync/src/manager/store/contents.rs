//! Has the store take the content of the files that the app has mapped.

use std::sync::atomic::Ordering;

use engine::Shipment;
use image::Shipped;
use store::{Gathered, Run, StoreError};

use super::Shared;

/// What of a checkpoint's files is not there yet: read through the app, whatever is at their paths by now.
pub(super) async fn stock(run: &mut Run, gathered: &Gathered, shared: &Shared) -> Result<(), StoreError> {
    let pid = shared.pid.load(Ordering::Acquire);
    if pid == 0 {
        return Ok(());
    }
    for identity in run.lacks(gathered) {
        let mut shipment = Shipment::of(pid, vec![identity.clone()]);
        let pieces = std::iter::from_fn(|| shipment.step()).inspect(|piece| {
            if let Shipped::Cannot { file, why } = piece {
                let path = String::from_utf8_lossy(&file.path).into_owned();
                tracing::warn!("the store has not {path}, which a restore needs: {why}");
            }
        });
        run.stock(&identity, pieces).await?;
    }
    Ok(())
}
