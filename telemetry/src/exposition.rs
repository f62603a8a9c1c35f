//! How a page of metrics is written, and which way somebody who asks wants it.
//!
//! Prometheus asks for OpenMetrics. Whoever asks for nothing in particular (`curl`, most agents)
//! gets the older text format, which every reader of metrics knows and `promtool check metrics`
//! checks. They differ in what a counter is called where it is described (`x` or `x_total`), and in
//! the end mark.
//!
//! Source: Prometheus, "Exposition formats"; OpenMetrics 1.0.0.

use crate::metrics::{Counter, MetricsPage, PREFIX};

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// The text format of Prometheus.
    Text,
    /// OpenMetrics.
    OpenMetrics,
}

/// What an `Accept` header calls OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";
/// What OpenMetrics ends with.
const END: &str = "# EOF\n";

impl Exposition {
    /// What somebody wants who sends this `Accept` header, empty if he sends none.
    pub fn wanted(accept: &str) -> Self {
        let mut kinds = accept.split(',').filter_map(|kind| kind.split(';').next());
        match kinds.any(|kind| kind.trim().eq_ignore_ascii_case(OPEN_METRICS)) {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }

    /// The HTTP content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes a page.
    pub fn write(self, page: MetricsPage) -> String {
        let text = page.render();
        match self {
            Self::Text => plain(&text),
            Self::OpenMetrics => text,
        }
    }
}

/// The same in the older format: counters are described by their full names, and there is no end.
fn plain(text: &str) -> String {
    let body = text.strip_suffix(END).unwrap_or(text);
    let mut plain = String::with_capacity(text.len());
    for line in body.split_inclusive('\n') {
        match described_counter(line) {
            Some(before) => {
                plain.push_str(&line[..before]);
                plain.push_str("_total");
                plain.push_str(&line[before..]);
            }
            None => plain.push_str(line),
        }
    }
    plain
}

/// Where the name of the counter that this line describes ends.
fn described_counter(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "))?;
    let (name, _) = rest.split_once(' ')?;
    let short = name.strip_prefix(PREFIX)?.strip_prefix('_')?;
    let is_counter = Counter::ALL.iter().any(|counter| counter.name() == short);
    is_counter.then(|| line.len() - rest.len() + name.len())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::metrics::Gauge;

    #[test]
    fn who_does_not_ask_for_openmetrics_gets_the_older_text() {
        let prometheus = "application/openmetrics-text;version=1.0.0,\
                          application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Exposition::wanted(prometheus), Exposition::OpenMetrics);
        for accept in ["", "*/*", "text/plain;version=0.0.4", "application/json"] {
            assert_eq!(Exposition::wanted(accept), Exposition::Text, "{accept}");
        }
    }

    #[test]
    fn both_texts_have_the_same_values() {
        let page = || {
            let mut page = MetricsPage::new();
            page.counter(Counter::NvmeWrittenBytes, &[("volume", "0")], 7);
            page.gauge(Gauge::BufferPressureRatio, &[], 0.5);
            page
        };
        let open = Exposition::OpenMetrics.write(page());
        let text = Exposition::Text.write(page());
        let values = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(values(&open), values(&text));
        assert!(open.contains("# TYPE wirevault_nvme_written_bytes counter\n"), "{open}");
        assert!(text.contains("# TYPE wirevault_nvme_written_bytes_total counter\n"), "{text}");
        assert!(text.contains("# HELP wirevault_nvme_written_bytes_total Bytes"), "{text}");
        assert!(text.contains("# TYPE wirevault_buffer_pressure_ratio gauge\n"), "{text}");
        assert!(open.ends_with(END) && !text.contains("EOF"), "{text}");
    }
}
