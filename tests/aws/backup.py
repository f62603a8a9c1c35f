"""AWS Backup on loopback, for tests: jobs on order, which go through the states of a script.

    python backup.py        prints the port that it listens on, and serves until it is killed

moto 5.2.5 has no backup jobs. This refuses what AWS refuses: other credentials, a vault or a role
that is not there, a resource that is no volume. The same token twice is one job. What AWS does is our
reading of its API reference, the order of the states too: there is no independent witness for
either. Requests come from the real SDK.

POST /_fake/script  {"vaults", "roles", "states", "message"}: a job has the next of `states` each
                    time somebody asks for it, and keeps the last one
GET  /_fake/jobs    the orders, each with how often it was given and asked for
"""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCESS_KEY = "AKIDRECORDER"
VOLUME = re.compile(r"arn:aws[a-z-]*:ec2:[a-z0-9-]+:\d{12}:volume/vol-[0-9a-f]+")


class Service:
    """What there is, and what was ordered."""

    lock = threading.Lock()
    script = {"vaults": [], "roles": [], "states": ["CREATED"], "message": None}
    jobs = {}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Nobody reads it."""

    def answer(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, code, message):
        self.answer(400, {"Code": code, "Message": message}, [("x-amzn-ErrorType", code)])

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")

    def may_not(self):
        known = f"Credential={ACCESS_KEY}/" in self.headers.get("Authorization", "")
        if not known:
            message = "The security token included in the request is invalid."
            self.refuse("UnrecognizedClientException", message)
        return not known

    def do_PUT(self):
        order = self.body()
        if self.may_not():
            return
        with Service.lock:
            self.start(order)

    def start(self, order):
        script = Service.script
        missing = [
            name for name in ("BackupVaultName", "ResourceArn", "IamRoleArn") if not order.get(name)
        ]
        if self.path != "/backup-jobs":
            self.answer(404, {})
        elif missing:
            self.refuse("MissingParameterValueException", f"{missing[0]} is missing.")
        elif order["BackupVaultName"] not in script["vaults"]:
            self.refuse("ResourceNotFoundException", "Backup vault does not exist.")
        elif order["IamRoleArn"] not in script["roles"]:
            message = f"IAM Role {order['IamRoleArn']} cannot be assumed by AWS Backup"
            self.refuse("InvalidParameterValueException", message)
        elif not VOLUME.fullmatch(order["ResourceArn"]):
            self.refuse("InvalidParameterValueException", "Resource type is not supported")
        else:
            token = order.get("IdempotencyToken")
            same = [job for job in Service.jobs.values() if token and job["token"] == token]
            job = same[0] if same else self.new_job(token, order)
            job["given"] += 1
            created = {"BackupJobId": job["id"], "CreationDate": time.time(), "IsParent": False}
            self.answer(200, created)

    def new_job(self, token, order):
        name = f"job-{len(Service.jobs) + 1}"
        job = {"id": name, "token": token, "order": order, "given": 0, "asked": 0}
        Service.jobs[name] = job
        return job

    def do_GET(self):
        if self.path == "/_fake/jobs":
            with Service.lock:
                self.answer(200, list(Service.jobs.values()))
            return
        if self.may_not():
            return
        with Service.lock:
            job = Service.jobs.get(self.path.removeprefix("/backup-jobs/"))
            if job is None:
                self.refuse("ResourceNotFoundException", "Backup job does not exist.")
                return
            states = Service.script["states"]
            state = states[min(job["asked"], len(states) - 1)]
            job["asked"] += 1
            told = {"BackupJobId": job["id"], "State": state, "ResourceType": "EBS"}
            if Service.script.get("message"):
                told["StatusMessage"] = Service.script["message"]
            self.answer(200, told)

    def do_POST(self):
        script = self.body()
        with Service.lock:
            Service.script = script
        self.answer(200, {})


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
