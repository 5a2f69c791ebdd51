"""The Helm charts: Kubernetes can read what they make, they call commands that exist, give up what they do not need, and their
scripts, which are run here, leave keys that Fedfuse takes."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from server.deployment.folder import open_coordinator
from server.deployment.provisioning import create_coordinator_folder
from shared.protocol.keys import load_ed25519, make_ed25519
from tests.deploy.rendered_charts import HELM, VALUES, chart_digest, kept, render
from tests.deploy.test_units import require_command

CASES = [(chart, case) for chart, cases in VALUES.items() for case in cases]
ROOT = Path(__file__).parents[2]
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no Helm here")


def the(kind: str, chart: str, case: str = "plain") -> dict[str, Any]:
    (found,) = [one for one in kept(chart, case)[1] if one["kind"] == kind]
    return found


def pod(chart: str, case: str = "plain") -> dict[str, Any]:
    return the("StatefulSet", chart, case)["spec"]["template"]["spec"]


def containers(chart: str, case: str) -> Iterator[dict[str, Any]]:
    yield from pod(chart, case)["initContainers"]
    yield from pod(chart, case)["containers"]


@pytest.mark.parametrize("chart", VALUES)
def test_what_is_checked_here_was_made_of_these_very_charts(chart: str) -> None:
    for case in VALUES[chart]:
        assert kept(chart, case)[0] == chart_digest(chart), "run: python -m tests.deploy.rendered_charts (needs helm)"


@needs_helm
@pytest.mark.parametrize(("chart", "case"), CASES)
def test_helm_makes_the_same_of_them(chart: str, case: str) -> None:
    assert [one for one in yaml.safe_load_all(render(chart, case)) if one] == kept(chart, case)[1]
    words = [word for value in VALUES[chart][case] for word in ("--set", value)]
    subprocess.run(["helm", "lint", "--strict", HELM / chart, *words], check=True)


@needs_helm
def test_a_coordinator_without_a_name_is_refused() -> None:
    done = subprocess.run(["helm", "template", "x", HELM / "fedfuse-coordinator"], capture_output=True, text=True, check=False)
    assert done.returncode and "federation.host is needed" in done.stderr


def leaves(values: dict[str, Any], schema: dict[str, Any], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Values that a chart's schema knows by name, as `--set` writes them, and what the schema says of each."""
    assert set(values) == set(schema["properties"]) - {"global"} and schema["additionalProperties"] is False, before
    for name, value in values.items():
        inner = schema["properties"][name]
        if "properties" in inner:
            yield from leaves(value, inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner


@pytest.mark.parametrize("chart", VALUES)
def test_every_value_is_in_the_schema_and_in_a_case(chart: str) -> None:
    """So that a misspelt one is refused, and what each does is rendered and held against Kubernetes' schemas below."""
    schema = json.loads((HELM / chart / "values.schema.json").read_text())
    values = yaml.safe_load((HELM / chart / "values.yaml").read_text())
    jsonschema.validate(values, schema)
    said = [word for words in VALUES[chart].values() for word in words]
    found = dict(leaves(values, schema))
    assert not [name for name in found if not any(re.match(rf"{re.escape(name)}[=.\[]", word) for word in said)]


@needs_helm
@pytest.mark.parametrize("chart", VALUES)
def test_a_value_that_there_is_not_is_refused(chart: str) -> None:
    words = ["helm", "template", "x", HELM / chart, "--set", "federation.name=a,federation.host=b,networkPolicy.enabeld=false"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode and "enabeld" in done.stderr


@pytest.mark.parametrize(("chart", "case"), CASES)
@pytest.mark.parametrize("version", ["1.28.0", "1.37.0"])
def test_kubernetes_can_read_them(chart: str, case: str, version: str) -> None:
    for document in kept(chart, case)[1]:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_pods_give_up_what_they_do_not_need(chart: str, case: str) -> None:
    assert the("StatefulSet", chart, case)["spec"]["replicas"] == 1
    spec = pod(chart, case)
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec) and not spec.get("shareProcessNamespace")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    for container in containers(chart, case):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False and context["privileged"] is False
        assert context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]) == {"requests", "limits"} and "memory" in container["resources"]["requests"]
        assert not any(mount["mountPath"].endswith("docker.sock") for mount in container["volumeMounts"])
    assert not any("hostPath" in volume for volume in spec["volumes"])
    # A folder of secrets is mounted where it is copied from, and nowhere else.
    secrets = {volume["name"] for volume in spec["volumes"] if "secret" in volume}
    for container in pod(chart, case)["containers"]:
        assert not secrets & {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_they_call_commands_that_exist(chart: str, case: str) -> None:
    for container in pod(chart, case)["containers"]:
        assert "command" not in container  # the image's own
        require_command(container["args"])
        for name, probe in container.items():
            if name.endswith("Probe") and "exec" in probe:
                assert probe["exec"]["command"][0] == "fedfuse"
                require_command(probe["exec"]["command"][1:])
    probes = [container for container in pod(chart, case)["containers"] if "livenessProbe" in container]
    assert [one["name"] for one in probes] == (["coordinator"] if chart == "fedfuse-coordinator" else ["worker"])
    assert all({"startupProbe", "readinessProbe"} <= set(one) for one in probes)


def test_the_gate_is_all_that_a_coordinator_shows() -> None:
    (container,) = pod("fedfuse-coordinator")["containers"]
    assert [one["containerPort"] for one in container["ports"]] == [8000]
    assert [one["port"] for one in the("Service", "fedfuse-coordinator")["spec"]["ports"]] == [8000]
    assert container["livenessProbe"]["httpGet"] == {"scheme": "HTTPS", "path": "/health", "port": "fleet"}
    policy = the("NetworkPolicy", "fedfuse-coordinator", "full")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"port": 9000, "protocol": "TCP"}], "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]


