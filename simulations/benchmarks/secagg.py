"""What the secure sum costs: processor time of either side against Flower's legacy SecAgg+, on the same vectors.

    python -m simulations.benchmarks.secagg --participants 50 --parameters 300000 [--dropout 0.2] [--json]

One round in this process, in fixed point from real vectors to the real sum, with every message and state as bytes. Both sides
have the same neighbours and the same threshold of shares. Our keys and shares are made once for a run of `--rounds` rounds,
theirs for each round. So `ratios`, theirs over ours, takes for a run of theirs so many times the round that is measured, and
for a run of ours the set-up, the first round, and the second for each of the others. `ratios_of_one_round` is theirs over our
set-up and first round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from client.privacy.noise_sources import SecureNoise
from client.secagg.enrolment import Dealing, Enrolled
from client.secagg.participant import Active
from shared.secagg.codec import decode, encode
from shared.secagg.fixed_point import FixedPoint
from shared.secagg.identity import Identity
from shared.secagg.masks import MaskFrame
from shared.secagg.messages import Confirm, Confirmed, Deal, Dealt, Mask, Masked, Unmask, Unmasked
from shared.secagg.roster import Advert, SumTerms
from strategies.secure_sum.masked_sum import Round
from strategies.secure_sum.protocol import Enrolment, SumCoordinator

THRESHOLD = 0.8
COLLUDERS = 1
CLIP = 1.0
NOISE = 1.0
QUESTION = bytes(32)
"""Digest of what all platforms are asked; what it is a digest of is counted elsewhere."""


class Stopwatch:
    """Processor seconds by side and phase, and those of each platform."""

    def __init__(self) -> None:
        self.client: Counter[str] = Counter()
        self.server: Counter[str] = Counter()

    @contextmanager
    def at(self, side: str, phase: str) -> Iterator[None]:
        """Add what the block takes."""
        began = time.process_time()
        yield
        getattr(self, side)[phase] += time.process_time() - began


class Bench:
    """A secure sum among platforms whose vectors are drawn when they are needed.

    Args:
        rounds: Rounds that keys are made for.
    """

    def __init__(self, *, participants: int, parameters: int, rounds: int = 1) -> None:
        self.participants, self.parameters = participants, parameters
        self.clock = Stopwatch()
        self.uplink: Counter[str] = Counter()
        self.terms = SumTerms(run="bench", rounds=rounds, threshold=THRESHOLD, colluders=COLLUDERS)
        self.names = [f"p{number:05d}" for number in range(participants)]
        self.identities = [Identity(os.urandom(32)) for _ in self.names]
        self.peers = {name: identity.public for name, identity in zip(self.names, self.identities, strict=True)}
        self.platforms: list[Any] = [None] * participants
        quorum = self.terms.quorum(participants)
        self.point = FixedPoint(
            dimension=parameters, participants=participants, honest=quorum.honest, clip=CLIP, noise_multiplier=NOISE
        )
        self.noise = SecureNoise()

    def vector(self, number: int) -> NDArray[np.float32]:
        """A platform's plain update; the same whenever it is asked for."""
        draw = np.random.default_rng([7, number]).standard_normal(self.parameters, dtype=np.float32)
        return draw * np.float32(CLIP / np.sqrt(self.parameters))

    def set_up(self) -> None:
        """Keys and shares."""
        enrolment = Enrolment(self.terms)
        for number, name in enumerate(self.names):
            with self.clock.at("client", "keys"):
                platform = Enrolled.enrol(self.terms, platform=name, identity=self.identities[number], entropy=os.urandom)
                sent = encode(platform.advert)
            self.platforms[number] = platform
            self.uplink["setup"] += len(sent)
            with self.clock.at("server", "keys"):
                enrolment.add(decode(Advert, sent), platform=name)
        with self.clock.at("server", "keys"):
            self.coordinator = SumCoordinator(enrolment.close())
        for number in range(self.participants):
            with self.clock.at("server", "deal"):
                asked = encode(self.coordinator.deal_for(number))
            with self.clock.at("client", "deal"):
                platform, answer = self.platforms[number].deal(decode(Deal, asked), peers=self.peers, entropy=os.urandom)
                sent = encode(answer)
            self.platforms[number] = platform
            self.uplink["setup"] += len(sent)
            with self.clock.at("server", "deal"):
                self.coordinator.dealt(number, decode(Dealt, sent))
        self.coordinator.settle()

    def round(self, round_: int, *, gone: set[int]) -> bool:
        """A round without those in `gone`; whether the sum is exact."""
        clock, uplink = self.clock, self.uplink
        work = Round(self.coordinator, MaskFrame(round=round_, length=self.parameters, bits=self.point.bits, question=QUESTION))
        wanted = np.zeros(self.parameters, np.uint32)
        for number in range(self.participants):
            if number in gone:
                continue
            plain = self.vector(number).astype(np.float64)
            with clock.at("server", "mask"):
                asked = encode(work.mask_for(number))
            platform: Active | Dealing = self.platforms[number]
            with clock.at("client", "open"):
                request = decode(Mask, asked)
                if isinstance(platform, Dealing):
                    platform = platform.open(request)
            with clock.at("client", "fixed point"):
                words = self.point.wrap(self.point.encode(plain, self.noise))
            with clock.at("client", "mask"):
                platform, answer = platform.mask(platform.ready(request, QUESTION), words, identity=self.identities[number])
                sent = encode(answer)
            with clock.at("client", "state"):
                encode(platform)
            self.platforms[number] = platform
            wanted += words
            uplink["round"] += len(sent)
            with clock.at("server", "mask"):
                work.masked(number, decode(Masked, sent))
        with clock.at("server", "mask"):
            work.close()
        if not work.whole:
            self._confirm(work)
        self._unmask(work)
        with clock.at("server", "sum"):
            total = work.sum()
            self.point.decode(total)
        return bool((total == wanted & np.uint32((1 << self.point.bits) - 1)).all())

    def _confirm(self, work: Round) -> None:
        for number in work.survivors:
            with self.clock.at("server", "confirm"):
                asked = encode(work.confirm())
            with self.clock.at("client", "confirm"):
                self.platforms[number], answer = self.platforms[number].confirm(
                    decode(Confirm, asked), identity=self.identities[number]
                )
                sent = encode(answer)
            self.uplink["round"] += len(sent)
            with self.clock.at("server", "confirm"):
                work.confirmed(number, decode(Confirmed, sent))

    def _unmask(self, work: Round) -> None:
        for number in work.survivors:
            with self.clock.at("server", "unmask"):
                asked = encode(work.unmask_for(number))
            with self.clock.at("client", "unmask"):
                self.platforms[number], answer = self.platforms[number].unmask(decode(Unmask, asked))
                sent = encode(answer)
            self.uplink["round"] += len(sent)
            with self.clock.at("server", "unmask"):
                work.unmasked(number, decode(Unmasked, sent))


