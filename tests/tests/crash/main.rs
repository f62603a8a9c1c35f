//! A recorder under load is killed, at random moments and in each phase of its work, or stopped and
//! taken over by another one. Whatever it had acknowledged is there exactly once afterwards.

mod disk;
mod load;
mod phases;
mod random;
mod shared;
