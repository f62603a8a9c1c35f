//! What tests in the virtual machine cannot do with the recorder's own programs: send stamped
//! packets, and look at an answer.
//!
//! ```text
//!  lab-guest send INTERFACE RUN PACKETS RATE BYTES   packets at a rate a second; 0 is no limit
//!  lab-guest numbers FILE RUN                        ranges of sequence numbers in a pcapng file
//! ```

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use wirevault_testkit::net::{Sender, Stamp, now_ns};
use wirevault_tests::recorder::{counted, read_pcapng};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["send", interface, run, packets, rate, bytes] => {
            send(interface, number(run) as u16, number(packets), number(rate), number(bytes) as u16)
        }
        ["numbers", file, run] => numbers(Path::new(file), number(run) as u16),
        _ => {
            eprintln!("lab-guest send INTERFACE RUN PACKETS RATE BYTES | numbers FILE RUN");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Sends packets numbered from 0; prints how many.
fn send(interface: &str, run: u16, packets: u64, rate: u64, bytes: u16) {
    let mut sender = Sender::on(interface);
    let began = Instant::now();
    for number in 0..packets {
        if let Some(due) = (number * 1_000_000_000).checked_div(rate) {
            let early = Duration::from_nanos(due).saturating_sub(began.elapsed());
            if early > Duration::from_millis(1) {
                std::thread::sleep(early);
            }
        }
        let flow = 1000 + (number % 64) as u16;
        let stamp = Stamp { run, number, sent_ns: now_ns(), flow, bytes, vlan: 0 };
        sender.send(&stamp.frame());
    }
    println!("sent {packets}");
}

/// Prints `FIRST LAST` of every range, then `doubled N`. A packet that was altered panics.
fn numbers(file: &Path, run: u16) {
    let counted = counted(&read_pcapng(file));
    let of_run = || counted.iter().filter(|(stamp, _)| stamp.run == run);
    let mut found: Vec<u64> = of_run().map(|(stamp, _)| stamp.number).collect();
    found.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in found {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    for (first, last) in ranges {
        println!("{first} {last}");
    }
    println!("doubled {}", of_run().filter(|(_, count)| **count > 1).count());
}
