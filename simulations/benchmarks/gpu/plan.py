"""The steps, the most useful first, and the time that each may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

_FOLDER = "simulations.benchmarks.gpu"
_PATIENCE = 6


@dataclass(frozen=True, kw_only=True)
class GpuStep:
    """A module that is run in a process of its own.

    Args:
        name: In the results.
        what: In the summary.
        module: With a `main`; prints JSON.
        options: Its command line.
        least, most: Seconds. What is kept for it while earlier steps run, and what it gets where there is more.
        environment: Laid over the runner's.
        torch: Whether the memory that torch takes on the GPU is counted, which imports it first.
    """

    name: str
    what: str
    module: str
    options: Sequence[str] = ()
    least: float
    most: float
    environment: Mapping[str, str] = field(default_factory=dict)
    torch: bool = True


MACHINE = GpuStep(name="machine", what="the machine", module=f"{_FOLDER}.machine", least=30, most=60, torch=False)


def backbone_step(folder: Path, *, tiny: bool) -> GpuStep:
    """What finds the backbone of the other steps."""
    options = [str(folder), *(["--tiny"] if tiny else [])]
    module = f"{_FOLDER}.random_bert"
    return GpuStep(name="backbone", what="the backbone", module=module, options=options, least=30, most=60, torch=False)


def steps(scratch: Path, *, backbone: str, tiny: bool) -> list[GpuStep]:
    """All of them: what is most useful fits in 4 minutes, everything in 8.

    Args:
        scratch: Folder for worlds and runs.
        backbone: Of the steps that are not about BERT-base, as `backbone_step` finds it.
        tiny: On the processor and in sizes that mean nothing, to try the script itself.
    """
    device = "cpu" if tiny else "cuda"
    training, encoding = "simulations.benchmarks.training", "simulations.benchmarks.encoding"
    on = ["--backbone", backbone, "--device", device]
    base = on if tiny else ["--backbone", "bert-base", "--device", device]
    sizes = ["--batch", "2", "--length", "8", "--turns", "1"] if tiny else ["--batch", "256", "--length", "64"]
    federation = [str(scratch / "federation"), "--backbone", backbone]
    if tiny:
        settings = ["model.rank=2", "model.user_tokens=24", "model.item_tokens=12", "training.local_steps=1"]
        federation += ["--users", "30", "--rounds", "1", "--set", *settings, "privacy.epsilon=100"]
    else:
        # Small enough for the processor's turn; at its own epsilon, so small a platform's plan could be refused as noise.
        federation += ["--users", "200", "--rounds", "2", "--set", "privacy.epsilon=50"]
    plan = [
        GpuStep(
            name="smoke",
            what="one private step",
            module=f"{_FOLDER}.smoke",
            options=[*on, *(["--users", "4", "--length", "8"] if tiny else [])],
            least=40,
            most=60,
        ),
        GpuStep(
            name="tests",
            what="tests/on_a_device.py",
            module=f"{_FOLDER}.device_tests",
            options=[device, *(["-k", "features"] if tiny else [])],
            least=30,
            most=90,
        ),
        GpuStep(
            name="training-eager",
            what="training, BERT-base, nothing compiled",
            module=training,
            options=[*base, *sizes, "--json", "--no-compile", *([] if tiny else ["--turns", "10"])],
            least=40,
            most=60,
        ),
        GpuStep(
            name="training",
            what="training, BERT-base",
            module=training,
            options=[*base, *sizes, "--json", *(["--no-compile"] if tiny else [])],
            least=60,
            most=180,
        ),
        GpuStep(
            name="training-minilm",
            what="training, MiniLM",
            module=training,
            options=[*on, *sizes, "--json", "--no-compile"],
            least=20,
            most=60,
        ),
        GpuStep(
            name="encoding",
            what="encoding, MiniLM",
            module=encoding,
            options=[*on, "--json", *(["--rows", "20", "--turns", "1"] if tiny else ["--rows", "20000"])],
            least=15,
            most=40,
        ),
        GpuStep(
            name="simulate-device",
            what="a federation of three platforms on the device",
            module=f"{_FOLDER}.simulated",
            options=federation,
            least=50,
            most=90,
        ),
        GpuStep(
            name="simulate-processor",
            what="the same federation on the processor",
            module=f"{_FOLDER}.simulated",
            options=federation,
            least=30,
            most=120,
            environment={"CUDA_VISIBLE_DEVICES": ""},
        ),
    ]
    # A dry run shares its processor with others, and shows nothing by being fast.
    return [replace(step, most=_PATIENCE * step.most) for step in plan] if tiny else plan


def limit(step: GpuStep, later: Sequence[GpuStep], left: float) -> float:
    """Seconds that a step may take.

    What later steps need at least is kept for them, as long as this one has what it needs at least.

    Args:
        left: Seconds until the end.

    >>> first = GpuStep(name="a", what="", module="", least=10, most=60)
    >>> second = GpuStep(name="b", what="", module="", least=20, most=60)
    >>> limit(first, [second], 100), limit(first, [second], 50), limit(first, [second], 25), limit(first, [second], 5)
    (60, 30, 10, 5)
    """
    return min(step.most, max(step.least, left - sum(one.least for one in later)), left)
