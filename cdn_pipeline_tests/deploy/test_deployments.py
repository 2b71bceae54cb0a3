"""systemd units, Docker, Kubernetes and ECS: as far as they can be judged without installing them."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped, unused-ignore]
from dagster._config import validate_config
from dagster_aws.ecs import EcsRunLauncher

from cdn_pipeline.settings import Settings, project_root
from cdn_pipeline_tests.deploy.files import DEPLOY, DOCS, load_yaml

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = DEPLOY / "docker" / "compose.yaml"
VALUES = DEPLOY / "kubernetes" / "values.yaml"
PRODUCTION = DEPLOY / "production" / "dagster.yaml"


# -- systemd


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    """On copies that start a program which is there: that of the checkout may be elsewhere."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(re.sub(r"/opt/cdn-pipeline/\.venv/bin/\S+", "/bin/true", unit.read_text()))
    names = [str(tmp_path / unit.name) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_every_unit_is_confined(unit: Path) -> None:
    lines = set(unit.read_text().splitlines())
    assert lines >= {
        "User=cdn-pipeline",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "EnvironmentFile=/etc/cdn-pipeline/env",
    }
    assert any(line.startswith("MemoryMax=") for line in lines)
    assert any(line.startswith("IPAddressDeny=") and "169.254.169.254" in line for line in lines)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_every_file_that_a_unit_names_is_in_the_checkout(unit: Path) -> None:
    text = unit.read_text().replace("${DAGSTER_ENGINE}", "celery")
    named = set(re.findall(r"/opt/cdn-pipeline/(deploy/\S+)", text))
    assert all((project_root() / name).exists() for name in named)


def test_the_environment_of_the_units_names_what_dagster_and_the_pipeline_know() -> None:
    text = (DEPLOY / "systemd" / "env.example").read_text()
    named = set(re.findall(r"^(?:# )?([A-Z0-9_]+)=", text, re.MULTILINE))
    ours = {name.upper() for name in Settings.model_fields}
    asked_for = set(re.findall(r"env: (\w+)", (DEPLOY / "celery" / "dagster.yaml").read_text()))
    of_units = {"DAGSTER_ENGINE", "CDN_PIPELINE_SERVE"}
    of_boto3 = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REQUEST_CHECKSUM_CALCULATION"}
    assert asked_for <= named
    assert named <= ours | asked_for | of_units | of_boto3


# -- Docker


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, without comments; continued lines are one."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.partition(" ") for line in text.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in found]


def test_the_image_installs_hashed_requirements_only() -> None:
    installs = [
        command for name, rest in instructions() if name == "RUN" for command in re.findall(r"pip install[^&]*", rest)
    ]
    assert installs
    assert all("--require-hashes --no-deps" in command or "/wheels/" in command for command in installs)


def test_the_image_has_two_stages_and_runs_without_rights() -> None:
    names = [name for name, _ in instructions()]
    assert names.count("FROM") == 2
    last_stage = dict(instructions()[len(names) - names[::-1].index("FROM") - 1 :])
    assert last_stage["USER"] == "10001"
    assert {"HEALTHCHECK", "CMD"} <= last_stage.keys()


def test_all_that_the_image_copies_is_there_and_sent_to_the_builder() -> None:
    sent = {
        line[1:] for line in (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copies = [rest for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    for source in (source.rstrip("/") for rest in copies for source in rest.split()[:-1]):
        assert (project_root() / source).exists()
        assert source in sent


def services() -> Mapping[str, Any]:
    """The compose file's services, with their common part."""
    found: Mapping[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_every_service_of_ours_is_confined_and_none_is_open_to_the_network() -> None:
    ours = {name: service for name, service in services().items() if name != "postgres"}
    assert ours.keys() == {"migrate", "code", "daemon", "webserver", "api"}
    for service in ours.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    ports = [port for service in services().values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_one_service_of_compose_watches() -> None:
    commands = [service.get("command", ()) for service in services().values()]
    assert sum("--watch" in command for command in commands) == 1


def test_every_file_that_compose_mounts_is_there() -> None:
    mounts = [mount for service in services().values() for mount in service.get("volumes", ())]
    files = {mount.partition(":")[0] for mount in mounts if mount.startswith(".")}
    assert files
    assert all((COMPOSE.parent / file).is_file() for file in files)


# -- Kubernetes

# Keys of the chart's own schema (helm/dagster/schema in Dagster's repository), as far as the values use them; a mapping
# that is None is Kubernetes' own or free.
CHART: dict[str, Any] = {
    "global": {"postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName"},
    "generatePostgresqlPasswordSecret": None,
    "postgresql": {
        *("enabled", "image", "postgresqlScheme", "postgresqlHost", "postgresqlUsername", "postgresqlPassword"),
        *("postgresqlDatabase", "postgresqlParams", "service"),
    },
    "dagster-user-deployments": {"enabled", "enableSubchart", "imagePullSecrets", "deployments"},
    "dagster-user-deployments.deployments": {
        *("name", "image", "dagsterApiGrpcArgs", "codeServerArgs", "includeConfigInLaunchedRuns", "port", "env"),
        *("envConfigMaps", "envSecrets", "annotations", "nodeSelector", "affinity", "tolerations", "resources"),
        *("podSecurityContext", "securityContext", "livenessProbe", "readinessProbe", "startupProbe", "labels"),
        *("volumeMounts", "volumes", "schedulerName"),
    },
    "dagsterWebserver": {"image", "replicaCount", "resources", "envSecrets"},
    "dagsterDaemon": {
        *("enabled", "image", "runCoordinator", "heartbeatTolerance", "env", "envConfigMaps", "envSecrets", "labels"),
        *("resources", "livenessProbe", "readinessProbe", "startupProbe", "annotations", "runMonitoring", "runRetries"),
        *("sensors", "schedules", "schedulerName", "volumeMounts", "volumes", "securityContext", "podSecurityContext"),
    },
    "dagsterDaemon.runCoordinator": {"enabled", "type", "config"},
    "dagsterDaemon.runCoordinator.config": {"queuedRunCoordinator", "customRunCoordinator"},
    "dagsterDaemon.runCoordinator.config.queuedRunCoordinator": {
        *(
            "maxConcurrentRuns",
            "tagConcurrencyLimits",
            "dequeueIntervalSeconds",
            "dequeueNumWorkers",
            "dequeueUseThreads",
        ),
    },
    "dagsterDaemon.runMonitoring": {
        *("enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts", "pollIntervalSeconds"),
        "freeSlotsAfterRunEndSeconds",
    },
    "runLauncher": {"type", "config"},
    "runLauncher.config": {"k8sRunLauncher", "celeryK8sRunLauncher", "customRunLauncher"},
    "runLauncher.config.k8sRunLauncher": {
        *("image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile", "envConfigMaps"),
        *("envSecrets", "envVars", "volumeMounts", "volumes", "labels", "failPodOnRunFailure", "resources"),
        *("schedulerName", "securityContext", "runK8sConfig"),
    },
    "runLauncher.config.k8sRunLauncher.runK8sConfig": {
        *("containerConfig", "podSpecConfig", "podTemplateSpecMetadata", "jobSpecConfig", "jobMetadata"),
    },
    "computeLogManager": {"type", "config"},
    "computeLogManager.config": {"s3ComputeLogManager"},
    "computeLogManager.config.s3ComputeLogManager": {
        *("bucket", "localDir", "prefix", "useSsl", "verify", "verifyCertPath", "endpointUrl", "skipEmptyFiles"),
        *("uploadInterval", "uploadExtraArgs", "showUrlOnly", "region"),
    },
    "retention": {"enabled", "schedule", "sensor", "autoMaterialize"},
    "telemetry": {"enabled"},
    "additionalInstanceConfig": None,
}


def unknown_keys(value: Any, path: str = "") -> Iterator[str]:
    """What the chart does not know, by its path; below what is not in CHART nothing is looked at."""
    if isinstance(value, list):
        for item in value:
            yield from unknown_keys(item, path)
    elif isinstance(value, dict) and CHART.get(path):
        for key, inner in value.items():
            below = f"{path}.{key}"
            if key not in CHART[path]:
                yield below
            yield from unknown_keys(inner, below)


def test_the_chart_knows_every_key_of_the_values() -> None:
    values = load_yaml(VALUES)
    assert values.keys() <= CHART.keys()
    assert [unknown for key, value in values.items() for unknown in unknown_keys(value, key)] == []


def snake(value: Any) -> Any:
    """The chart's camelCase keys as dagster.yaml writes them."""
    if isinstance(value, dict):
        return {re.sub(r"(?<!^)(?=[A-Z])", "_", key).lower(): snake(inner) for key, inner in value.items()}
    return [snake(item) for item in value] if isinstance(value, list) else value


def test_the_values_say_what_dagster_yaml_says() -> None:
    values, instance = load_yaml(VALUES), load_yaml(PRODUCTION)
    daemon = values["dagsterDaemon"]
    monitoring = snake(daemon["runMonitoring"])
    assert snake(daemon["runCoordinator"]["config"]["queuedRunCoordinator"]) == instance["concurrency"]["runs"]
    assert instance["run_monitoring"].items() <= monitoring.items()
    assert values["additionalInstanceConfig"]["run_retries"] == instance["run_retries"]
    assert values["additionalInstanceConfig"]["nux"] == instance["nux"]
    assert values["telemetry"] == instance["telemetry"]
    retention = snake(values["retention"])
    assert retention.pop("enabled")
    assert retention == instance["retention"]
    assert snake(values["computeLogManager"]["config"]["s3ComputeLogManager"]) == instance["compute_logs"]["config"]
    assert values["postgresql"]["postgresqlScheme"] == instance["storage"]["postgres"]["postgres_db"]["scheme"]


def test_no_secret_is_written_into_the_values() -> None:
    text = VALUES.read_text()
    assert "postgresqlPassword:" not in text
    assert not re.search(r"(?i)(password|secret_access_key|api_token):\s*\S", re.sub(r"#.*", "", text))


@pytest.mark.parametrize("name", ["api.yaml", "network-policy.yaml"])
def test_manifests_are_complete_objects(name: str) -> None:
    objects = list(yaml.safe_load_all((VALUES.parent / name).read_text()))
    assert all({"apiVersion", "kind", "metadata", "spec"} <= thing.keys() for thing in objects)


def test_runs_have_the_label_that_the_network_policy_selects() -> None:
    launcher = load_yaml(VALUES)["runLauncher"]["config"]["k8sRunLauncher"]
    policy = load_yaml(VALUES.parent / "network-policy.yaml")
    labels = launcher["runK8sConfig"]["podTemplateSpecMetadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


# -- ECS


def test_dagster_accepts_the_ecs_launcher_of_the_page() -> None:
    [block] = re.findall(r"```yaml\n(run_launcher:.*?)```", (DOCS / "deploy.md").read_text(), re.DOTALL)
    launcher = yaml.safe_load(block)["run_launcher"]
    assert launcher["class"] == EcsRunLauncher.__name__
    schema = dg.Shape(EcsRunLauncher.config_type())  # type: ignore[no-untyped-call]
    evaluated = validate_config(schema, launcher["config"])
    assert evaluated.success, evaluated.errors
