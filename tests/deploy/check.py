"""Checks a CloudFormation template without AWS, and says what its instances start with.

    check.py lint TEMPLATE       findings of cfn-lint and parliament, one a line; exit code 1 if any
    check.py user-data TEMPLATE  the user data of its launch template, with default parameters
    check.py metrics TEMPLATE    namespaces and names of the metrics of its alarms, one pair a line

cfn-lint knows the resources' schemas; parliament knows the actions of every service, their resources
and their conditions. Neither has seen an account: quotas, images and addresses are not checked.
"""

import json
import re
import subprocess
import sys

from cfnlint.decode import cfn_yaml
from parliament import analyze_policy_string

# What stands for the pseudo parameters, and for resources that nobody has made.
PSEUDO = {
    "AWS::Partition": "aws",
    "AWS::Region": "eu-central-1",
    "AWS::AccountId": "123456789012",
}
ARNS = {
    "AWS::KMS::Key": "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555",
    "AWS::Backup::BackupVault": "arn:aws:backup:eu-central-1:123456789012:backup-vault:state",
    "AWS::IAM::Role": "arn:aws:iam::123456789012:role/backup",
}
# A parameter without a default is the user's; this fits all that stand in policies and user data.
GIVEN = "given.deb"


class Template:
    """A template and what its intrinsic functions come to."""

    def __init__(self, path):
        self.body = cfn_yaml.load(path)

    def named(self, name):
        """What `!Ref name`, or `name` within `!Sub`, comes to."""
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.body["Parameters"]:
            return str(self.body["Parameters"][name].get("Default", GIVEN))
        resource, _, attribute = name.partition(".")
        kind = self.body["Resources"][resource]["Type"]
        if attribute == "Arn":
            return ARNS.get(kind, f"arn:aws:any:::{resource}")
        return "vol-0123456789abcdef0" if kind == "AWS::EC2::Volume" else resource

    def value(self, node):
        """A node without its intrinsic functions."""
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        match list(node.items()):
            case [("Ref", name)]:
                return self.named(name)
            case [("Fn::GetAtt", parts)]:
                return self.named(".".join(parts) if isinstance(parts, list) else parts)
            case [("Fn::Sub", text)]:
                return re.sub(r"\$\{([^!}]+)\}", lambda found: self.named(found[1]), text)
            case [("Fn::Base64", inner)]:
                return self.value(inner)
            case [("Fn::If", [_, then, _])]:
                return self.value(then)
        return {key: self.value(item) for key, item in node.items()}

    def resources(self, kind):
        """Names and properties of the resources of a kind."""
        for name, resource in self.body["Resources"].items():
            if resource["Type"] == kind:
                yield name, self.value(resource.get("Properties", {}))

    def policies(self):
        """Names and texts of the policies that somebody gets."""
        for name, role in self.resources("AWS::IAM::Role"):
            for policy in role.get("Policies", []):
                yield name, policy["PolicyDocument"]
        for name, policy in self.resources("AWS::IAM::ManagedPolicy"):
            yield name, policy["PolicyDocument"]


def lint(path):
    """Findings of both."""
    run = "import sys, cfnlint.runner; sys.exit(cfnlint.runner.main())"
    command = [sys.executable, "-c", run, "--format", "parseable", "--", path]
    checked = subprocess.run(command, capture_output=True, text=True)
    findings = checked.stdout.splitlines()
    if checked.returncode and not findings:
        findings = [checked.stderr.strip()]
    for name, policy in Template(path).policies():
        for found in analyze_policy_string(json.dumps(policy)).findings:
            findings.append(f"{name}: {found.issue}: {found.detail or found.title}")
    return findings


def main(verb, path):
    """Prints what was asked for."""
    if verb == "lint":
        findings = lint(path)
        print(*findings, sep="\n")
        return 1 if findings else 0
    template = Template(path)
    if verb == "user-data":
        for _, launch in template.resources("AWS::EC2::LaunchTemplate"):
            print(launch["LaunchTemplateData"]["UserData"])
    elif verb == "metrics":
        for _, alarm in template.resources("AWS::CloudWatch::Alarm"):
            print(alarm["Namespace"], alarm["MetricName"])
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
