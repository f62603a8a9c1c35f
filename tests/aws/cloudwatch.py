"""CloudWatch for awsfake.py: the SDK's protocol in front of moto's, and what AWS refuses.

The Rust SDK speaks Smithy RPC v2 CBOR, which moto 5.2.5 does not know. A request is decoded, asked
of moto as JSON, and the answer encoded again by the shapes that botocore knows. moto takes metrics
that AWS would refuse; these are refused here, as the API reference says.
"""

import base64
import datetime
import gzip
import io
import json
import math
import re
import time

import botocore.session
import cbor2

SERVICE = "GraniteServiceVersion20100801"
MODEL = botocore.session.get_session().get_service_model("cloudwatch")
HEADERS = [("smithy-protocol", "rpc-v2-cbor")]
CONTENT_TYPE = "application/cbor"

BODY_BYTES_MAX = 1 << 20
DATUMS_MAX = 1000
VALUES_MAX = 150
DIMENSIONS_MAX = 30
DATAPOINTS_MAX = 1440
NUMBER_MAX = 2.0**360
PAST_S, AHEAD_S = 14 * 86400, 2 * 3600
UNITS = set(MODEL.shape_for("StandardUnit").enum)


def operation(path):
    """The operation that a path of this protocol names; nothing if it is another protocol's."""
    found = re.fullmatch(rf"/service/{SERVICE}/operation/(\w+)", path)
    return found.group(1) if found else None


def request(body, environ):
    """What was asked, as JSON knows it."""
    if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
        body = gzip.decompress(body)
    return plain(cbor2.loads(body)) if body else {}


def plain(value):
    """A value of CBOR as JSON has it: times as Unix seconds."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


def shaped(value, shape):
    """A value of JSON as CBOR has it."""
    if shape is None or value is None:
        return value
    if shape.type_name == "structure":
        return {key: shaped(item, shape.members.get(key)) for key, item in value.items()}
    if shape.type_name == "list":
        return [shaped(item, shape.member) for item in value]
    if shape.type_name == "timestamp":
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
        return cbor2.CBORTag(1, float(value))
    return float(value) if shape.type_name in ("double", "float") else value


def ask(moto, name, asked, environ):
    """Asks moto; gives status and body in CBOR."""
    body = json.dumps(asked).encode()
    environ = dict(
        environ,
        PATH_INFO="/",
        CONTENT_TYPE="application/x-amz-json-1.0",
        CONTENT_LENGTH=str(len(body)),
        HTTP_X_AMZ_TARGET=f"{SERVICE}.{name}",
    )
    environ["wsgi.input"] = io.BytesIO(body)
    for key in ("HTTP_CONTENT_ENCODING", "HTTP_SMITHY_PROTOCOL"):
        environ.pop(key, None)
    status = []
    answer = b"".join(moto(environ, lambda line, *_: status.append(int(line.split()[0]))))
    answer = json.loads(answer) if answer else {}
    if status[0] < 300:
        answer = shaped(answer, MODEL.operation_model(name).output_shape)
    return status[0], cbor2.dumps(answer)


def refusal(name, asked, size):
    """Why AWS would not take a request: code and message."""
    if size > BODY_BYTES_MAX:
        return "RequestEntityTooLarge", f"{size} bytes"
    if name == "PutMetricData":
        return of_data(asked)
    if name == "GetMetricStatistics":
        points = (asked["EndTime"] - asked["StartTime"]) / asked["Period"]
        if points > DATAPOINTS_MAX:
            return "InvalidParameterCombination", f"{points} datapoints are requested"
    return None


def of_data(asked):
    namespace, data = asked.get("Namespace", ""), asked.get("MetricData") or []
    if not namespace or namespace.startswith("AWS/"):
        return "InvalidParameterValue", f"The value {namespace} for parameter Namespace is invalid."
    if not data:
        return "MissingParameter", "The parameter MetricData is required."
    if len(data) > DATUMS_MAX:
        return "InvalidParameterValue", f"MetricData has {len(data)} members"
    return next(filter(None, map(of_datum, data)), None)


def of_datum(datum):
    def wrong(what):
        return "InvalidParameterValue", f"{datum.get('MetricName')}: {what}"

    forms = [form for form in ("Value", "Values", "StatisticValues") if datum.get(form) is not None]
    if len(forms) != 1:
        return "InvalidParameterCombination", f"{datum.get('MetricName')}: {forms} together"
    if not datum.get("MetricName"):
        return "MissingParameter", "MetricName"
    values, dimensions = datum.get("Values") or [], datum.get("Dimensions") or []
    if len(values) > VALUES_MAX or len(dimensions) > DIMENSIONS_MAX:
        return wrong("too many values or dimensions")
    if len(datum.get("Counts") or values) != len(values):
        return wrong("as many counts as values")
    if any(not part.get("Name") or not part.get("Value") for part in dimensions):
        return wrong("a dimension without a name or a value")
    statistics = datum.get("StatisticValues") or {}
    numbers = [*values, *(datum.get("Counts") or []), *statistics.values(), datum.get("Value", 0)]
    if any(not math.isfinite(number) or abs(number) > NUMBER_MAX for number in numbers):
        return wrong("a number that is none")
    if statistics and statistics["SampleCount"] <= 0:
        return wrong("SampleCount")
    if statistics and statistics["Minimum"] > statistics["Maximum"]:
        return wrong("Minimum is above Maximum")
    if datum.get("Unit", "None") not in UNITS or datum.get("StorageResolution", 60) not in (1, 60):
        return wrong("Unit or StorageResolution")
    if not -PAST_S <= datum.get("Timestamp", time.time()) - time.time() <= AHEAD_S:
        return wrong("Timestamp")
    return None
