"""The systemd units, Compose files and the image: they can be parsed, say what the wall needs, and call commands that exist."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet

from fedfuse import app

DEPLOY = Path(__file__).parents[2] / "shared" / "deploy"
SYSTEMD, COMPOSE, IMAGE = DEPLOY / "systemd", DEPLOY / "compose", DEPLOY / "image"
SERVICES = sorted(SYSTEMD.glob("*.service"))


class _Unit(configparser.ConfigParser):
    """A unit file: keys keep their case, and may be repeated."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(path: Path) -> _Unit:
    made = _Unit(strict=False, interpolation=None)
    made.read_string(path.read_text())
    return made


def composed(name: str) -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / name).read_text())


def require_command(words: list[str]) -> None:
    """Parse a command line as `fedfuse` would, without running it."""
    command = typer.main.get_command(app)
    context = command.make_context("fedfuse", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context.protected_args, *context.args] if hasattr(context, "protected_args") else list(context.args)
        name, command, rest = command.resolve_command(context, rest)  # type: ignore[attr-defined]
        assert command is not None
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", SERVICES, ids=[path.stem for path in SERVICES])
def test_units_call_commands_that_exist(path: Path) -> None:
    words = shlex.split(unit(path)["Service"]["ExecStart"])
    assert words[0] == "/opt/fedfuse/bin/fedfuse"
    require_command(words[1:])


@pytest.mark.parametrize("path", SERVICES, ids=[path.stem for path in SERVICES])
def test_units_give_up_what_they_do_not_need(path: Path) -> None:
    service = unit(path)["Service"]
    assert service["NoNewPrivileges"] == "yes" and service["CapabilityBoundingSet"] == ""
    assert service["ProtectSystem"] == "strict" and service["UMask"] == "0077"
    assert service["User"] not in ("root", "")


def test_the_workers_unit_leaves_it_the_gpu() -> None:
    text = unit(SYSTEMD / "fedfuse-worker.service")["Service"]
    assert not {"PrivateDevices", "ProtectClock", "DevicePolicy", "DeviceAllow"} & set(text)  # ProtectClock= implies DeviceAllow=


def test_worker_and_messenger_are_two_users_with_a_socket_between() -> None:
    worker, node, door = (
        unit(SYSTEMD / name) for name in ("fedfuse-worker.service", "fedfuse-node.service", "fedfuse-worker.socket")
    )
    assert worker["Service"]["User"] != node["Service"]["User"]
    assert door["Socket"]["SocketUser"] == node["Service"]["User"]
    assert door["Socket"]["SocketMode"] == "0600"
    assert f"--messenger {node['Service']['User']}" in worker["Service"]["ExecStart"]
    assert f"--socket {door['Socket']['ListenStream']}" in node["Service"]["ExecStart"]
    # Neither reaches the other's folder, and only the worker has the passwords.
    text = (SYSTEMD / "fedfuse-node.service").read_text()
    assert (
        "InaccessiblePaths=/var/lib/fedfuse/platform/worker" in text
        and "InaccessiblePaths=/var/lib/fedfuse/platform/platform.toml" in text
    )
    assert "EnvironmentFile" not in text
    assert worker["Service"]["InaccessiblePaths"] == "/var/lib/fedfuse/platform/node"
    names = re.findall(r"^u (\S+)", (SYSTEMD / "sysusers.conf").read_text(), re.MULTILINE)
    assert {unit(path)["Service"]["User"] for path in SERVICES} == set(names)


PLATFORMS = [
    "client worker PLATFORM --messenger 10002", "client node PLATFORM --socket PLATFORM", "client health PLATFORM",
    "client status PLATFORM --socket PLATFORM", "client identity PLATFORM", "client trust PLATFORM a.toml",
    "client distrust PLATFORM a", "client accept PLATFORM a", "client start PLATFORM", "doctor PLATFORM --socket PLATFORM",
    "check PLATFORM", "serve PLATFORM", "evaluate PLATFORM", "facts PLATFORM --out a",
    "recommend --platform PLATFORM --user a", "audit PLATFORM", "ledger show PLATFORM", "ledger verify PLATFORM",
    "ledger export PLATFORM --out a", "report PLATFORM",
]  # fmt: skip


@pytest.mark.parametrize("line", PLATFORMS)
def test_a_platforms_folder_is_passed_through_and_need_not_be_listed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The units' users share a folder that neither may list (0711); no command is refused for that before it begins."""
    monkeypatch.setattr(os, "access", lambda path, mode, **_: False)
    require_command([word.replace("PLATFORM", str(tmp_path)) for word in line.split()])


