//! The table of alarms: which published metric is looked at, what is too much, and what to do then.
//!
//! Alarms of any service are made from it, and so is the page of the documentation; see `cloud`.

/// One alarm.
#[derive(Debug, Clone, Copy)]
pub struct Alarm {
    /// Its name.
    pub name: &'static str,
    /// The metric, of the whole appliance.
    pub metric: &'static str,
    /// What is made of a stretch of time.
    pub statistic: Statistic,
    /// What must not be.
    pub when: When,
    /// Seconds of a stretch.
    pub stretch_s: u32,
    /// Stretches in a row.
    pub stretches: u32,
    /// Whether a stretch without a value is as bad as one with a bad value.
    pub silence_is_bad: bool,
    /// The part of the recorder that the metric is about, where a configuration need not have it.
    pub about: Option<Part>,
    /// What it means, in one sentence.
    pub meaning: &'static str,
    /// What to do, in one sentence.
    pub what_to_do: &'static str,
}

/// A part that not every recorder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Checkpoints of the state.
    Checkpoints,
    /// Backups of them.
    Backups,
    /// The object tier.
    Tier,
    /// Places where heads of the audit log are kept.
    Anchors,
}

/// What is made of the values of a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Their sum.
    Sum,
    /// The least.
    Minimum,
    /// The greatest.
    Maximum,
    /// Their mean.
    Average,
}

/// When an alarm is raised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// The statistic is greater.
    Above(f64),
    /// The statistic is less.
    Below(f64),
}

