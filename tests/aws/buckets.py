"""Amazon S3 on loopback: what stands before moto's, which takes any signature and any bytes.

Signatures are checked by botocore's own computation of them, checksums by ours; conditions, parts and
ranges are moto's. Not checked by anyone: policies, storage classes, and what becomes of versions.
"""

import base64
import hashlib
import re
from urllib.parse import parse_qs

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.s3.models import s3_backends

SECRET_KEY = "secret"
SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(\w*)/\d{8}/([\w-]+)/s3/aws4_request, ?"
    r"SignedHeaders=([\w;-]+), ?Signature=([0-9a-f]{64})"
)
POLYNOMIAL = 0x82F63B78


def crc_table():
    """CRC32C of each byte."""
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        yield byte


TABLE = list(crc_table())


def crc32c(data):
    """As S3 writes it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return base64.b64encode((crc ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


def is_asked(environ):
    """Whether a request is for S3."""
    return "/s3/aws4_request" in environ.get("HTTP_AUTHORIZATION", "")


def operation(environ):
    """What S3 calls the request."""
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    part, upload = "partNumber" in query, "uploadId" in query
    return {
        "PUT": "UploadPart" if part else "PutObject",
        "POST": "CompleteMultipartUpload" if upload else "CreateMultipartUpload",
        "DELETE": "AbortMultipartUpload" if upload else "DeleteObject",
        "GET": "GetObject",
        "HEAD": "HeadObject",
    }.get(environ["REQUEST_METHOD"], environ["REQUEST_METHOD"])


def signature(environ, region, names):
    """What the request has to be signed with."""
    headers = {
        name: environ.get("HTTP_" + name.upper().replace("-", "_"))
        or environ.get(name.upper().replace("-", "_"), "")
        for name in names.split(";")
    }
    url = f"http://{environ['HTTP_HOST']}{environ['REQUEST_URI']}"
    request = AWSRequest(method=environ["REQUEST_METHOD"], url=url, headers=headers)
    request.context["timestamp"] = environ.get("HTTP_X_AMZ_DATE", "")
    signer = S3SigV4Auth(Credentials("", SECRET_KEY), "s3", region)
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


def refusal(environ, body, access_key):
    """Status, code and message of an answer that moto would not give; nothing if there is none."""
    signed = SIGNED.match(environ["HTTP_AUTHORIZATION"])
    if not signed or signed[1] != access_key:
        return 403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."
    if signature(environ, signed[2], signed[3]) != signed[4]:
        return 403, "SignatureDoesNotMatch", "The request signature we calculated does not match."
    digest = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
    if re.fullmatch("[0-9a-f]{64}", digest) and hashlib.sha256(body).hexdigest() != digest:
        return 400, "XAmzContentSHA256Mismatch", "The provided SHA256 does not match."
    told = environ.get("HTTP_X_AMZ_CHECKSUM_CRC32C")
    if told and crc32c(body) != told:
        return 400, "BadDigest", "The CRC32C you specified did not match the calculated checksum."
    return None


def error(code, message):
    """As S3 says it."""
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def told(asked, account):
    """What a test makes or wants to know: `bucket` is made, `put` put, `delete` deleted; the names
    of all objects."""
    backend = s3_backends[account]["aws"]
    if "bucket" in asked:
        backend.create_bucket(asked["bucket"], asked["region"])
    buckets = list(backend.buckets)
    for name, text in asked.get("put", {}).items():
        backend.put_object(buckets[0], name, text.encode())
    for name in asked.get("delete", []):
        backend.delete_object(buckets[0], name)
    return {key: item.size for name in buckets for key, item in backend.buckets[name].keys.items()}
