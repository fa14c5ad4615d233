"""The manifests are what Kubernetes takes, and say what the program understands."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from diptych.cli import app
from diptych.core.config_sources import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES_VERSION = "1.30.0"
MANIFESTS = [
    pytest.param(document, id=f"{path.name}:{document['kind']}/{document['metadata']['name']}")
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
DEPLOYMENTS = [one for one in MANIFESTS if one.values[0]["kind"] == "Deployment"]  # type: ignore[index]
DRAIN_MARGIN_S = 20


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def main_container(deployment: dict[str, Any]) -> dict[str, Any]:
    [container] = pod_of(deployment)["containers"]
    assert isinstance(container, dict)
    return container


def config_text() -> str:
    text: str = yaml.safe_load((FOLDER / "config.yaml").read_text())["data"]["diptych.toml"]
    return text


@pytest.mark.parametrize("document", MANIFESTS)
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    assert document["kind"] == "Namespace" or document["metadata"]["namespace"] == "diptych"


def test_the_schemas_notice_mistakes() -> None:
    wrong = yaml.safe_load((FOLDER / "workers.yaml").read_text())
    wrong["spec"]["replicaz"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


def test_all_files_belong_to_something() -> None:
    listed = set(yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"])
    there = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert there - listed == {"prefill.yaml", "decode.yaml"}, "which are in place of workers.yaml"
    assert listed <= there


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_the_program_understands_its_arguments(deployment: dict[str, Any]) -> None:
    command = typer.main.get_command(app)
    name, *arguments = main_container(deployment)["args"]
    subcommand = command.commands[name]  # type: ignore[attr-defined]
    context = subcommand.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params
    if name == "worker":
        assert context.params["join"].partition(":")[0] == "diptych-router"


def test_the_program_understands_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "diptych.toml"
    path.write_text(config_text())
    config = load_config({}, {}, path)
    assert (config.num_prefill, config.num_decode) == (0, 0)
    assert config.cluster_listen is not None
    assert config.cluster_listen.rpartition(":")[2] == "7070"


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_a_pod_is_given_time_to_drain(deployment: dict[str, Any]) -> None:
    container = main_container(deployment)
    flags = dict(flag.removeprefix("--").split("=") for flag in container["args"] if "=" in flag)
    drain_s = float(flags.get("drain-timeout-s") or tomllib.loads(config_text())["drain_timeout_s"])
    assert pod_of(deployment)["terminationGracePeriodSeconds"] >= drain_s + DRAIN_MARGIN_S
    assert container["lifecycle"]["preStop"]["exec"]["command"]
    assert container["readinessProbe"]
    assert container["startupProbe"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_volumes_ports_and_labels_fit(deployment: dict[str, Any]) -> None:
    pod, labels = pod_of(deployment), deployment["spec"]["template"]["metadata"]["labels"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in main_container(deployment).get("ports", [])}
    for one in MANIFESTS:
        [document] = one.values
        assert isinstance(document, dict)
        if document["kind"] == "Service" and document["spec"]["selector"] == labels:
            assert {port["targetPort"] for port in document["spec"]["ports"]} <= set(ports)


def test_the_readme_makes_the_secrets_that_are_mounted() -> None:
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    made: dict[str, set[str]] = {}
    for line in text.splitlines():
        if "create secret generic" in line:
            words = shlex.split(line)
            files = {re.sub(r".*/", "", word.partition("=")[2]) for word in words if word.startswith("--from-file")}
            made[words[words.index("generic") + 1]] = files
    for one in DEPLOYMENTS:
        [deployment] = one.values
        assert isinstance(deployment, dict)
        [secret] = [volume["secret"] for volume in pod_of(deployment)["volumes"] if "secret" in volume]
        wanted = {item["key"] for item in secret.get("items", [])} or {"node.key_secret", "head.key"}
        assert made[secret["secretName"]] == wanted