def measure_secagg(*, participants: int, parameters: int, dropout: float, rounds: int, legacy: bool = True) -> dict[str, Any]:
    """Our figures and theirs at one size; milliseconds of processor time."""
    gone = set(np.random.default_rng(1).permutation(participants)[: round(dropout * participants)].tolist())
    alive = participants - len(gone)
    bench = Bench(participants=participants, parameters=parameters, rounds=rounds)
    bench.point.encode(np.zeros(parameters), bench.noise)  # computes the scale, once in a run
    bench.set_up()
    setup, bench.clock = bench.clock, Stopwatch()
    exact = bench.round(1, gone=gone)
    first = later = bench.clock
    if rounds > 1:
        bench.clock, bench.uplink["round"] = Stopwatch(), 0
        exact &= bench.round(2, gone=gone)
        later = bench.clock
    quorum = bench.coordinator.roster.quorum
    result: dict[str, Any] = {
        "participants": participants,
        "parameters": parameters,
        "dropped": len(gone),
        "rounds": rounds,
        "threshold": quorum.threshold,
        "colluders": quorum.colluders,
        "neighbours": quorum.degree,
        "share_threshold": quorum.shares,
        "bits": bench.point.bits,
        "ours": {
            "exact": exact,
            "client_ms_each": {
                "setup": _milliseconds(setup.client, participants),
                "first": _milliseconds(first.client, alive),
                "later": _milliseconds(later.client, alive),
            },
            "server_ms": {
                "setup": _milliseconds(setup.server),
                "first": _milliseconds(first.server),
                "later": _milliseconds(later.server),
            },
            "uplink_bytes_each": round(bench.uplink["round"] / alive),
            "uplink_over_16_bit": round(bench.uplink["round"] / alive / (2 * parameters), 4),
            "setup_uplink_bytes_each": round(bench.uplink["setup"] / participants),
        },
    }
    if legacy:
        from simulations.benchmarks.legacy_secagg import legacy_round

        expected = np.zeros(parameters)
        for number in set(range(participants)) - gone:
            expected += bench.vector(number) / alive
        theirs = legacy_round(
            bench.vector,
            participants=participants,
            gone=gone,
            shares=quorum.degree + 1,
            threshold=quorum.shares,
            expected=expected,
        )
        result["theirs"] = {
            "exact": theirs.exact,
            "client_ms_each": round(1000 * theirs.client / alive, 1),
            "server_ms": round(1000 * theirs.server, 1),
        }
        sides = ("client", "server")
        ours = {side: [sum(getattr(clock, side).values()) for clock in (setup, first, later)] for side in sides}
        run = {side: once + begin + (rounds - 1) * other for side, (once, begin, other) in ours.items()}
        result["ratios"] = {f"{side}_cpu": round(rounds * getattr(theirs, side) / run[side], 2) for side in sides}
        result["ratios_of_one_round"] = {f"{side}_cpu": round(getattr(theirs, side) / sum(ours[side][:2]), 2) for side in sides}
    return result