def test_nobody_calls_a_platform_and_it_calls_the_coordinator_alone() -> None:
    policy = the("NetworkPolicy", "fedfuse-platform")["spec"]
    assert policy["ingress"] == [] and policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [53, 53, 8000]
    rule = the("NetworkPolicy", "fedfuse-platform", "full")["spec"]["egress"][1]
    assert rule["to"] == [{"ipBlock": {"cidr": "198.51.100.7/32"}}]


@pytest.mark.parametrize("case", ["plain", "full"])
def test_worker_and_messenger_share_a_socket_and_nothing_else(case: str) -> None:
    worker, messenger = pod("fedfuse-platform", case)["containers"]
    users = [one["securityContext"]["runAsUser"] for one in (worker, messenger)]
    group = pod("fedfuse-platform", case)["securityContext"]["runAsGroup"]
    assert users[0] != users[1] and 0 not in users
    assert worker["args"][worker["args"].index("--messenger") + 1] == str(users[1])
    assert worker["args"][worker["args"].index("--group") + 1] == str(group)
    shared = {one["name"] for one in worker["volumeMounts"]} & {one["name"] for one in messenger["volumeMounts"]}
    assert shared == {"socket"}
    assert "envFrom" not in messenger and ("envFrom" in worker) == (case == "full")
    assert ("--free" in messenger["args"]) == (case == "full")  # caged, unless a person turns it off


def script(chart: str, container: str, places: dict[str, Path], case: str = "full") -> tuple[str, dict[str, str]]:
    """An init container's script with folders of the test in the place of its volumes, and what it finds in its environment."""
    (found,) = [one for one in pod(chart, case)["initContainers"] if one["name"] == container]
    (text,) = found["args"]
    for mounted, path in places.items():
        text = re.sub(rf"(?<![\w-]){mounted}(?=[/ ])", str(path), text)  # where a word begins, not within a path
    return text, {one["name"]: one["value"] for one in found.get("env", ())}


