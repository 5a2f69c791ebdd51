"""The results in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]


def summarised(lines: Sequence[Mapping[str, Any]], *, tiny: bool = False) -> list[str]:
    """A paragraph for the machine and for each step that came to an end.

    Args:
        lines: Of `results.jsonl`.
        tiny: They are of a dry run.
    """
    said = ["A dry run in tiny sizes on the processor: none of these figures means anything."] if tiny else []
    for line in lines:
        said += _of_step(line)
    by_name = {line["step"]: line["figures"] for line in lines if line.get("rc") == 0 and line.get("figures")}
    if {"simulate-device", "simulate-processor"} <= set(by_name):
        there, here = by_name["simulate-device"], by_name["simulate-processor"]
        said.append(
            f"The federation takes {there['run_seconds']:.1f} s on {there['device']} and {here['run_seconds']:.1f} s on "
            f"the processor: {here['run_seconds'] / there['run_seconds']:.1f}x."
        )
    failed = [line["step"] for line in lines if line.get("rc") not in (0, None)]
    left_out = [line["step"] for line in lines if line.get("rc") is None]
    said.append(f"Failed: {', '.join(failed) or 'nothing'}. Not begun: {', '.join(left_out) or 'nothing'}.")
    return said


def _of_step(line: Mapping[str, Any]) -> list[str]:
    name, rc = line["step"], line["rc"]
    title = f"{name} ({line['what']})"
    if rc is None:
        return [f"{title}: {line['said']}."]
    if rc != 0:
        ended = f"stopped after its {line['limit']:.0f} s" if line.get("timed_out") else f"failed with {rc}"
        last = (line.get("said") or "").strip().splitlines()[-1:]
        head = f"{title}: {ended}{': ' + last[0] if last else ''}"
    else:
        memory = [f"{line['peak_host_mib']:.0f} MiB of memory"] if "peak_host_mib" in line else []
        if line.get("peak_device_mib") is not None:
            memory.append(f"{line['peak_device_mib']:.0f} MiB on the device")
        head = f"{title}: done in {line['seconds']:.1f} s{', at most ' + ' and '.join(memory) if memory else ''}"
    say = _WORDS.get(name.partition("-")[0])
    figures = line.get("figures")
    return [head, *(f"  {one}" for one in say(figures))] if say is not None and isinstance(figures, Mapping) else [head]


def _machine(found: Figures) -> list[str]:
    processor = f"{found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB"
    software = f"Python {found['python']}, torch {found['torch']}, CUDA {found.get('cuda')}, driver {found['driver']}"
    if found["gpu"] is None:
        return [f"no GPU that torch sees; {processor}; {software}"]
    return [f"{found['gpu']}, {found['gpu_memory_gib']} GiB; {processor}; {software}"]


def _backbone(found: Figures) -> list[str]:
    return [f"{Path(found['backbone']).name}, {found['weights']} weights"]


def _smoke(found: Figures) -> list[str]:
    return [
        f"{found['users']} users x {found['length']} tokens on {found['device']}: {1000 * found['step_seconds']:.1f} ms a step, "
        f"{found['first_gradient_seconds']:.1f} s for the first gradient",
        f"its sum of clipped gradients is {found['processor_gap']:.1e} from the processor's, of the norm; "
        f"in one pass or in two halves: {found['halves_gap']:.1e} apart",
    ]


def _tests(found: Figures) -> list[str]:
    failed = f", {len(found['failed'])} failed: {'; '.join(found['failed'])}" if found["failed"] else ", none failed"
    return [f"{found['passed']} passed, {found['skipped']} skipped{failed}"]


def _training(found: Figures) -> list[str]:
    rates = ", ".join(f"{side} {rate:,.0f}" for side, rate in found["sequences_per_second"].items())
    ratios = ", ".join(f"{name.replace('_vs_', ' / ')} {ratio:.2f}x" for name, ratio in found["ratios"].items())
    peaks = ", ".join(f"{side} {found['sides'][best]['peak_mib']:,.0f}" for side, best in found["best"].items())
    return [
        f"{Path(found['backbone']).name}, {found['batch']} x {found['length']} tokens, {found['device']}",
        f"sequences a second: {rates}",
        f"ratios: {ratios}",
        f"peak MiB of a step: {peaks}",
        f"matrix products reach {found['matrix_tflops']} TFLOP/s; all layers: "
        f"{found['all_layers_share_of_matrix_rate']:.0%} of the time is theirs",
    ]


def _encoding(found: Figures) -> list[str]:
    rates = (f"{tokens} {found['rows'] / side['seconds']:,.0f}" for tokens, side in found["sides"].items())
    return [f"texts a second by tokens at once: {', '.join(rates)}"]


def _simulate(found: Figures) -> list[str]:
    return [
        f"{found['platforms']} platforms of {found['users']:,} users, {found['rounds']} rounds, {found['backbone']}, on "
        f"{found['device']}: {found['run_seconds']:.1f} s"
    ]


_WORDS: dict[str, Callable[[Figures], list[str]]] = {
    "machine": _machine,
    "backbone": _backbone,
    "smoke": _smoke,
    "tests": _tests,
    "training": _training,
    "encoding": _encoding,
    "simulate": _simulate,
}