def test_users_are_made_of_what_sysusers_can_read(tmp_path: Path) -> None:
    lines = re.findall(r'^u (\S+) +- "(.*)"$', (SYSTEMD / "sysusers.conf").read_text(), re.MULTILINE)
    assert len(lines) == len(SERVICES)
    # What people call a user is a field of /etc/passwd; one with a colon in it is refused, and the user is not made.
    assert not [name for name, called in lines if ":" in called]
    if shutil.which("systemd-sysusers"):
        (tmp_path / "etc").mkdir()
        subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "sysusers.conf")], check=True)
        made = {line.split(":")[0] for line in (tmp_path / "etc" / "passwd").read_text().splitlines()}
        assert made == {name for name, _ in lines}


def test_a_platform_that_is_refused_for_good_is_left_alone() -> None:
    from shared.base.errors import ExitCode

    node = unit(SYSTEMD / "fedfuse-node.service")
    assert node["Service"]["Restart"] == "always" and int(node["Service"]["RestartSec"]) * 5 > 60
    assert str(int(ExitCode.REFUSED)) in node["Service"]["RestartPreventExitStatus"].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_can_read_them(tmp_path: Path) -> None:
    for path in [*SERVICES, *SYSTEMD.glob("*.socket")]:
        # The program and the users are not there; everything else is looked at.
        text = path.read_text().replace("/opt/fedfuse/bin/fedfuse", "/bin/true")
        (tmp_path / path.name).write_text(re.sub(r"fedfuse-(server|worker|node)$", "root", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line] == []


def containers() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in sorted(COMPOSE.glob("*.yaml")):
        for name, service in composed(path.name)["services"].items():
            yield path.name, name, service


@pytest.mark.parametrize(
    ("file", "name", "service"), list(containers()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_containers_give_up_what_they_do_not_need(file: str, name: str, service: dict[str, Any]) -> None:
    require_command(service["command"])
    if "healthcheck" in service:
        kind, program, *words = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "fedfuse")
        require_command(words)
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and int(service["user"].split(":")[0]) > 0
    volumes = composed(file).get("volumes", {})
    for mount in service["volumes"]:
        source, target, *_ = mount.split(":")
        assert source.startswith("./") or source in volumes
        assert target.startswith("/") and "docker.sock" not in mount


@pytest.mark.parametrize(("file", "name"), [one[:2] for one in containers()])
def test_no_container_is_judged_by_the_images_own_health_check_but_the_coordinators(file: str, name: str) -> None:
    """A messenger was unhealthy for ever: it has no coordinator's folder."""
    words = composed(file)["services"][name]["healthcheck"]["test"]
    role = "server" if name == "coordinator" else "client"
    assert words[2:4] == [role, "health"]
    mounts = [mount.split(":")[1] for mount in composed(file)["services"][name]["volumes"]]
    for path in (Path(word) for word in words if word.startswith("/")):
        assert any(path == Path(one) or Path(one) in path.parents or path in Path(one).parents for one in mounts), path


def test_only_the_fleet_is_published() -> None:
    service = composed("coordinator.yaml")["services"]["coordinator"]
    assert service["ports"] == ["8000:8000"]


def test_worker_and_messenger_share_a_socket_and_nothing_else() -> None:
    services = composed("platform.yaml")["services"]
    worker, messenger = services["worker"], services["messenger"]
    users = [one["user"].split(":") for one in (worker, messenger)]
    assert users[0][0] != users[1][0] and users[0][1] == users[1][1]
    words = worker["command"]
    assert words[words.index("--messenger") + 1] == users[1][0]
    assert words[words.index("--group") + 1] == users[1][1]
    shared = {mount.split(":")[0] for mount in worker["volumes"]} & {mount.split(":")[0] for mount in messenger["volumes"]}
    assert shared == {"socket", "./platform/invitation.toml"}
    assert not any("platform.toml:" in mount or "/worker" in mount or "data" in mount for mount in messenger["volumes"])
    assert "./platform/peers.toml:/platform/peers.toml:ro" in worker["volumes"]  # or nobody is known for the secure sum
    assert "env_file" not in messenger
    assert not set(worker["networks"]) & set(messenger["networks"])
    assert composed("platform.yaml")["networks"]["database"]["internal"] is True
    options = composed("platform.yaml")["volumes"]["socket"]["driver_opts"]["o"]
    assert options == f"uid={users[0][0]},gid={users[0][1]},mode=0750"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n", " ", (IMAGE / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], " ".join(line.split(None, 1)[1].split())) for line in lines]


def test_the_image_is_built_from_wheels_alone_and_has_no_secret() -> None:
    found = instructions()
    stages = [index for index, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2
    # What comes from outside is the wheelhouse; what goes on is the environment that was made of it.
    copies = [rest for word, rest in found if word in ("COPY", "ADD")]
    assert copies == ["wheelhouse /wheelhouse", "--from=build /opt/fedfuse /opt/fedfuse"]
    installs = [rest for word, rest in found[: stages[1]] if word == "RUN" and " install " in rest]
    assert installs and all("--no-index --find-links /wheelhouse" in rest for rest in installs)
    assert not any("http" in rest or "apt-get" in rest for word, rest in found if word == "RUN")
    assert not any(re.search(r"secret|password|token|\.key", rest, re.IGNORECASE) for _, rest in found)
    ignored = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if not line.startswith("#")] == ["*", "!wheelhouse/*.whl"]


def test_nothing_is_installed_into_a_running_container_and_no_ray_is_in_it() -> None:
    found = instructions()
    second = [index for index, (word, _) in enumerate(found) if word == "FROM"][1]
    before, after = (" ".join(rest for word, rest in part if word == "RUN") for part in (found[:second], found[second:]))
    assert "venv --without-pip" in before and "uninstall --yes uv" in before  # Flower brings uv
    assert "pip uninstall --yes" in after  # the base image brings pip
    project = tomllib.loads((IMAGE.parents[2] / "pyproject.toml").read_text())["project"]
    assert not any("simulation" in one for one in (*project["dependencies"], *project["optional-dependencies"]["postgres"]))
    assert any("simulation" in one for one in project["optional-dependencies"]["dev"])  # which `make venv` installs


def test_the_image_has_the_names_that_charts_and_compose_files_ask_for() -> None:
    (built,) = re.findall(r"docker build (.+) \.$", (IMAGE / "Dockerfile").read_text(), re.MULTILINE)
    names = set(re.findall(r"-t (\S+)", built))
    for chart in (DEPLOY / "helm").iterdir():
        image, about = (yaml.safe_load((chart / name).read_text()) for name in ("values.yaml", "Chart.yaml"))
        assert f"{image['image']['repository']}:{about['appVersion']}" in names
    assert {service["image"] for _, _, service in containers()} <= names


def test_the_image_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    last = dict(instructions())  # the last of each word
    assert last["USER"] == "10000:10000"
    (data,) = [rest for word, rest in instructions() if word == "RUN" and "/data" in rest]
    assert "--mode 0700 --owner 10000 --group 10000" in data  # or a fresh volume would be root's
    assert json.loads(last["ENTRYPOINT"]) == ["fedfuse"]
    require_command(json.loads(last["CMD"]))
    (health,) = re.findall(r'FEDFUSE_HEALTH="([^"]+)"', last["ENV"])
    require_command(health.split())
    kind, words = last["HEALTHCHECK"].split(" CMD ")
    assert "--interval=" in kind and json.loads(words) == ["sh", "-c", "exec fedfuse $FEDFUSE_HEALTH"]
    (other,) = re.findall(r'a worker\'s are "([^"]+)"', (IMAGE / "Dockerfile").read_text())
    require_command(other.split())
    users = {service["user"] for _, name, service in containers() if name == "coordinator"}
    assert users == {last["USER"]}


def test_what_the_image_is_built_with_is_what_the_project_asks_for() -> None:
    project = tomllib.loads((IMAGE.parents[2] / "pyproject.toml").read_text())["project"]
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\S+)-slim$", (IMAGE / "Dockerfile").read_text(), re.MULTILINE)
    assert SpecifierSet(project["requires-python"]).contains(image)
    assert f"--python-version {image} " in (IMAGE / "Dockerfile").read_text()
    assert "postgres" in project["optional-dependencies"]
    # pip takes a platform by its exact name, and wheels of libraries below torch have any of these.
    shown = re.findall(r"--platform manylinux_2_%g_x86_64' (\d+) -1 (\d+)\)", (IMAGE / "Dockerfile").read_text())
    assert shown == [("28", "17")]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", IMAGE / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker here")
@pytest.mark.parametrize("name", ["coordinator.yaml", "platform.yaml"])
def test_compose_can_read_them(name: str) -> None:
    there = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip("Docker has no compose here")
    done = subprocess.run(
        ["docker", "compose", "-f", str(COMPOSE / name), "config", "-q"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
