//! `wirevault tail`: packets as they arrive.

use std::io::{Read, Write};

use wirevault_daemon::api;

use crate::answer::{Answer, Shape};
use crate::args::TailArgs;
use crate::client::{Body, Client, Endpoint, Watch};
use crate::error::CliError;
use crate::interrupt::{self, Cancel};
use crate::outcome::Outcome;
use crate::output::{Target, tell};
use crate::verbs::query::{Fed, Watched, feed};
use crate::verbs::tail_listen;

/// Bytes taken from the socket at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Shows packets until the user or the daemon ends it.
pub(crate) fn tail(args: &TailArgs) -> Result<Outcome, CliError> {
    let path = format!("{}?filter={}", api::TAIL, encoded(&args.filter.join(" ")));
    if let Some(address) = args.listen {
        return tail_listen::serve(args, address, &path);
    }
    let cancel = interrupt::watch()?;
    let target = args.write.as_deref().map(Target::packets).transpose()?;
    let body = Client::connect(&Endpoint::new(&args.daemon, args.key.as_deref()), &cancel)?
        .get_stream(&path)?;
    match target {
        Some(mut target) => {
            pass_on(body, &mut target, &cancel, &|comment| tell(comment))?;
            Ok(Outcome::Found)
        }
        None => show(body, &cancel),
    }
}

fn show(body: Body, cancel: &Cancel) -> Result<Outcome, CliError> {
    let mut source = Watched::telling(body);
    let mut answer = Answer::new(Shape::Lines, true, cancel)?;
    match feed(&mut source, &mut answer)? {
        Fed::Whole | Fed::Stopped => Ok(Outcome::Found),
        Fed::Cut(_) if interrupt::is_set(cancel) => Ok(Outcome::Found),
        Fed::Cut(error) => Err(CliError::Answer { what: error.to_string() }),
    }
}

/// Takes whole blocks of a tail.
pub(crate) trait Blocks {
    /// Takes one or more.
    fn blocks(&mut self, bytes: &[u8]) -> Result<(), CliError>;
}

impl Blocks for Target {
    fn blocks(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.write_all(bytes)?;
        Ok(self.flush()?)
    }
}

/// Hands a tail on until the user or the daemon ends it, and tells its comments. Only whole blocks
/// are handed on, so that what was written can be read whenever it ends. Returns the packets.
pub(crate) fn pass_on(
    mut body: Body,
    target: &mut dyn Blocks,
    cancel: &Cancel,
    tell: &dyn Fn(&str),
) -> Result<u64, CliError> {
    let (mut watch, mut piece, mut pending) = (Watch::default(), vec![0; PIECE_BYTES], Vec::new());
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => return Ok(watch.packets()),
            Ok(count) => count,
            Err(_) if interrupt::is_set(cancel) => return Ok(watch.packets()),
            Err(error) => return Err(CliError::Answer { what: error.to_string() }),
        };
        let fed = watch.feed(&piece[..count]);
        let whole = fed.map_err(|error| CliError::Answer { what: error.to_string() })?;
        watch.take_comments().iter().for_each(|comment| tell(comment));
        if whole > 0 {
            pending.extend_from_slice(&piece[..whole]);
            target.blocks(&pending)?;
            pending.clear();
        }
        pending.extend_from_slice(&piece[whole..count]);
    }
}

/// A text as the value of a URL's parameter: everything but letters, digits and `-._~` as `%XX`.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_encoded_for_a_url() {
        assert_eq!(encoded("tcp[13] & 2 != 0"), "tcp%5B13%5D%20%26%202%20%21%3D%200");
        assert_eq!(encoded("ip-6.~_é"), "ip-6.~_%C3%A9");
    }
}