def _milliseconds(seconds: Counter[str], among: int = 1) -> dict[str, float]:
    each = {phase: round(1000 * value / among, 3) for phase, value in seconds.items()}
    return {**each, "all": round(sum(each.values()), 3)}


def memory(*, participants: int, parameters: int) -> dict[str, Any]:
    """The coordinator's memory while the masked vectors come: the most that one of them takes, and what stays of it."""
    bench = Bench(participants=participants, parameters=parameters)
    bench.set_up()
    work = Round(bench.coordinator, MaskFrame(round=1, length=parameters, bits=bench.point.bits, question=QUESTION))
    most = kept = 0
    for number in range(participants):
        words = np.random.default_rng(number).integers(0, 1 << bench.point.bits, parameters, dtype=np.uint32)
        request = work.mask_for(number)
        platform = bench.platforms[number].open(request)
        _, answer = platform.mask(platform.ready(request, QUESTION), words, identity=bench.identities[number])
        bench.platforms[number] = None
        sent = encode(answer)
        del request, platform, answer, words
        gc.collect()
        tracemalloc.start()
        work.masked(number, decode(Masked, sent))
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        most, kept = max(most, peak), kept + now
    return {
        "participants": participants,
        "parameters": parameters,
        "vector_bytes": 4 * parameters,
        "most_bytes_of_one_answer": most,
        "bytes_kept_of_each": round(kept / participants),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The secure sum's processor time, against Flower's legacy SecAgg+.")
    parser.add_argument("--participants", type=int, default=50, help="number of platforms")
    parser.add_argument("--parameters", type=int, default=300_000, help="length of the vectors")
    parser.add_argument("--dropout", type=float, default=0.0, help="part of the platforms lost before they send their vector")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the run, which share our set-up")
    parser.add_argument("--without-legacy", action="store_true", help="only our own side")
    parser.add_argument("--memory", action="store_true", help="measure the coordinator's memory instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.participants < 1 or options.parameters < 1 or not 0 <= options.dropout < 1 or options.rounds < 1:
        parser.error("needs at least 1 platform, 1 parameter, 1 round and a dropout below 1")
    if options.memory:
        result = memory(participants=options.participants, parameters=options.parameters)
    else:
        result = measure_secagg(
            participants=options.participants,
            parameters=options.parameters,
            dropout=options.dropout,
            rounds=options.rounds,
            legacy=not options.without_legacy,
        )
    result["cores"] = os.cpu_count()
    if options.json or options.memory:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    Console().print(_table(result))


def _table(result: dict[str, Any]) -> Table:
    ours, theirs, ratios = result["ours"], result.get("theirs"), result.get("ratios")
    table = Table(
        title=f"secure sum of {result['parameters']:,} parameters, {result['participants']} platforms, {result['dropped']} lost, "
        f"{result['neighbours']} neighbours, {result['bits']} bits"
    )
    for column in ("processor time, ms", "set-up", "a round", "legacy SecAgg+", "ratio in a run"):
        table.add_column(column, justify="left" if column.startswith("proc") else "right")
    for side, key in (("client, each", "client_ms_each"), ("server", "server_ms")):
        table.add_row(
            side,
            f"{ours[key]['setup']['all']:,.1f}",
            f"{ours[key]['later']['all']:,.1f}",
            f"{theirs[key]:,.1f}" if theirs else "-",
            f"{ratios[f'{key[:6]}_cpu']:.1f}x" if ratios else "-",
        )
    table.caption = f"exact: ours {ours['exact']}, theirs {theirs['exact'] if theirs else '-'}; " + (
        f"uplink {ours['uplink_over_16_bit']:.3f} of 16-bit numbers; {result['rounds']} rounds in a run"
    )
    return table


if __name__ == "__main__":
    main()
