"""The words of a generated world: twelve topics that a sentence encoder tells apart, and three axes of style."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Topic:
    """What a topic is called, and the words that its items are made of.

    Args:
        name: The topic itself.
        department: Where a shop sells it.
        section: Where a newspaper prints it.
        things: Singular nouns, each with its article left out.
        figures: People of the topic, singular; the plural takes an s.
        scenes: Places, with their preposition.
        doings: What people do there, as -ing phrases.
    """

    name: str
    department: str
    section: str
    things: tuple[str, ...]
    figures: tuple[str, ...]
    scenes: tuple[str, ...]
    doings: tuple[str, ...]


TOPICS = (
    Topic(
        name="cooking",
        department="Kitchen",
        section="Food",
        things=("skillet", "stockpot", "chef's knife", "spice rack", "bread oven", "pasta machine", "cookbook", "soup ladle"),
        figures=("chef", "baker", "pastry cook", "home cook"),
        scenes=("in the kitchen", "at the stove", "in a bakery", "at a food market"),
        doings=("baking bread", "simmering soup", "roasting vegetables", "kneading dough", "cooking dinner"),
    ),
    Topic(
        name="gardening",
        department="Garden",
        section="Gardens",
        things=(
            "watering can",
            "rose bush",
            "seed tray",
            "garden spade",
            "compost bin",
            "greenhouse",
            "flower pot",
            "pruning shear",
        ),
        figures=("gardener", "florist", "rose grower", "botanist"),
        scenes=("in the garden", "in a greenhouse", "on the allotment", "among the flower beds"),
        doings=("planting tulips", "pruning roses", "sowing seeds", "growing tomatoes", "raking leaves"),
    ),
    Topic(
        name="space",
        department="Astronomy",
        section="Science",
        things=(
            "telescope",
            "star chart",
            "rocket model",
            "moon globe",
            "planetarium",
            "space suit",
            "satellite kit",
            "meteorite",
        ),
        figures=("astronaut", "astronomer", "rocket engineer", "stargazer"),
        scenes=("in orbit", "on the Moon", "at the observatory", "on the launch pad"),
        doings=("watching the planets", "exploring Mars", "launching rockets", "mapping the stars", "photographing galaxies"),
    ),
    Topic(
        name="football",
        department="Team Sports",
        section="Football",
        things=(
            "football",
            "goal net",
            "team jersey",
            "pair of shin guards",
            "goalkeeper glove",
            "football boot",
            "cup final",
            "training cone",
        ),
        figures=("striker", "goalkeeper", "midfielder", "football coach"),
        scenes=("at the stadium", "on the pitch", "in the penalty area", "at the cup final"),
        doings=("scoring goals", "taking penalties", "training the team", "playing football", "defending the goal"),
    ),
    Topic(
        name="jazz",
        department="Music",
        section="Music",
        things=("saxophone", "trumpet", "double bass", "jazz record", "songbook", "drum kit", "clarinet", "piano"),
        figures=("saxophonist", "trumpeter", "jazz singer", "bandleader"),
        scenes=("in a jazz club", "in New Orleans", "on the bandstand", "at a jam session"),
        doings=("playing jazz", "improvising solos", "swinging all night", "singing the blues", "recording an album"),
    ),
    Topic(
        name="chess",
        department="Board Games",
        section="Chess",
        things=(
            "chess set",
            "chess clock",
            "chessboard",
            "opening manual",
            "endgame book",
            "rook",
            "king's gambit",
            "puzzle collection",
        ),
        figures=("chess player", "grandmaster", "chess coach", "chess champion"),
        scenes=("at the chessboard", "at a chess tournament", "in the chess club", "in the endgame"),
        doings=("solving chess puzzles", "playing the endgame", "studying openings", "giving checkmate", "sacrificing the queen"),
    ),
    Topic(
        name="sailing",
        department="Boats",
        section="Sea",
        things=("sailing boat", "life jacket", "anchor", "mainsail", "ship's compass", "dinghy", "yacht", "mooring rope"),
        figures=("sailor", "skipper", "yacht builder", "harbour pilot"),
        scenes=("at sea", "in the harbour", "on deck", "off the coast"),
        doings=("sailing the coast", "hoisting the sail", "racing yachts", "crossing the ocean", "tying knots on deck"),
    ),
    Topic(
        name="photography",
        department="Cameras",
        section="Pictures",
        things=("camera", "tripod", "portrait lens", "camera bag", "photo album", "darkroom kit", "flash unit", "roll of film"),
        figures=("photographer", "portraitist", "photo editor", "photo reporter"),
        scenes=("behind the camera", "in the darkroom", "in the photo studio", "at a photo exhibition"),
        doings=("taking portraits", "developing film", "shooting landscapes", "framing a picture", "editing photos"),
    ),
    Topic(
        name="knitting",
        department="Yarn and Wool",
        section="Crafts",
        things=(
            "ball of wool",
            "knitting needle",
            "crochet hook",
            "jumper pattern",
            "yarn basket",
            "sock pattern",
            "scarf kit",
            "blanket kit",
        ),
        figures=("knitter", "wool spinner", "yarn dyer", "crocheter"),
        scenes=("in the wool shop", "at the knitting circle", "by the spinning wheel", "in the armchair"),
        doings=("knitting jumpers", "crocheting blankets", "spinning yarn", "darning socks", "dyeing wool"),
    ),
    Topic(
        name="cycling",
        department="Bicycles",
        section="Cycling",
        things=("road bike", "cycle helmet", "bicycle pump", "saddle", "bike lock", "touring bike", "bike trailer", "chain tool"),
        figures=("cyclist", "bike mechanic", "racing cyclist", "bike courier"),
        scenes=("on the road bike", "in the peloton", "on the mountain pass", "in the bike workshop"),
        doings=("cycling uphill", "riding a bicycle race", "mending a flat tyre", "touring by bike", "pedalling to work"),
    ),
    Topic(
        name="dog training",
        department="Pets",
        section="Animals",
        things=("dog lead", "dog basket", "puppy toy", "dog collar", "chew bone", "dog whistle", "kennel", "dog coat"),
        figures=("dog owner", "dog trainer", "sheepdog breeder", "dog walker"),
        scenes=("in the dog park", "at the kennels", "at the dog show", "on a walk with the dog"),
        doings=("training a puppy", "walking the dog", "herding sheep", "grooming a terrier", "throwing a stick"),
    ),
    Topic(
        name="painting",
        department="Art Supplies",
        section="Art",
        things=(
            "paintbrush",
            "easel",
            "set of oil paints",
            "canvas",
            "watercolour box",
            "sketchbook",
            "palette",
            "picture frame",
        ),
        figures=("painter", "watercolourist", "gallery owner", "art teacher"),
        scenes=("in the studio", "at the gallery", "at the easel", "at an art fair"),
        doings=("painting landscapes", "mixing colours", "sketching figures", "stretching a canvas", "painting in oils"),
    ),
)

MANNER: tuple[dict[int, tuple[str, ...]], ...] = (
    {-1: ("budget", "cheap", "thrifty"), +1: ("luxury", "premium", "deluxe")},
    {-1: ("beginner", "easy", "basic"), +1: ("expert", "professional", "advanced")},
    {-1: ("vintage", "classic", "retro"), +1: ("modern", "futuristic", "contemporary")},
)
"""Per axis (price, level, era) and side: adjectives, each one token of a BERT, so that a short title has room for them."""

FIRST_NAMES = (
    "Ada",
    "Bruno",
    "Carla",
    "Denis",
    "Edith",
    "Farid",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Kira",
    "Leon",
    "Mona",
    "Nils",
)
LAST_NAMES = (
    "Abbot",
    "Brandt",
    "Castell",
    "Dorn",
    "Ekholm",
    "Fontane",
    "Grieve",
    "Holm",
    "Ibarra",
    "Juhl",
    "Keller",
    "Lund",
    "Maris",
)


def with_article(words: str) -> str:
    """The words after a or an.

    >>> with_article("old piano"), with_article("yacht")
    ('an old piano', 'a yacht')
    """
    vowel = words[0].lower() in "aeio"
    return f"{'an' if vowel else 'a'} {words}"


def headline(words: str) -> str:
    """The words with capitals, as a title has them.

    >>> headline("the chef's knife at the stove")
    "The Chef's Knife at the Stove"
    """
    small = {"a", "an", "and", "at", "by", "for", "in", "of", "off", "on", "the", "to", "with"}
    parts = words.split(" ")
    return " ".join(part if place and part in small else part[:1].upper() + part[1:] for place, part in enumerate(parts))


def sentence(words: str) -> str:
    """The words as one sentence.

    >>> sentence("swinging all night")
    'Swinging all night.'
    """
    return f"{words[:1].upper()}{words[1:]}."
