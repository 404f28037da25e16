//! The skeleton's memory equals the app's, byte for byte, after every epoch.

mod app;
mod chance;
mod churn;
mod compare;
mod traps;
mod world;
