"""What the shops of a generated world sell: each product has a GTIN, by which two shops that sell it can find that out."""

from __future__ import annotations

from dataclasses import dataclass

from client.sources.item_keys import check_digit
from simulations.worlds.taste import AXES, TasteCatalogue
from simulations.worlds.writers import Subject, Writer

_AMERICAN, _OTHER = "0614141", "952"
"""Prefixes of GTINs that GS1 uses in examples alone. With a leading 0 a GTIN-13 is a UPC, whose 12 digits say the same."""
_TRIES = 50


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product, whoever sells it.

    Args:
        gtin: 13 digits.
        thing: What it is, a noun.
        price: Recommended, in whole cents.
    """

    gtin: str
    subject: Subject
    thing: str
    price: int


def gtin13(number: int, *, american: bool) -> str:
    """The GTIN-13 of the product with that number, from 0 to 99,999 in the American form and to 999,999,999 in the other.

    >>> gtin13(1, american=True), gtin13(7, american=False)
    ('0614141000012', '9520000000073')
    """
    prefix = _AMERICAN if american else _OTHER
    digits = f"{prefix}{number:0{12 - len(prefix)}d}"
    return digits + check_digit(digits)


def make_products(writer: Writer, items: TasteCatalogue) -> tuple[Product, ...]:
    """A product per item of the catalogue; as long as there are words enough, no two are called the same."""
    numbers = writer.rng.permutation(max(1 << 14, len(items)))[: len(items)].tolist()
    called: set[tuple[str, ...]] = set()
    products = []
    for item, number in enumerate(numbers):
        for _ in range(_TRIES):
            subject = writer.subject(items, item)
            thing = writer.pick(subject.topic.things)
            name = (subject.price, subject.level, subject.era, thing)
            if name not in called:
                break
        called.add(name)
        low, high = (5.0, 120.0) if items.style[item, AXES.index("price")] < 0 else (180.0, 490.0)
        products.append(
            Product(
                gtin=gtin13(number, american=bool(writer.rng.random() < 0.5)),
                subject=subject,
                thing=thing,
                price=round(100 * writer.rng.uniform(low, high)),
            )
        )
    return tuple(products)
