"""What a published model vouches for of its platforms' ledgers, and from which folders and by whose signature it is taken."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server.registry.model_evidence import model_evidence
from server.registry.run_facts import FACTS
from shared.base.errors import FedfuseError, InputError
from shared.privacy.releases import ReleaseKind
from shared.registry.manifest import MANIFEST
from shared.registry.signing import Untrusted, make_key_pair
from tests.server.conftest import tally_of

MakeRun = Callable[..., Path]


def test_each_platform_has_a_witness_of_its_head_and_a_claim_of_its_mechanism(make_run: MakeRun) -> None:
    run = make_run(tallies={"shop": tally_of("shop", epsilon=2.5), "mute": tally_of("mute", ledger="", rounds=4)})
    for folder in (run, run / "model"):
        found = model_evidence(folder)
        (witness,) = found.witnesses
        assert (witness.platform, witness.head, witness.epsilon) == ("shop", "ab" * 32, 2.5) and "spring" in witness.source
        claims = {claim.platform: claim for claim in found.claims}
        assert list(claims) == ["mute", "shop"]
        assert (claims["shop"].run, claims["shop"].rounds, claims["mute"].rounds) == ("spring", 10, 4)
        assert claims["shop"].noise_multiplier == 1.25 and claims["shop"].steps >= 1
        assert "not checked against any key" in found.notes[0] and len(found.notes) == 1


def test_sums_that_are_released_once_have_the_noise_that_their_platform_declared(make_run: MakeRun) -> None:
    tally = tally_of("shop")
    tally = replace(tally, joined=replace(tally.joined, preference_noise=0.5, taste_noise=0.25))
    (trained,) = model_evidence(make_run(tallies={"shop": tally})).claims
    # Popularity is the prior of training, or a sum with five times the noise of that of pairs.
    assert trained.once == {ReleaseKind.POPULARITY: 3.0, ReleaseKind.PREFERENCES: 0.5, ReleaseKind.TASTE: 0.25}
    tally = replace(tally, joined=replace(tally.joined, preference_noise=0.8))
    (noisier,) = model_evidence(make_run("again", tallies={"shop": tally})).claims
    assert noisier.once[ReleaseKind.POPULARITY] == 4.0


def test_under_a_secure_sum_nobodys_own_noise_is_claimed(make_run: MakeRun) -> None:
    run = make_run(strategy="secure-sum", privacy={"generator": "secure", "noise": "distributed"})
    assert [(claim.noise_multiplier, claim.once) for claim in model_evidence(run).claims] == [(None, {}), (None, {})]


def test_without_privacy_no_mechanism_is_claimed(make_run: MakeRun) -> None:
    found = model_evidence(
        make_run(tallies={"shop": tally_of("shop", epsilon=math.inf)}, privacy={"epsilon": math.inf, "generator": "secure"})
    )
    assert found.claims == () and len(found.witnesses) == 1


def test_a_key_that_did_not_sign_vouches_for_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    stranger = make_key_pair(tmp_path / "key", tmp_path / "key.pub")
    with pytest.raises(Untrusted):
        model_evidence(make_run(), trusted=[stranger])


def test_facts_that_are_gone_or_others_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    model = make_run() / "model"
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    facts = next(copy.rglob(FACTS))
    facts.write_bytes(facts.read_bytes().replace(b"3.5", b"0.5"))
    with pytest.raises(InputError, match="not what the manifest says"):
        model_evidence(copy)
    facts.unlink()
    with pytest.raises(InputError, match="is missing"):
        model_evidence(copy)
    (copy / MANIFEST).unlink()
    with pytest.raises(InputError, match="no model is there"):
        model_evidence(copy)
    (copy / MANIFEST).write_bytes(b"{}")
    with pytest.raises(FedfuseError):
        model_evidence(copy)
    assert replace(model_evidence(model), notes=()).witnesses
