"""Tools that some tests need and a machine may lack: elsewhere such a test is skipped, with CI=true it fails.

A test that is skipped where it was meant to run proves nothing and nobody sees it. So this is the one place that may
skip (tests/test_architecture.py looks), and a tool that CI cannot have says here why.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.harness import kuairand

LAST_RELEASE = "a3d0f91"  # 0.3.0


@dataclass(frozen=True)
class Tool:
    """Something that `find` returns, or nothing; `brings` is what a person does to have it."""

    name: str
    find: Callable[[], Any]
    brings: str
    why_not_in_ci: str = ""


def _faketime() -> str:
    places = [os.environ.get("FAKETIME_LIB", ""), *map(str, Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))]
    return next((place for place in places if place and Path(place).is_file()), "")


def _has_last_release() -> bool:
    command = ["git", "cat-file", "-e", LAST_RELEASE]
    here = Path(__file__).parent
    return (
        bool(shutil.which("git")) and not subprocess.run(command, cwd=here, check=False, capture_output=True).returncode
    )


KAFKA = Tool("Apache Kafka", lambda: os.environ.get("KAFKA_HOME"), "set KAFKA_HOME to a Kafka 4 download")
NOIDA = Tool("noida", lambda: importlib.util.find_spec("noida_db"), "pip install -e .[embedded,dev]")
OBSTORE = Tool("obstore", lambda: importlib.util.find_spec("obstore"), "pip install -e .[objects]")
OPENTELEMETRY = Tool(
    "OpenTelemetry",
    lambda: importlib.util.find_spec("opentelemetry") and importlib.util.find_spec("opentelemetry.sdk"),
    "pip install -e .[tracing]",
)
MOTO = Tool("moto's S3 server", lambda: importlib.util.find_spec("moto"), "pip install -e .[embedded,dev]")
PROMTOOL = Tool(
    "promtool", lambda: os.environ.get("PROMTOOL") or shutil.which("promtool"), "apt-get install promtool, or PROMTOOL"
)
LIBFAKETIME = Tool("libfaketime", _faketime, "apt-get install libfaketime, or FAKETIME_LIB")
DOCKER_COMPOSE = Tool("docker-compose", lambda: shutil.which("docker-compose"), "apt-get install docker-compose")
SYSTEMD = Tool("systemd-analyze", lambda: shutil.which("systemd-analyze"), "apt-get install systemd")
KUBECTL = Tool("kubectl", lambda: shutil.which("kubectl"), "apt-get install kubernetes-client")
PROMETHEUS = Tool("Prometheus", lambda: shutil.which("prometheus"), "apt-get install prometheus")
NPM = Tool("npm", lambda: shutil.which("npm"), "install Node.js 20 or newer")
CHROMIUM = Tool("Chromium", lambda: shutil.which("chromium"), "apt-get install chromium")
OPENSSL = Tool("openssl", lambda: shutil.which("openssl"), "apt-get install openssl")
CURL = Tool("curl", lambda: shutil.which("curl"), "apt-get install curl")
LINUX = Tool("Linux", lambda: sys.platform == "linux", "run on Linux", why_not_in_ci="CI may look at macOS too")
FASTAVRO = Tool("fastavro", lambda: importlib.util.find_spec("fastavro"), "pip install -e .[embedded,dev]")
KUAIRAND = Tool("the KuaiRand data", kuairand.is_there, "put it into ../shared/data/kuairand")
ALS = Tool(
    "implicit",
    lambda: importlib.util.find_spec("implicit"),
    "pip install -e .[bench]",
    why_not_in_ci="the bench extra is for benchmarks; CI installs what the product and its tests stand on",
)
GIT_HISTORY = Tool(
    "the last release in git's history",
    _has_last_release,
    "clone the whole history",
    why_not_in_ci="a clone of CI may have the newest commit alone",
)
MOUNT = Tool("a file system of its own", bool, "run as root", why_not_in_ci="a container may forbid to mount one")
GPU = Tool(
    "a GPU that torch knows",
    lambda: bool(torch.cuda.device_count()),
    "run where there is one, with a CUDA build of torch",
    why_not_in_ci="CI has none",
)
IPV6 = Tool("IPv6", bool, "switch IPv6 on", why_not_in_ci="a container may have none")


def require(tool: Tool, why: str = "") -> Any:
    """The tool. Without it the test that asks is skipped, or fails where CI says that it is there."""
    return tool.find() or lack(tool, why)


def lack(tool: Tool, why: str = "") -> None:
    """End the test for want of a tool that only trying can find."""
    text = f"{why + ': ' if why else ''}{tool.name} is not there ({tool.brings})"
    if os.environ.get("CI") and not tool.why_not_in_ci:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def needs(tool: Tool, why: str = "") -> pytest.MarkDecorator:
    """Mark a test, or with `pytestmark` a file, as in need of a tool; tests/conftest.py asks for it."""
    return pytest.mark.needs(tool, why)


def require_kafka(kind: str, why: str) -> None:
    """End a test on noida that can only show something on Apache Kafka; on a broker of its own kind, where both run."""
    if kind == "noida":
        if KAFKA.find():
            pytest.skip(f"{why}: shown on Apache Kafka")
        lack(KAFKA, why)
