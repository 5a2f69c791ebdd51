"""Pictures and sounds become vectors that a platform reads; what is broken is named, what was interrupted goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import fedfuse
from client.config.platform_file import load
from client.embedding import media_decoding
from client.embedding.embed_files import embed_files
from client.embedding.media_decoding import BrokenMedia, read_image, read_sound
from client.embedding.media_encoder import MediaEncoder
from client.embedding.media_files import IMAGES, SOUNDS, find_media
from client.sources.platform_tables import read_tables
from shared.base.errors import InputError

Write = Callable[..., Path]


def table(path: Path) -> dict[str, np.ndarray]:
    rows = pl.read_parquet(path)
    assert rows.columns == ["item", "vector"]
    return {item: np.asarray(vector) for item, vector in rows.iter_rows()}


def test_a_platform_reads_what_was_embedded(sees: str, pictures: Path, write_platform: Write, tmp_path: Path) -> None:
    out = tmp_path / "world" / "images.parquet"
    out.parent.mkdir()
    made = CliRunner().invoke(
        fedfuse.app, ["embed", str(pictures), "--encoder", sees, "--out", str(out), "--batch", "5", "--json"]
    )
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["items"], told["width"], told["broken"]) == (12, 32, {})
    path = write_platform(extra='[sources.images]\nkind = "vectors"\npath = "images.parquet"\n')
    tables = read_tables(load(path))
    own = tables.item_vectors["images"]
    assert own.present.all() and own.values.shape == (12, 32)
    # They are the encoder's own, of length 1, and no other file of the batch is in them.
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(sees).eval(), AutoImageProcessor.from_pretrained(sees)
    for item in (0, 7):
        with Image.open(next(pictures.rglob(f"i{item}.png"))) as image, torch.inference_mode():
            expected = model(**processor(images=image, return_tensors="pt")).pooler_output[0].numpy()
        found = own.values[list(tables.item_ids).index(f"i{item}")]
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_broken_files_are_named_and_the_others_are_embedded(sees: str, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "i0.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "words.png").write_text("no picture")
    (pictures / "notes.txt").write_text("not even named like one")
    out = tmp_path / "v.parquet"
    made = CliRunner().invoke(fedfuse.app, ["embed", str(pictures), "--encoder", sees, "--out", str(out)])
    assert made.exit_code == 0 and "Traceback" not in made.output, made.output
    assert "3 files could not be read" in made.stderr and "cut.png" in made.stderr and "notes.txt" in made.stderr
    assert len(table(out)) == 12
    with pytest.raises(InputError, match="none of 1 files could be read"):
        embed_files(find_media([pictures / "words.png"], endings=IMAGES), MediaEncoder(sees), out=out)
    assert len(table(out)) == 12


def test_a_bomb_is_a_broken_file(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_decoding, "MOST_PIXELS", 100)
    with pytest.raises(BrokenMedia, match="pixels"):
        read_image(pictures / "i0.png")


def test_what_was_interrupted_goes_on(sees: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, out = MediaEncoder(sees), tmp_path / "v.parquet"
    read: list[str] = []
    prepared = MediaEncoder.prepared

    def counting(self: MediaEncoder, path: Path) -> object:
        if len(read) == 10 and not out.with_suffix(".go").exists():
            raise KeyboardInterrupt
        read.append(path.name)
        return prepared(self, path)

    monkeypatch.setattr(MediaEncoder, "prepared", counting)
    found = find_media([pictures], endings=IMAGES)
    with pytest.raises(KeyboardInterrupt):
        embed_files(found, encoder, out=out, batch=1)
    assert not out.exists() and len(read) == 10
    out.with_suffix(".go").touch()
    embed_files(found, encoder, out=out, batch=1)
    # A part of eight files was kept; of the second one two had been read.
    assert len(read) == 10 + 4 and not list(tmp_path.glob(".v.parquet*"))
    straight = tmp_path / "straight.parquet"
    embed_files(found, encoder, out=straight, batch=5)
    one, other = table(out), table(straight)
    assert one.keys() == other.keys()
    for item, vector in one.items():
        np.testing.assert_allclose(vector, other[item], atol=1e-6)


def test_ids_of_a_csv_file_and_several_files_of_an_item(sees: str, pictures: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.csv"
    ids.write_text("file,item\ni0.png,A\nmore/i1.png,A\ni2.png,B\n")
    found = find_media([pictures], endings=IMAGES, ids=ids)
    assert len(found.files) == 3 and len(found.passed) == 9
    encoder = MediaEncoder(sees)
    embed_files(found, encoder, out=tmp_path / "v.parquet")
    vectors = table(tmp_path / "v.parquet")
    two = np.concatenate([encoder.vectors([encoder.prepared(pictures / name)]) for name in ("i0.png", "more/i1.png")]).sum(0)
    np.testing.assert_allclose(vectors["A"], two / np.linalg.norm(two), atol=1e-6)
    assert vectors.keys() == {"A", "B"}
    (tmp_path / "wrong.csv").write_text("path,id\na,b\n")
    with pytest.raises(InputError, match="no column 'file' or 'item'"):
        find_media([pictures], endings=IMAGES, ids=tmp_path / "wrong.csv")
    with pytest.raises(InputError, match="no such file"):
        find_media([tmp_path / "nothing"], endings=IMAGES)


def test_sounds(hears: str, tmp_path: Path, tone: Callable[..., None]) -> None:
    pytest.importorskip("soundfile")
    folder = tmp_path / "songs"
    folder.mkdir()
    tone(folder / "low.wav", hertz=200)
    tone(folder / "same.wav", hertz=200)
    tone(folder / "stereo.wav", hertz=200, channels=2)
    tone(folder / "slow.wav", hertz=200, rate=44100, seconds=0.5)
    tone(folder / "long.wav", hertz=200, seconds=3.0)
    tone(folder / "short.wav", hertz=200, seconds=0.0002)
    (folder / "noise.mp3").write_bytes(b"not a sound")
    out = tmp_path / "v.parquet"
    made = embed_files(find_media([folder], endings=SOUNDS), MediaEncoder(hears, seconds=1.0), out=out)
    vectors = table(out)
    assert vectors.keys() == {"low", "same", "stereo", "slow", "long"}
    assert {Path(path).name for path in made.broken} == {"short.wav", "noise.mp3"}
    np.testing.assert_allclose(vectors["low"], vectors["same"], atol=1e-6)
    np.testing.assert_allclose(vectors["low"], vectors["stereo"], atol=1e-4)
    assert np.linalg.norm(vectors["low"]) == pytest.approx(1.0, abs=1e-5)
    assert len(read_sound(folder / "slow.wav", rate=16000, seconds=9)) == pytest.approx(8000, abs=2)
    assert len(read_sound(folder / "long.wav", rate=16000, seconds=1.0)) == 16000


class TestEncoders:
    def test_a_pooler_without_weights_is_not_used(self, sees: str, pictures: Path, tmp_path: Path) -> None:
        from transformers import ViTModel

        folder = tmp_path / "unpooled"
        shutil.copytree(sees, folder)
        ViTModel.from_pretrained(sees, add_pooling_layer=False).save_pretrained(folder)
        found = [MediaEncoder(str(folder)) for _ in range(2)]
        one, other = (encoder.vectors([encoder.prepared(pictures / "i0.png")])[0] for encoder in found)
        np.testing.assert_array_equal(one, other)
        inputs = found[0].prepared(pictures / "i0.png")
        with torch.inference_mode():
            hidden = ViTModel.from_pretrained(sees).eval()(**inputs).last_hidden_state.mean(1)[0].numpy()
        np.testing.assert_allclose(one, hidden / np.linalg.norm(hidden), atol=1e-5)

    def test_what_is_no_encoder_is_refused(self, tiny_bert: str, sees: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no preprocessor of pictures or sounds"):
            MediaEncoder(tiny_bert)
        with pytest.raises(InputError, match="no folder of a model"):
            MediaEncoder(str(tmp_path / "nothing"))
        folder = tmp_path / "pickled"
        shutil.copytree(sees, folder)
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be loaded"):
            MediaEncoder(str(folder))

    def test_missing_weights_are_refused(self, sees: str, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "partial"
        shutil.copytree(sees, folder)
        weights = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in weights.items() if "layer.1." not in name and "layers.1." not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match="weights are not in its files"):
            MediaEncoder(str(folder))
