//! Power cuts under the whole pipeline: what was acknowledged is there after recovery, each packet
//! once, byte for byte.
//!
//! `cuts`: on a simulated disk that forgets every write which no completed flush covers, at any
//! operation. `replay`: of a log of everything that the recorder did to a device, every prefix, and
//! between two flushes any part of it in any order. `log`: that log. `support`: what both need.

mod cuts;
mod log;
mod replay;
mod support;
