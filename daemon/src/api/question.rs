//! What is asked of packets and flows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wirevault_packet::TunnelId;
use wirevault_query::Request;

/// A question: [`Request`] as JSON. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QueryBody {
    /// tcpdump's filter language; empty takes every packet.
    pub filter: String,
    /// Start of the window in packet time, ns.
    pub since_ns: Option<u64>,
    /// First nanosecond after the window.
    pub until_ns: Option<u64>,
    /// Packets at most.
    pub limit: Option<u64>,
    /// Strictly by time.
    pub sort: bool,
    /// Leave out link types that the filter does not fit.
    pub skip_link_types: bool,
    /// Count only: the answer holds no packets, only the summary.
    pub count_only: bool,
    /// Only packets that came in this tunnel: `vni=5`, `vlan=7`, `mpls=100`, `gre_key=9`,
    /// `session=3` or `teid=4`.
    #[serde(with = "tunnel_text")]
    #[schemars(with = "Option<String>")]
    pub tunnel: Option<TunnelId>,
    /// Leave out packets that are marked as second copies of others.
    pub without_duplicates: bool,
}

/// A tunnel as text.
mod tunnel_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use wirevault_packet::TunnelId;

    #[expect(clippy::ref_option, reason = "serde asks for this signature")]
    pub(super) fn serialize<S: Serializer>(
        tunnel: &Option<TunnelId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        tunnel.map(|id| id.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<TunnelId>, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

impl From<QueryBody> for Request {
    fn from(body: QueryBody) -> Self {
        let QueryBody { filter, since_ns, until_ns, limit, sort, skip_link_types, .. } = body;
        let QueryBody { count_only, tunnel, without_duplicates, .. } = body;
        Self {
            filter,
            since_ns,
            until_ns,
            limit,
            sort,
            skip_link_types,
            count_only,
            tunnel,
            without_duplicates,
            within: String::new(),
        }
    }
}

impl From<Request> for QueryBody {
    fn from(request: Request) -> Self {
        let Request { filter, since_ns, until_ns, limit, sort, skip_link_types, .. } = request;
        let Request { count_only, tunnel, without_duplicates, .. } = request;
        Self {
            filter,
            since_ns,
            until_ns,
            limit,
            sort,
            skip_link_types,
            count_only,
            tunnel,
            without_duplicates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_needs_no_field_and_takes_no_other() {
        let body: QueryBody = serde_json::from_str("{}").unwrap();
        assert_eq!(Request::from(body), Request::default());
        let body: QueryBody = serde_json::from_str(r#"{"filter":"tcp","limit":3}"#).unwrap();
        assert_eq!((body.filter.as_str(), body.limit), ("tcp", Some(3)));
        let error = serde_json::from_str::<QueryBody>(r#"{"filtre":"tcp"}"#).unwrap_err();
        assert!(error.to_string().contains("filtre"), "{error}");
    }
}
