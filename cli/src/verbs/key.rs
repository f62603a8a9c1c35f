//! `wirevault key`: the key of a store that AWS KMS keeps.

use std::path::Path;

use wirevault_daemon::api::{self, KeyStatus, RotateBody};

use crate::args::{Daemon, KeyVerb};
use crate::client::{Client, Endpoint};
use crate::error::CliError;
use crate::interrupt;
use crate::outcome::Outcome;
use crate::output::{count_text, put, put_json};

/// Shows it, or lets the next epoch begin.
pub(crate) fn key(verb: &KeyVerb) -> Result<Outcome, CliError> {
    let (status, json): (KeyStatus, _) = match verb {
        KeyVerb::Show { daemon, key, json } => {
            (connect(daemon, key.as_deref())?.get(api::KEY)?, *json)
        }
        KeyVerb::Rotate { daemon, key, to, json } => {
            let order = RotateBody { to: to.clone() };
            (connect(daemon, key.as_deref())?.have_done(api::ROTATE, &order)?, *json)
        }
    };
    match json {
        true => put_json(&status)?,
        false => put(&text(&status))?,
    }
    Ok(Outcome::Found)
}

fn connect(daemon: &Daemon, key: Option<&Path>) -> Result<Client, CliError> {
    Client::connect(&Endpoint::new(daemon, key), &interrupt::watch()?)
}

fn text(status: &KeyStatus) -> String {
    let ahead = count_text(status.epochs_ahead, "epoch key");
    let mut text = format!("key        {}\n", status.key);
    text += &format!("condition  {}, {ahead} ahead\n", status.condition);
    if let Some(since) = &status.epoch_since {
        text += &format!("epoch      since {since}\n");
    }
    if status.stopped {
        text += "segments   none is begun, as the configuration says for this condition\n";
    }
    if let Some(key) = &status.one_way {
        text += &format!("sealed     one way, with {key}\n");
    }
    if status.behind_in_tier > 0 {
        let segments = count_text(status.behind_in_tier, "segment");
        text += &format!("tier       {segments} still may need the former key: keep it\n");
    }
    if let Some(trouble) = &status.trouble {
        text += &format!("trouble    {trouble}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_and_its_consequence_are_told() {
        let well = KeyStatus {
            key: "arn:1".into(),
            condition: "ready".into(),
            epochs_ahead: 3,
            ..KeyStatus::default()
        };
        assert_eq!(text(&well), "key        arn:1\ncondition  ready, 3 epoch keys ahead\n");
        let trouble = Some("key arn:1 is away".to_owned());
        let ill = text(&KeyStatus { stopped: true, trouble, behind_in_tier: 2, ..well });
        assert!(ill.contains("tier       2 segments still may need"), "{ill}");
        assert!(ill.contains("segments   none is begun") && ill.ends_with("arn:1 is away\n"));
    }
}
