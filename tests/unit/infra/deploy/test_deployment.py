"""The systemd units and the compose file: they fit our commands and settings, and let in nobody by default."""

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import typer.main
import yaml

from infra.cli.main import app
from infra.local import stack
from infra.local.processes import STOP_S
from infra.platform.settings import CONFIG_VARIABLE, ENV_PREFIX, variables
from tests.harness.needs import DOCKER_COMPOSE, SYSTEMD, needs

INFRA = Path(__file__).parents[4] / "infra" / "deploy"
UNITS = sorted((INFRA / "systemd").glob("*.service"))
COMMON = INFRA / "systemd" / "nextwatch-.service.d" / "process.conf"
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "nextwatch"}
RETRAIN = {"retrain": ("retrain", "--every", "1d", "--budget", "6h")}  # that `up` does not run
COMMANDS = stack.COMMANDS | stack.INGEST | RETRAIN
PROFILES = ("--profile", "ingest", "--profile", "retrain")
IN_A_UNIT = "/opt/nextwatch/bin/nextwatch"
EXPOSED_MOST = 2.0  # of 10, as `systemd-analyze security` counts


def options_of(unit: Path) -> list[tuple[str, str]]:
    """Every `Name=value` of a unit file; a name may come several times."""
    lines = (line.strip() for line in unit.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#[")
    return [(name, value) for name, _, value in pairs]


def is_command(arguments: list[str]) -> bool:
    """Whether our command line takes this, as far as names and choices go."""
    command: Any = typer.main.get_command(app)
    try:
        context = command.make_context("nextwatch", arguments, resilient_parsing=False)
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        found.make_context(name, rest, parent=context)
    except (Exception, SystemExit):  # which of them is typer's own matter
        return False
    return True


def is_ours(variable: str) -> bool:
    return not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE or variable in variables()


def test_what_is_no_command_is_told_from_what_is_one() -> None:
    assert is_command(["worker", "history"]) and is_command(["topics", "--create"])
    assert not any(map(is_command, (["worker", "histories"], ["serves"], ["topics", "--creates"], ["worker"])))


def test_there_is_a_unit_and_a_service_for_each_of_our_processes() -> None:
    units = {unit.name.removeprefix("nextwatch-").removesuffix("@.service"): unit for unit in UNITS}
    started = {name: dict(options_of(unit))["ExecStart"] for name, unit in units.items()}
    assert started == {name: " ".join((IN_A_UNIT, *command)) for name, command in COMMANDS.items()}
    composed = {name: tuple(service["command"]) for name, service in OURS.items() if name != "topics"}
    assert composed == COMMANDS
    assert all(is_command(list(command)) for command in (*COMMANDS.values(), OURS["topics"]["command"]))


def test_a_unit_restarts_for_ever_and_leaves_time_to_stop() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(COMMON)
    assert parser["Unit"]["StartLimitIntervalSec"] == "0"
    service = parser["Service"]
    assert (service["Restart"], service["Type"]) == ("always", "exec")
    assert float(service["RestartSec"]) <= 1 and float(service["RestartMaxDelaySec"]) <= 30
    assert float(service["TimeoutStopSec"]) > STOP_S
    assert service["LimitCORE"] == "0" and service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"


def test_what_units_and_services_set_are_settings_of_ours_and_no_secrets() -> None:
    variables = [value.partition("=")[0] for name, value in options_of(COMMON) if name == "Environment"]
    for service in OURS.values():
        variables += service["environment"]
    image = (INFRA / "Dockerfile").read_text()
    variables += re.findall(r"(NEXTWATCH_\w+)=", image) + re.findall(r"NEXTWATCH_\w+", COMMON.read_text())
    assert variables and all(map(is_ours, variables)), variables
    assert not is_ours("NEXTWATCH_KAFKA__BOOTSTRP")
    secrets = [name for service in COMPOSE["services"].values() for name in service.get("environment", {})]
    assert not [name for name in secrets if re.search(r"PASSWORD|TOKEN|SECRET", name)]


def test_compose_publishes_on_the_loopback_interface_only() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_a_composed_process_is_restarted_watched_and_kept_small() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["restart"] in ({"on-failure"} if name == "topics" else {"always"})
        assert service["healthcheck"]
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    for service in OURS.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert int(service["stop_grace_period"].removesuffix("s")) > STOP_S
        assert service["security_opt"] == ["no-new-privileges:true"]
    mounted = [volume.partition(":")[0] for each in COMPOSE["services"].values() for volume in each.get("volumes", ())]
    files = [INFRA / each for each in mounted if each.startswith(".")]
    assert files and all(file.is_file() for file in files), "they lie beside the compose file"
    assert {each for each in mounted if not each.startswith(".")} == set(COMPOSE["volumes"])


def test_what_retrain_reads_lies_on_a_disk_and_not_in_memory() -> None:
    service = OURS["retrain"]
    (data_dir,) = re.findall(r"NEXTWATCH_DATA_DIR=(\S+)", (INFRA / "Dockerfile").read_text())
    assert f"retrain:{data_dir}" in service["volumes"] and f"bundles:{data_dir}/bundles" in service["volumes"]
    assert not [each for each in service["tmpfs"] if each.startswith(data_dir)]


def test_a_composed_process_is_asked_where_it_listens(tmp_path: Path) -> None:
    service = OURS["serving"]
    check = service["healthcheck"]["test"]
    assert check[:2] == ["CMD", "python"] and f":{service['environment']['NEXTWATCH_METRICS__PORT']}/" in check[3]
    done = subprocess.run([sys.executable, *check[2:]], capture_output=True, timeout=60, check=False)
    assert done.returncode != 0, "nobody listens"


@needs(DOCKER_COMPOSE)
def test_compose_takes_the_file() -> None:
    """As Compose itself parses it; no container is started."""
    command = ["docker-compose", "-f", str(INFRA / "compose.yml"), *PROFILES, "config", "--services"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(COMPOSE["services"]) and not done.stderr.strip()


def test_the_image_has_all_that_the_package_has() -> None:
    project = tomllib.loads((INFRA.parents[1] / "pyproject.toml").read_text())
    copied = set(re.findall(r"^COPY (\w+) \1$", (INFRA / "Dockerfile").read_text(), re.MULTILINE))
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert copied == {name.rstrip("*") for name in included}
    assert re.search(r"^USER nextwatch$", (INFRA / "Dockerfile").read_text(), re.MULTILINE), "not root"


@needs(SYSTEMD)
def test_systemd_takes_the_units_and_finds_them_shut(tmp_path: Path) -> None:
    shutil.copytree(INFRA / "systemd", tmp_path, dirs_exist_ok=True)
    (tmp_path / "nextwatch").write_text("#!/bin/sh\n")
    (tmp_path / "nextwatch").chmod(0o755)
    for unit in tmp_path.glob("*.service"):
        unit.write_text(unit.read_text().replace(IN_A_UNIT, str(tmp_path / "nextwatch")))
    names = [str(tmp_path / unit.name.replace("@", "@1")) for unit in UNITS]
    for command in ("verify",), ("security", "--offline=yes", f"--threshold={10 * EXPOSED_MOST:g}"):
        done = subprocess.run(
            ["systemd-analyze", *command, *names], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        assert command[0] != "verify" or not done.stderr.strip()
