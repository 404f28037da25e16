//! What can go wrong with a store; the object is always named.

use image::CheckpointId;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} {object}")]
    Object {
        what: &'static str,
        object: String,
        #[source]
        source: object_store::Error,
    },
    #[error(
        "{object} is missing: it was removed, or never was whole; `checksync checkpoints verify` says what it costs"
    )]
    Missing { object: String },
    #[error(
        "{object} is damaged: {why}; restore another checkpoint, `checksync checkpoints verify` says which are whole"
    )]
    Damaged { object: String, why: String },
    #[error("{store} holds no checkpoint of app {app:?}; {others}")]
    Nothing { store: String, app: String, others: String },
    #[error(
        "{store} holds no checkpoint {wanted} of app {app}; it holds {first} to {last}, `checksync checkpoints list` shows them"
    )]
    NoSuch { store: String, app: String, wanted: String, first: CheckpointId, last: CheckpointId },
    /// Another primary has begun a run: what this one writes would be no part of it.
    #[error("{run} has begun after this one: another manager uploads this app's checkpoints")]
    Superseded { run: String },
    #[error(
        "{run} has a later term than {term}, by the same register: the app is another manager's by now; if the register \
         was made anew, give another prefix"
    )]
    OldTerm { run: String, term: u64 },
    #[error("{object} is there already and is another; two managers write the same run")]
    Conflict { object: String },
    #[error("an epoch that builds on {parent} cannot be the first of a run")]
    NotFull { parent: CheckpointId },
    #[error("checkpoint {found} cannot follow {tip} in the store")]
    Gap { tip: CheckpointId, found: CheckpointId },
    #[error("cannot {what} the epochs that wait for the store")]
    Spool {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{name:?} can't be an app's name in a store: use letters, digits, '.', '_' and '-', not '.' first"
    )]
    BadName { name: String },
}
