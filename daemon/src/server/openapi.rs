//! The API for programs: an OpenAPI 3.1 document, made from the table of [`api::ENDPOINTS`] and
//! from the types that requests and answers are, with their documentation.

use axum::extract::Json;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use wirevault_query::{FlowRow, Summary};
use wirevault_telemetry::exposition::Exposition;

use crate::api::{
    self, ApplyBody, DeleteBody, Deletions, DrainBody, Drained, Endpoint, ErrorBody, HoldBody,
    HoldsReport, JSON_LINES_TYPE, JSON_TYPE, KeyStatus, PCAPNG_TYPE, QueryBody, ReleaseBody,
    ReplaceBody, Replaced, RotateBody, SegmentRow, SnapshotStatus, StatusReport,
};

/// Answers with the document.
pub(crate) async fn show() -> Json<Value> {
    Json(document())
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut types = settings.into_generator();
    let mut paths = Map::new();
    for endpoint in api::ENDPOINTS {
        let method = endpoint.method.to_lowercase();
        let operation = operation(endpoint, &mut types);
        let entry = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        entry[method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Wirevault",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A network flight recorder: what it records, and packets of it. Times \
                are Unix nanoseconds in requests. Who asks is known by his user on the unix \
                socket, by his certificate over TLS. An answer without its last chunk is cut.",
        },
        "paths": paths,
        "components": {
            "schemas": types.take_definitions(true),
            "securitySchemes": {"certificate": {"type": "mutualTLS"}},
        },
        "security": [{"certificate": []}],
    })
}

fn operation(endpoint: &Endpoint, types: &mut SchemaGenerator) -> Value {
    let (kind, schema) = match endpoint.path {
        api::STATUS => (JSON_TYPE, json!(types.subschema_for::<StatusReport>())),
        api::SEGMENTS => (JSON_TYPE, json!(types.subschema_for::<Vec<SegmentRow>>())),
        api::FLOWS => (JSON_LINES_TYPE, flow_line(types)),
        api::PLAN | api::APPLY | api::DELETE => {
            (JSON_TYPE, json!(types.subschema_for::<Deletions>()))
        }
        api::DRAIN => (JSON_TYPE, json!(types.subschema_for::<Drained>())),
        api::REPLACE => (JSON_TYPE, json!(types.subschema_for::<Replaced>())),
        api::HOLDS | api::HOLD_ADD | api::HOLD_RELEASE => {
            (JSON_TYPE, json!(types.subschema_for::<HoldsReport>()))
        }
        api::KEY | api::ROTATE => (JSON_TYPE, json!(types.subschema_for::<KeyStatus>())),
        api::SNAPSHOT => (JSON_TYPE, json!(types.subschema_for::<SnapshotStatus>())),
        api::METRICS => (Exposition::Text.content_type(), json!({"type": "string"})),
        api::OPENAPI => (JSON_TYPE, json!({"type": "object"})),
        _ => (PCAPNG_TYPE, json!({"type": "string", "format": "binary"})),
    };
    let error = json!(types.subschema_for::<ErrorBody>());
    let refused =
        |why: &str| json!({"description": why, "content": {JSON_TYPE: {"schema": error}}});
    let mut operation = json!({
        "summary": endpoint.about,
        "description": format!("Needs the role `{}`.", endpoint.role),
        "x-role": endpoint.role.name(),
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {"schema": schema}}},
            "403": refused("The role of whoever asks does not reach."),
            "429": refused("Too much at a time; ask again later."),
            "default": refused("The question is wrong (4xx), or cannot be answered now (5xx)."),
        },
    });
    // A checkpoint is ordered without a word.
    if endpoint.method == "POST" && endpoint.path != api::SNAPSHOT {
        let schema = match endpoint.path {
            api::APPLY => types.subschema_for::<ApplyBody>(),
            api::DRAIN => types.subschema_for::<DrainBody>(),
            api::ROTATE => types.subschema_for::<RotateBody>(),
            api::DELETE => types.subschema_for::<DeleteBody>(),
            api::REPLACE => types.subschema_for::<ReplaceBody>(),
            api::HOLD_ADD => types.subschema_for::<HoldBody>(),
            api::HOLD_RELEASE => types.subschema_for::<ReleaseBody>(),
            _ => types.subschema_for::<QueryBody>(),
        };
        operation["requestBody"] =
            json!({"required": true, "content": {JSON_TYPE: {"schema": schema}}});
    }
    if endpoint.path == api::TAIL {
        operation["parameters"] = json!([{
            "name": "filter", "in": "query", "schema": {"type": "string"},
            "description": "tcpdump's filter language; empty takes every packet.",
        }]);
    }
    operation
}

/// A line of a list of flows: all but the last are flows.
fn flow_line(types: &mut SchemaGenerator) -> Value {
    let (flow, summary) = (types.subschema_for::<FlowRow>(), types.subschema_for::<Summary>());
    let last = json!({
        "type": "object", "required": ["summary"], "properties": {"summary": summary},
    });
    json!({"anyOf": [flow, last]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_are_described_as_questions() {
        let document = document();
        for Endpoint { method, path, .. } in api::ENDPOINTS {
            let operation = &document["paths"][path][method.to_lowercase()];
            let body = &operation["requestBody"]["content"][JSON_TYPE]["schema"]["$ref"];
            let asks = body == "#/components/schemas/QueryBody";
            assert_eq!(asks, [api::QUERY, api::FLOWS].contains(path), "{method} {path}");
            let packets = !operation["responses"]["200"]["content"][PCAPNG_TYPE].is_null();
            assert_eq!(packets, [api::QUERY, api::TAIL].contains(path), "{method} {path}");
        }
    }
}
