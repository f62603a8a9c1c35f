"""AWS on loopback, for tests: moto's KMS, CloudWatch and S3, and what moto lets pass although AWS
refuses it.

    python awsfake.py          prints the port that it listens on, and serves until it is killed

moto knows ciphertexts of its own only; what a public key wrapped elsewhere is opened here.

moto 5.2.5 lets disabled keys and keys pending deletion work, names the wrong error for a key that
did not wrap a ciphertext, takes any credentials, and knows one account. All that is put right here
before moto sees a request. What AWS does is our reading of its API reference; requests come from
the real SDK.

POST /_fake/faults  [{"op", "code", "status", "count", "delay_s", "late"}]: the next `count` calls of
                    `op` wait `delay_s`, and end with `code` if there is one; with `late`, which only
                    CloudWatch knows, they are done first and wait then; `cut` and `flip`, which
                    only S3 knows, break the line or change a byte of what is sent
GET  /_fake/calls   names of all calls since the last time this was asked
POST /_fake/objects what there is in the buckets of S3, after changes; see `buckets`
"""

import base64
import io
import json
import re
import socket
import threading
import time

import buckets
import cbor2
import cloudwatch
import moto.cloudwatch.responses  # noqa: F401  imported here, or the first request would wait
import moto.kms.models  # noqa: F401
import moto.s3.responses  # noqa: F401
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from moto.core.exceptions import JsonRESTError
from moto.kms.responses import KmsResponse
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ACCOUNT = "123456789012"
ACCESS_KEY = "AKIDRECORDER"
USES_KEY = (
    "generate_data_key",
    "generate_data_key_without_plaintext",
    "encrypt",
    "decrypt",
    "generate_mac",
    "verify_mac",
)
MESSAGE_BYTES_MAX = 4096
KEY_ID_BYTES = 36
OAEP = "RSAES_OAEP_SHA_256"


class Refused(JsonRESTError):
    """An answer of 400 with one of AWS's codes."""

    code = 400


def decoded(blob):
    """Bytes of a parameter, which moto gives as they came or decoded."""
    blob = blob or b""
    return blob if isinstance(blob, bytes) else base64.b64decode(blob)


def wrapped_by(blob):
    """Id of the key that wrapped a ciphertext of moto; nothing if it is none."""
    try:
        key = blob[:KEY_ID_BYTES].decode()
    except UnicodeDecodeError:
        return None
    return key if re.fullmatch(r"[0-9a-f-]{36}|mrk-[0-9a-f]{32}", key) else None


def plain_id(backend, name):
    """Id of the key that a name means."""
    account = re.match(r"arn:aws[a-z-]*:kms:[^:]*:(\d*):", name)
    if account and account.group(1) != ACCOUNT:
        raise Refused(
            "AccessDeniedException",
            f"User: arn:aws:iam::{ACCOUNT}:user/recorder is not authorized to perform this on "
            f"resource: {name}",
        )
    if name.startswith("alias/") or ":alias/" in name:
        return backend.get_key_id_from_alias(name) or name
    return backend.get_key_id(name)


def check_state(backend, key):
    """Refuses a key that AWS would not use."""
    found = backend.keys.get(key)
    if found is None:
        return
    if found.key_state == "Disabled":
        raise Refused("DisabledException", f"{found.arn} is disabled.")
    if found.key_state != "Enabled":
        raise Refused("KMSInvalidStateException", f"{found.arn} is pending deletion.")


def open_oaep(key, blob):
    """Decrypts what the public half of a key wrapped."""
    sha256 = hashes.SHA256()
    scheme = padding.OAEP(padding.MGF1(sha256), sha256, None)
    if key.key_usage != "ENCRYPT_DECRYPT" or not key.key_spec.startswith("RSA_"):
        raise Refused("InvalidKeyUsageException", f"{key.arn} does not take {OAEP}.")
    try:
        plaintext = key.private_key.private_key.decrypt(blob, scheme)
    except ValueError:
        raise Refused("InvalidCiphertextException", "") from None
    answer = {"KeyId": key.arn, "Plaintext": base64.b64encode(plaintext).decode()}
    return json.dumps({**answer, "EncryptionAlgorithm": OAEP})


