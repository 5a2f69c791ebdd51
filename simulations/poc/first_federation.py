"""From nothing to a finished federation of three shops on this machine: the commands of docs/deploy.md, one after the other."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.base.errors import FedfuseError, shell_word
from simulations.local_deployment import LocalDeployment
from simulations.poc.poc_folder import PocFolder
from simulations.poc.processes import MARK
from simulations.worlds.large import LargeSizes, write_large_world

SIZES = LargeSizes(users=400, items=300, events=3_200, platforms=3, in_common=0.8)
"""Three shops that have 80 % of their range in common, under other ids: small, so that every command answers in seconds."""
RUN = "first"
EPSILON, DELTA = 8.0, 1e-5
PLATFORMS = SIZES.named()

Tell = Callable[[str], None]
Words = Sequence[str]


class FirstFederation:
    """Makes, starts and runs the federation of a folder.

    Args:
        folder: Held by the caller (`PocFolder.alone`).
        invoke: Runs a command of Fedfuse and returns what it printed.
        follow: Runs a command of Fedfuse that prints for the person; its exit code.
        tell: Called with what is done, a line each.
    """

    def __init__(self, folder: PocFolder, *, invoke: Callable[[Words], str], follow: Callable[[Words], int], tell: Tell) -> None:
        self._folder, self._follow, self._tell, self._begin = folder, follow, tell, time.monotonic()
        self._local = LocalDeployment(
            folder.root,
            name="poc",
            environment={MARK: str(folder.root)},
            invoke=invoke,
            tell=lambda text: self._say(f"  {text}"),
        )

    def make_and_run(self) -> None:
        """All steps; what was reached when it fails or is stopped is made anew the next time.

        Raises:
            FedfuseError: a step failed.
        """
        folder = self._folder
        folder.begin()
        self._say(f"three shops of {SIZES.users:,} customers each are invented")
        user = self._write_world()
        self._say("the coordinator: certificate authority, TLS certificate, keys, configuration")
        self._local.make()
        self._name_registry()
        self._say("the coordinator's server is started")
        self._local.serve()
        for name in PLATFORMS:
            self._say(f"{name} is invited, makes its keys, drafts platform.toml from its tables, and is approved")
            tables = folder.root / "world" / name
            self._local.add(name, "--data", tables, users=SIZES.users, epsilon=EPSILON, delta=DELTA)
        self._say("each shop takes down the identities of the others, for the secure sum")
        for name in PLATFORMS:
            self._local.trust(name, PLATFORMS)
        self._join()
        self._say("a federation: which items are liked together, under a secure sum of three")
        self._federate()
        self._say("the published model is pulled, and its signature checked")
        trusted = folder.root / PLATFORMS[0] / "models.pub"
        self._local.command("pull", folder.root / "registry", "--trust", trusted, "--out", folder.model)
        folder.write(complete=True, user=user)

    def start_again(self) -> None:
        """Start the processes of a federation that was made and run before, and stopped.

        Raises:
            FedfuseError: one does not start, because its port is taken by now, say.
        """
        self._say("the coordinator's server is started")
        self._local.serve()
        self._join()

    def _join(self) -> None:
        self._say(f"{', '.join(PLATFORMS)} are started: each a worker with the rows, and a messenger in a cage")
        for name in PLATFORMS:
            self._local.join(name)
        self._local.await_online(*PLATFORMS)

    def _write_world(self) -> str:
        """Write the shops' tables; returns a customer of the first shop."""
        import polars as pl

        world = write_large_world(self._folder.root / "world", SIZES, seed=0, kind="csv")
        orders = next(iter(sorted((world.folder / PLATFORMS[0]).glob("orders-*.csv"))))
        return str(pl.read_csv(orders, n_rows=1)["customer"][0])

    def _name_registry(self) -> None:
        path = self._folder.coordinator / "server.toml"
        text = path.read_text(encoding="utf-8")
        named = text.replace('registry = ""', f"registry = {json.dumps(str(self._folder.root / 'registry'))}")
        if named == text:
            raise FedfuseError("has no line for the registry", where=str(path), do="report this: it is a mistake of Fedfuse")
        path.write_text(named, encoding="utf-8")

    def _federate(self) -> None:
        code = self._follow([*federation_words(self._folder.coordinator), "--name", RUN])
        if code:
            raise FedfuseError(
                f"the federation ended with code {code}",
                where=str(self._folder.coordinator / "runs" / RUN),
                do="see what it says; `fedfuse poc` starts anew",
            )

    def _say(self, text: str) -> None:
        self._tell(f"[{time.monotonic() - self._begin:5.1f} s] {text}")


def federation_words(coordinator: Path) -> list[str]:
    """Words of the command that runs a federation of all three."""
    count = str(len(PLATFORMS))
    return ["run", "--server", str(coordinator), "--platforms", count, "--set", f"server.minimum_platforms={count}"]


def commands_to_try(folder: PocFolder, program: str) -> list[tuple[str, str]]:
    """(Command, what it does), to be copied: with the folders that are there."""

    def at(*parts: str) -> str:
        return shell_word(folder.shown.joinpath(*parts))

    shop, coordinator, model = at(PLATFORMS[0]), at("coordinator"), at("model")
    user = folder.record().get("user", "")
    lines = [
        (f"status --server {coordinator}", "the coordinator's view: who is connected, budgets, the last run"),
        (f"client status {shop}", "a platform's view: what its ledger says is spent"),
        (f"evaluate {shop} --model {model}", "what has the shop gained? own, global and fused, on its own rows"),
        (f"recommend --platform {shop} --model {model} --user {user} --top 5", "and why"),
        (f"audit {shop} --model {model} --trust {at(PLATFORMS[0], 'models.pub')}", "does the ledger bear out what left?"),
        (f"report {at('coordinator', 'runs', RUN)}", "one page for everybody"),
        (f"doctor {shop}", "would this machine do?"),
        (shlex.join(federation_words(folder.shown / "coordinator")), "another run, of the budget that is left"),
        (f"runs --server {coordinator}", "what became of each run; `run --detach` gives the terminal back"),
        (f"server ui {coordinator}", "all of it in a browser of this machine"),
        (f"log --server {coordinator}", "who did what"),
        (f"revoke {PLATFORMS[-1]} --server {coordinator}", "shut a platform out; its log says so"),
        (f"poc stop{folder.option}", "end all processes; the folder stays, and `fedfuse poc` starts them again"),
    ]
    return [(f"{program} {words}", what) for words, what in lines]
