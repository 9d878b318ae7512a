"""What either host promises the extension, by the same tests on both.

A process has one host. Here it is the embedded one; what is asked of upstream runs in one further
process, which runs these same files, and its outcomes are reported here test by test.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_conditioning, tiny_pipeline

from .world import Inputs, World

HERE = "THREESTUDIO_EEG_CONTRACT_HOST"
ROOT = "THREESTUDIO_ROOT"
REPOSITORY = Path(__file__).parents[3]


def this_host() -> str:
    return os.environ.get(HERE, "builtin")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host_name" in metafunc.fixturenames:
        hosts = ["builtin", pytest.param("upstream", marks=pytest.mark.upstream)]
        metafunc.parametrize("host_name", hosts)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not hasattr(pyfuncitem, "callspec") or "host_name" not in pyfuncitem.callspec.params:
        return None
    if pyfuncitem.callspec.params["host_name"] == this_host():
        return None
    outcomes = pyfuncitem.funcargs["elsewhere"]
    key = (pyfuncitem.module.__name__, pyfuncitem.name)
    failure = outcomes.get(key, f"{key} did not run: {outcomes['']}")
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True


@pytest.fixture(scope="session")
def outcomes_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Outcomes on the other host by (module, test): None, or what went wrong."""
    if not os.environ.get(ROOT):
        pytest.skip(f"{ROOT} names no checkout of threestudio")
    report = tmp_path_factory.mktemp("upstream") / "report.xml"
    command = [sys.executable, "-m", "pytest", "-n0", "-m", "upstream", str(Path(__file__).parent)]
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"],
        cwd=REPOSITORY,
        env={**os.environ, HERE: "upstream", "THREESTUDIO_EEG_HOST": "upstream"},
        capture_output=True,
        text=True,
    )
    outcomes: dict[Any, str | None] = {"": (done.stdout + done.stderr)[-2000:]}
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            bad = [part for part in case if part.tag in ("failure", "error", "skipped")]
            text = "\n".join(part.text or part.get("message", "") for part in bad)
            outcomes[case.get("classname"), case.get("name")] = text if bad else None
    return outcomes


@pytest.fixture
def elsewhere(host_name: str, request: pytest.FixtureRequest) -> Any:
    return None if host_name == this_host() else request.getfixturevalue("outcomes_elsewhere")


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Two pipelines, with a view encoder and without, and a conditioning file for each."""
    folder = tmp_path_factory.mktemp("inputs")
    seeing = tiny_pipeline(folder / "seeing")
    plain = tiny_pipeline(folder / "plain", view_tokens=False)
    return Inputs(
        seeing,
        tiny_conditioning(folder / "seeing.safetensors", seeing),
        plain,
        tiny_conditioning(folder / "plain.safetensors", plain),
    )


@pytest.fixture
def world(host_name: str, elsewhere: Any, inputs: Inputs) -> Iterator[World | None]:
    """The host under test, on the CPU; None where the test runs elsewhere."""
    if host_name != this_host():
        yield None
        return
    with World.of(host_name, inputs) as world:
        yield world