def guard(name):
    """Puts our checks before a handler of moto."""
    handler = getattr(KmsResponse, name)

    def checked(self, *args, **kwargs):
        backend, named = self.kms_backend, self._get_param("KeyId")
        key = plain_id(backend, named) if named else None
        if name == "decrypt":
            blob = decoded(self._get_param("CiphertextBlob"))
            by = wrapped_by(blob)
            if by and key and by != key:
                raise Refused("IncorrectKeyException", "The key ID in the request does not match.")
            key = by or key
        check_state(backend, key)
        if len(decoded(self._get_param("Message"))) > MESSAGE_BYTES_MAX:
            raise Refused("ValidationException", "Member must have length less than 4097")
        if name == "decrypt" and self._get_param("EncryptionAlgorithm") == OAEP:
            return open_oaep(backend.keys[plain_id(backend, named)], blob)
        if str(self._get_param("DryRun")).lower() == "true":
            raise Refused("DryRunOperationException", "The request would have succeeded.")
        return handler(self, *args, **kwargs)

    setattr(KmsResponse, name, checked)


class Aws:
    """moto behind faults and a list of calls."""

    def __init__(self):
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.faults = []
        self.calls = []

    def __call__(self, environ, start_response):
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        cbor = cloudwatch.operation(path)
        in_bucket = buckets.is_asked(environ)
        operation = cbor or environ.get("HTTP_X_AMZ_TARGET", "").split(".")[-1]
        operation = buckets.operation(environ) if in_bucket else operation

        def send(status, data, kind, headers=()):
            length = ("Content-Length", str(len(data)))
            start_response(f"{status} -", [("Content-Type", kind), length, *headers])
            return [data]

        def answer(status, data, headers=()):
            return send(status, json.dumps(data).encode(), "application/x-amz-json-1.1", headers)

        def refuse(status, code, message):
            error = {"__type": code, "message": message}
            if in_bucket:
                return send(status, buckets.error(code, message), "application/xml")
            if cbor:
                kind, headers = cloudwatch.CONTENT_TYPE, cloudwatch.HEADERS
                return send(status, cbor2.dumps(error), kind, headers)
            return answer(status, error, [("x-amzn-ErrorType", code)])

        with self.lock:
            if path == "/_fake/faults":
                self.faults = json.loads(body or b"[]")
                return answer(200, self.faults)
            if path == "/_fake/calls":
                calls, self.calls = self.calls, []
                return answer(200, calls)
            if path == "/_fake/objects":
                return answer(200, buckets.told(json.loads(body), ACCOUNT))
        fault = self.fault(operation)
        if not fault.get("late"):
            time.sleep(fault.get("delay_s", 0))
        if fault.get("cut"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return send(500, b"", "text/plain")
        if fault.get("flip"):
            body = body[:-1] + bytes([body[-1] ^ 1])
        if "code" in fault:
            return refuse(fault.get("status", 400), fault["code"], "as the test wants it")
        if in_bucket:
            refusal = buckets.refusal(environ, body, ACCESS_KEY)
            if refusal:
                return refuse(*refusal)
            environ["wsgi.input"] = io.BytesIO(body)
            return self.moto(environ, start_response)
        signed = environ.get("HTTP_AUTHORIZATION", "")
        if f"Credential={ACCESS_KEY}/" not in signed:
            message = "The security token included in the request is invalid."
            return refuse(400, "UnrecognizedClientException", message)
        if cbor or cloudwatch.SERVICE in environ.get("HTTP_X_AMZ_TARGET", ""):
            asked = cloudwatch.request(body, environ) if cbor else json.loads(body)
            refusal = cloudwatch.refusal(operation, asked, len(body))
            if refusal:
                return refuse(400, *refusal)
        if cbor:
            status, data = cloudwatch.ask(self.moto, operation, asked, environ)
            time.sleep(fault.get("delay_s", 0) if fault.get("late") else 0)
            return send(status, data, cloudwatch.CONTENT_TYPE, cloudwatch.HEADERS)
        environ["wsgi.input"] = io.BytesIO(body)
        return self.moto(environ, start_response)

    def fault(self, operation):
        with self.lock:
            self.calls.append(operation)
            for fault in self.faults:
                if fault["op"] in (operation, "*") and fault.get("count", 1) > 0:
                    fault["count"] = fault.get("count", 1) - 1
                    return fault
        return {}


def main():
    for name in USES_KEY:
        guard(name)
    server = make_server("127.0.0.1", 0, Aws(), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


main()
