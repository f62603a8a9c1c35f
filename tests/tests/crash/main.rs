//! A recorder under load is killed, at random moments and in each phase of its work. Whatever it
//! had acknowledged is there exactly once after the next start.

mod disk;
mod load;
mod phases;
mod random;
