"""The commands of README and of "Ten minutes with your own files" are typed as they are written there, in order, on small shops.

What is served stays up until it has answered; everything else has to end with exit code 0.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.called_command import called
from tests.support.papers import FENCE, ROOT, commands, shell_lines

pytestmark = pytest.mark.timeout(3000)
README, OWN_FILES = ROOT / "README.md", ROOT / "docs" / "own-files.md"


def with_check_digit(digits: str) -> str:
    """An EAN-13 of twelve digits."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return digits + str(-total % 10)


def served(words: list[str]) -> None:
    """A command that serves: it answers, and ends when it is asked to."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *words, "--port", "0"]  # another test may serve at the same moment
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = re.search(r"http://[\w.:]+\d", said)
        assert address, said
        assert httpx.get(f"{address[0]}/healthz", timeout=60).json()["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()


def type_all(lines: list[str]) -> list[str]:
    """Type every command; the first two words of each."""
    typed = []
    for line in lines:
        for words in commands(line):
            assert words[0] == "fedfuse", line
            if words[1] == "serve":
                served(words)
            else:
                begin = time.monotonic()
                done = called(*words[1:])
                assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
                print(f"{time.monotonic() - begin:5.1f} s  {line}")
            typed.append(" ".join(words[:2]))
    return typed


def write_shop(folder: Path, name: str, *, users: int, seed: int) -> None:
    """`NAMEorders.csv` and `NAMEproducts.csv` with README's columns: customers like one kind of product most."""
    random = np.random.default_rng(seed)
    kinds = ("tea", "bread", "cheese")
    folder.mkdir(parents=True, exist_ok=True)
    products = [
        f"{name}{item},{kinds[item % 3]} {item},{kinds[item % 3]},{with_check_digit(f'40{item:010d}')},{1 + item % 20}.50"
        for item in range(45)
    ]
    orders = []
    for user in range(users):
        mine = np.flatnonzero(np.arange(45) % 3 == user % 3)
        for when, item in enumerate(random.permutation(np.r_[random.permutation(mine)[:6], random.integers(0, 45, 2)])):
            orders.append(f"{user},{name}{item},{'buy' if when % 3 else 'view'},2024-0{1 + when}-1{user % 9}")
    (folder / f"{name}orders.csv").write_text("\n".join(["customer,sku,what,at", *orders]) + "\n")
    (folder / f"{name}products.csv").write_text("\n".join(["sku,name,kind,ean,price", *products]) + "\n")


def write_pictures(folder: Path, encoder: Path) -> None:
    """Some pictures, and a small vision transformer that reads them."""
    import torch
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder.mkdir()
    random = np.random.default_rng(0)
    for item in range(12):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{item}.png")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(encoder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(encoder)


@pytest.mark.slow
def test_readme_with_your_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = tmp_path / "my-world"
    for seed, name in enumerate(("", "east-", "west-")):
        write_shop(world, name, users=60, seed=seed)
    section = README.read_text().partition("\n## With your own files\n")[2].partition("\n## ")[0]
    (platform,) = [body for language, body in FENCE.findall(section) if language == "toml"]
    for name in ("", "east-", "west-"):
        text = platform.replace("orders.csv", f"{name}orders.csv").replace("products.csv", f"{name}products.csv")
        (world / f"{name or 'shop-'}"[:-1]).with_suffix(".toml").write_text(
            text.replace('"shop"', f'"{name or "shop-"}"'.replace("-", ""))
        )
    write_pictures(tmp_path / "pictures", tmp_path / "models" / "dinov2-small")
    typed = type_all(shell_lines(README, under="With your own files"))
    assert len(typed) >= 12
    assert (tmp_path / "lists.parquet").exists() and (tmp_path / "runs" / "first" / "report" / "report.html").exists()
    assert (world / "images.parquet").exists() and (tmp_path / "study" / "results.csv").exists()


def test_ten_minutes_with_your_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's three bookshops, smaller: article numbers of their own, semicolons and German dates in one, ISBNs in all."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    isbns = [with_check_digit(f"978{book:09d}") for book in range(100)]
    for name, users, books, separator in (
        ("north", 80, range(60), ","),
        ("east", 60, range(20, 80), ","),
        ("south", 40, range(40, 100), ";"),
    ):
        short, german = name[0], separator == ";"
        orders = [("kunde" if german else "customer", "sku", "what", "datum" if german else "at")]
        for user in range(users):
            for book in [*random.permutation([one for one in books if one % 4 == user % 4])[:6], random.choice(list(books))]:
                day = f"{random.integers(1, 29):02d}", f"{random.integers(1, 13):02d}"
                date = f"{day[0]}.{day[1]}.2024" if german else f"2024-{day[1]}-{day[0]}"
                orders.append((f"{short}{user}", f"{short}-{book}", random.choice(["view", "buy"]), date))
        products = [
            ("sku", "title", "author", "isbn"),
            *((f"{short}-{book}", f"The winter {book}", f"Author {book % 4}", isbns[book]) for book in books),
        ]
        for file, rows in (("orders", orders), ("products", products)):
            Path(f"{name}_{file}.csv").write_text("\n".join(separator.join(map(str, row)) for row in rows) + "\n")
    lines = [line.replace("9780000000804", isbns[80]) for line in shell_lines(OWN_FILES)]
    typed = type_all(lines)
    assert typed.count("fedfuse world") == 3 and len(typed) >= 11
    draft = Path("books/south.toml").read_text()
    page = OWN_FILES.read_text()
    shown = next(body for language, body in FENCE.findall(page) if language == "toml")
    kept = [line for line in shown.splitlines() if line and not line.startswith("#")]
    assert len(kept) > 10
    assert not [line for line in kept if line not in draft], f"the page shows lines that no draft has:\n{draft}"