/// All alarms, the worst first.
pub const ALARMS: &[Alarm] = &[
    Alarm {
        name: "packets-lost",
        metric: "PacketsLost",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: true,
        about: None,
        meaning: "Packets came in and were lost, or the recorder does not say.",
        what_to_do: "`wirevault status` names the cause: `ring_overflow` wants CPUs or a larger \
                     ring, `no_buffer` more volumes, a silent recorder a look at its log.",
    },
    Alarm {
        name: "nic-drops",
        metric: "NicDrops",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A network card had no room for packets: they are lost, and in no lane's books.",
        what_to_do: "`wirevault status` names the card; `wirevault doctor` says whether larger \
                     rings, more queues or interrupts on other CPUs help.",
    },
    Alarm {
        name: "allowance-exceeded",
        metric: "AllowanceExceeded",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "EC2 held packets back or dropped them: a limit of the instance was exceeded.",
        what_to_do: "`wirevault status` names the limit: `bw_` and `pps` want a larger instance or \
                     fewer sources, `conntrack` a security group that is open both ways.",
    },
    Alarm {
        name: "recorder-silent",
        metric: "PeriodsPublished",
        statistic: Statistic::Sum,
        when: When::Below(1.0),
        stretch_s: 60,
        stretches: 5,
        silence_is_bad: true,
        about: None,
        meaning: "Nothing was published for five minutes.",
        what_to_do: "Look whether the machine runs, then at `systemctl status wirevaultd`, then at \
                     `publish` in `wirevault status`, which says what is in the way.",
    },
    Alarm {
        name: "writer-silent",
        metric: "WriterBeatAge",
        statistic: Statistic::Minimum,
        when: When::Above(30.0),
        stretch_s: 60,
        stretches: 2,
        silence_is_bad: false,
        about: None,
        meaning: "Nobody has written the volume of two machines for minutes.",
        what_to_do: "Look at both machines' logs: the one that stands by says what keeps it from \
                     taking over.",
    },
    Alarm {
        name: "source-down",
        metric: "SourcesUp",
        statistic: Statistic::Minimum,
        when: When::Below(1.0),
        stretch_s: 60,
        stretches: 2,
        silence_is_bad: false,
        about: None,
        meaning: "A source delivers no packets: its interface is down or its sender is gone.",
        what_to_do: "Find the lane in `wirevault status`, and bring up its interface or sender.",
    },
    Alarm {
        name: "volume-degraded",
        metric: "VolumesDegraded",
        statistic: Statistic::Maximum,
        when: When::Above(0.0),
        stretch_s: 60,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A volume is out of use or suspect; the others take its part.",
        what_to_do: "`wirevault status` says why; replace the device with `wirevault volume \
                     replace`.",
    },
    Alarm {
        name: "writes-failed",
        metric: "WritesFailed",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 60,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A device did not take chunks; they were written elsewhere.",
        what_to_do: "Look at `error` of volumes in `wirevault status`, and at the kernel's log.",
    },
    Alarm {
        name: "buffer-pressure",
        metric: "BufferPressure",
        statistic: Statistic::Maximum,
        when: When::Above(80.0),
        stretch_s: 60,
        stretches: 3,
        silence_is_bad: false,
        about: None,
        meaning: "Most of the packet buffer is in use: the devices are slower than the wire.",
        what_to_do: "Add volumes, leave packets out with policies, or enlarge the buffer if these \
                     are short peaks.",
    },
    Alarm {
        name: "ladder-entered",
        metric: "RungsEntered",
        statistic: Statistic::Minimum,
        when: When::Above(0.0),
        stretch_s: 60,
        stretches: 5,
        silence_is_bad: false,
        about: None,
        meaning: "A rung of the pressure ladder has held for five minutes: packets are left out.",
        what_to_do: "As for `buffer-pressure`; `policies` of the lanes in `wirevault status` say \
                     what is left out.",
    },
    Alarm {
        name: "unacknowledged-long",
        metric: "UnacknowledgedAge",
        statistic: Statistic::Maximum,
        when: When::Above(10.0),
        stretch_s: 60,
        stretches: 2,
        silence_is_bad: false,
        about: None,
        meaning: "A crash now would take packets of more than ten seconds.",
        what_to_do: "Find the volume whose flushes take long in `wirevault status`, and what else \
                     writes to its device.",
    },
    Alarm {
        name: "writes-slow",
        metric: "WriteLatencyP99",
        statistic: Statistic::Average,
        when: When::Above(200.0),
        stretch_s: 60,
        stretches: 5,
        silence_is_bad: false,
        about: None,
        meaning: "Writes have been slow for five minutes.",
        what_to_do: "See whether `DeviceThrottled` grows, which asks for a larger instance, and \
                     what else uses the devices.",
    },
    Alarm {
        name: "device-throttled",
        metric: "DeviceThrottled",
        statistic: Statistic::Sum,
        when: When::Above(1.0),
        stretch_s: 60,
        stretches: 5,
        silence_is_bad: false,
        about: None,
        meaning: "EC2 has slowed the devices for five minutes: more was asked than they may give.",
        what_to_do: "Choose an instance type with faster storage, or leave packets out.",
    },
    Alarm {
        name: "device-warns",
        metric: "DeviceWarnings",
        statistic: Statistic::Maximum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A device warns of its health.",
        what_to_do: "`warnings` of volumes in `wirevault status --json` say of what: heat wants \
                     cooling or less load, all else a new device with `wirevault volume replace`.",
    },
    Alarm {
        name: "media-errors",
        metric: "DeviceMediaErrors",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A device could not recover data that was written to it.",
        what_to_do: "`wirevault verify` says what is damaged; replace the device with `wirevault \
                     volume replace` if it goes on.",
    },
    Alarm {
        name: "device-worn",
        metric: "DeviceLifeUsed",
        statistic: Statistic::Maximum,
        when: When::Above(90.0),
        stretch_s: 3600,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "A device says that nine tenths of its life are used.",
        what_to_do: "Plan its replacement with `wirevault volume replace`.",
    },
    Alarm {
        name: "checkpoint-failed",
        metric: "CheckpointFailed",
        statistic: Statistic::Minimum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 3,
        silence_is_bad: false,
        about: Some(Part::Checkpoints),
        meaning: "No checkpoint of the state could be taken for a quarter of an hour.",
        what_to_do: "`snapshots` in `wirevault status --json` say why; usually the folder is full \
                     or not mounted.",
    },
    Alarm {
        name: "backup-overdue",
        metric: "BackupOverdue",
        statistic: Statistic::Minimum,
        when: When::Above(0.0),
        stretch_s: 3600,
        stretches: 1,
        silence_is_bad: false,
        about: Some(Part::Backups),
        meaning: "The newest backup of the state is older than `backup.every`.",
        what_to_do: "`backup` in `wirevault status --json` says what AWS Backup answers.",
    },
    Alarm {
        name: "tier-failed",
        metric: "TierFailed",
        statistic: Statistic::Minimum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 3,
        silence_is_bad: false,
        about: Some(Part::Tier),
        meaning: "Segments have not moved to the tier, or gone from it, for a quarter of an hour.",
        what_to_do: "`tier` in `wirevault status --json` says why; until then they lie where they \
                     lay, and the quota may take them.",
    },
    Alarm {
        name: "audit-anchor-old",
        metric: "AuditAnchorAge",
        statistic: Statistic::Maximum,
        when: When::Above(7200.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: Some(Part::Anchors),
        meaning: "Heads of the audit log have not been kept outside for two hours.",
        what_to_do: "`anchors` in `wirevault status --json` say which place it is and why.",
    },
    Alarm {
        name: "epoch-keys-low",
        metric: "EpochKeysAhead",
        statistic: Statistic::Maximum,
        when: When::Below(2.0),
        stretch_s: 300,
        stretches: 3,
        silence_is_bad: false,
        about: None,
        meaning: "The service of the store's key has given no new epoch keys for a while.",
        what_to_do: "`wirevault key show` says what KMS answers; do not restart the recorder \
                     before it answers again.",
    },
    Alarm {
        name: "holds-wait",
        metric: "HoldSegmentsWaiting",
        statistic: Statistic::Minimum,
        when: When::Above(0.0),
        stretch_s: 3600,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "What a hold wants has not been copied for an hour.",
        what_to_do: "`wirevault hold list` says why; usually `hold_share` is used up.",
    },
    Alarm {
        name: "metrics-dropped",
        metric: "PeriodsDropped",
        statistic: Statistic::Sum,
        when: When::Above(0.0),
        stretch_s: 300,
        stretches: 1,
        silence_is_bad: false,
        about: None,
        meaning: "Some metrics will never be seen: they were refused, or too old.",
        what_to_do: "The recorder's log says why; the books in the store are not affected.",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::publish::MARKER;
    use crate::publish::table::metric;

    #[test]
    fn every_alarm_looks_at_a_metric_of_the_appliance_that_is_published() {
        for alarm in ALARMS {
            let looked_at = metric(alarm.metric);
            assert!(looked_at.is_some_and(|it| !it.per_device), "{}", alarm.name);
            assert!(alarm.meaning.ends_with('.') && alarm.what_to_do.ends_with('.'));
            assert!(alarm.stretch_s % 60 == 0 && alarm.stretches > 0, "{}", alarm.name);
            assert!(alarm.stretch_s * alarm.stretches <= 86_400, "CloudWatch allows a day");
        }
        let names: BTreeSet<_> = ALARMS.iter().map(|alarm| alarm.name).collect();
        assert_eq!(names.len(), ALARMS.len());
    }

    #[test]
    fn silence_about_losses_is_a_loss_and_a_machine_that_stands_by_is_not_silent() {
        let lost = ALARMS.iter().find(|alarm| alarm.metric == "PacketsLost").unwrap();
        assert!(lost.silence_is_bad);
        for alarm in ALARMS.iter().filter(|alarm| alarm.silence_is_bad) {
            let told = metric(alarm.metric).is_some_and(|it| it.always || it.name == MARKER);
            assert!(told, "{}: not told by whoever publishes", alarm.name);
        }
    }
}
