//! Every verb, flag and output of the program, end to end.

mod common;
mod deleting;
mod doctor;
mod holding;
mod questions;
mod socket;
mod store;
mod tiering;
mod volume;
