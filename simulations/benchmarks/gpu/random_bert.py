"""BERTs with random weights and a tokenizer for ASCII text: where speed counts, or that it runs, and no weights are at hand.

    python -m simulations.benchmarks.gpu.random_bert FOLDER [--tiny]

Prints as JSON the backbone of the steps that are not about BERT-base: MiniLM where it is installed, else a random one of its
sizes, which it writes into the folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import string
from collections.abc import Iterable
from pathlib import Path

from shared.model.backbone import EMBEDDED, EMBEDDED_PACKAGE, BackboneShape

CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
TINY = BackboneShape(hidden=32, layers=3, heads=4, intermediate=48, vocabulary=0, positions=64)
MINILM = BackboneShape(hidden=384, layers=6, heads=12, intermediate=1536, vocabulary=30522, positions=512)


def write_random_bert(
    folder: Path,
    shape: BackboneShape,
    *,
    words: Iterable[str] = (),
    characters: str = CHARACTERS,
    seed: int = 7,
    spread: float = 0.2,
) -> str:
    """Write a BERT as `transformers` saves one.

    Args:
        shape: Its `vocabulary` grows to the tokenizer's where that is larger.
        words: That are one token each.
        characters: That are one token each, at the beginning of a word and within one.
        spread: Standard deviation of the weights.

    Returns:
        The folder, as a backbone's name.
    """
    import torch
    from transformers.models.bert import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *characters, *(f"##{c}" for c in characters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)), encoding="utf-8")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=max(shape.vocabulary, len(tokenizer)),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        initializer_range=spread,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Write it if need be, and print its name."""
    parser = argparse.ArgumentParser(description="MiniLM, or a random BERT of its sizes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a random one of three narrow layers instead")
    options = parser.parse_args()
    if not options.tiny and importlib.util.find_spec(EMBEDDED_PACKAGE) is not None:
        name = EMBEDDED
    elif options.tiny:
        name = write_random_bert(options.folder, TINY)
    else:
        name = write_random_bert(options.folder, MINILM, spread=0.02)
    print(json.dumps({"backbone": name, "weights": "trained" if name == EMBEDDED else "random"}))


if __name__ == "__main__":
    main()