def run_script(text: str, environment: dict[str, str], *, code: int = 0) -> str:
    path = f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # As a pod's user, also where the tests are root's: a file without the right to write is not written over.
    bound = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 and shutil.which("setpriv") else []
    done = subprocess.run(
        [*bound, "sh", "-euc", text], env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stderr


def modes(folder: Path) -> set[int]:
    """Rights of others and of the group in all of a folder."""
    return {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in [folder, *folder.rglob("*")]}


def test_a_coordinators_volume_gets_its_folder_once(tmp_path: Path) -> None:
    volume, keys = tmp_path / "data", tmp_path / "keys"
    volume.mkdir(), keys.mkdir()
    old = create_coordinator_folder(
        tmp_path / "old", host="fed.example.org", name="spring", port=8000, control_port=8001, listen="0.0.0.0"
    )
    for path in (old.federation_key, old.model_key, old.model_key.with_suffix(".pub"), *(old.folder / "ca").iterdir()):
        shutil.copy(path, keys / path.name)
        (keys / path.name).chmod(0o440)  # as Kubernetes mounts a Secret for a group
    text, environment = script("fedfuse-coordinator", "folder", {"/data": volume, "/keys": keys})
    (volume / "new").mkdir()  # of a start that was cut short
    run_script(text, environment)
    made = open_coordinator(volume / "coordinator")
    assert made.file.host == "fed.example.org" and made.file.port == 9000
    assert modes(volume / "coordinator") == {0}
    # The keys are the Secret's, and the certificate is of its authority.
    assert load_ed25519(made.federation_key).private_bytes_raw() == load_ed25519(old.federation_key).private_bytes_raw()
    assert made.certificates.authority.read_bytes() == old.certificates.authority.read_bytes()
    subprocess.run(["openssl", "verify", "-CAfile", old.certificates.authority, made.certificates.server], check=True)
    # A later start leaves everything as it is, and closes what a driver has opened.
    before = made.certificates.server.read_bytes()
    made.federation_key.chmod(0o660)
    run_script(text, environment)
    assert made.certificates.server.read_bytes() == before and modes(volume / "coordinator") == {0}


def test_a_coordinator_without_a_secret_makes_its_keys(tmp_path: Path) -> None:
    text, environment = script("fedfuse-coordinator", "folder", {"/data": tmp_path, "/keys": tmp_path / "none"}, "plain")
    run_script(text, environment)
    load_ed25519(open_coordinator(tmp_path / "coordinator").federation_key)


def test_a_platforms_volume_keeps_one_identity(tmp_path: Path) -> None:
    volume, secret, run = (tmp_path / name for name in ("data", "secret", "run"))
    for folder in (volume, secret, run):
        folder.mkdir()
    for name in ("platform.toml", "invitation.toml", "peers.toml"):
        (secret / name).write_text(name)
        (secret / name).chmod(0o440)
    make_ed25519(secret / "identity.key")
    (secret / "identity.key").chmod(0o440)
    text, environment = script("fedfuse-platform", "worker-folder", {"/data": volume, "/secret": secret, "/socket": run})
    run_script(text, environment)
    place = volume / "platform"
    assert modes(place) == {0}
    load_ed25519(place / "worker" / "identity.key")
    assert stat.S_IMODE((run / "worker").stat().st_mode) == 0o750
    # Configuration follows the Secret; the ledger's owner does not change.
    (secret / "platform.toml").write_text("newer")
    run_script(text, environment)  # over a copy that was made of one that nobody may write
    assert (place / "platform.toml").read_text() == "newer"
    (secret / "identity.key").unlink()
    make_ed25519(secret / "identity.key")
    assert "another identity" in run_script(text, environment, code=1)


def test_a_messengers_folder_is_its_users_alone(tmp_path: Path) -> None:
    place, secret = tmp_path / "platform", tmp_path / "secret"
    place.mkdir(), secret.mkdir()
    for name in ("invitation.toml", "node.key", "ca.crt", "trusted.yaml"):
        (secret / name).write_text(name)
        (secret / name).chmod(0o440)
    text, environment = script("fedfuse-platform", "messenger-folder", {"/platform": place, "/secret": secret})
    for _ in range(2):  # a node that is started again runs it once more
        run_script(text, environment)
    assert modes(place / "node") == {0}
    assert sorted(path.name for path in (place / "node").iterdir()) == ["ca.crt", "node.key", "trusted.yaml"]


def test_charts_are_of_this_version() -> None:
    from shared.base.version import VERSION

    for chart in VALUES:
        about = yaml.safe_load((HELM / chart / "Chart.yaml").read_text())
        assert (about["version"], about["appVersion"]) == (VERSION, VERSION)
