"""What models were trained on, and people's distributions fitted to, as far as it is known: for datasheets.

Of what travels with idgen the cards in ``idgen/mini`` say it; nothing is guessed of anything else.
"""

import json

from idgen import mini

UNKNOWN = "unknown: see the model's card"
UNKNOWN_PEOPLE = "unknown: the file does not say; ask whoever made it"
OF = "Labeled Faces in the Wild and of a part of CelebA"
BASE = f"13,398 portraits of {OF}; captions composed from weak machine labels and from the pixels"
ADAPTER = f"the 13,398 portraits of the base ({OF}), with vectors of mini's recogniser and of its teacher"
ENCODER = (
    f"portraits of {OF}; its targets are the vectors of a teacher, foamliu/MobileFaceNet, which was trained "
    "on MS-Celeb-1M"
)
JUDGE = f"13,398 portraits of {OF}, with the names of the people; no teacher"
DETECTOR = f"13,395 portraits of {OF} on patterns; boxes and landmarks are those of a teacher, YuNet"
PEOPLE = f"one mean face vector each of 4,353 people of {OF}, by mini's recogniser"
NO_PEOPLE = "none: every direction is alike"


def data_of_adapter(sha256: str) -> str:
    """What an adapter was trained on."""
    card = json.loads(mini.ADAPTER.with_suffix(".json").read_text(encoding="utf-8"))
    return ADAPTER if sha256 == card["sha256"] else UNKNOWN


def data_of_encoder(encoder_id: str) -> str:
    """What an encoder was trained on, and by whom taught."""
    cards = {mini.FACES / "rec_mini.json": ENCODER, mini.JUDGE.with_suffix(".json"): JUDGE}
    known = {json.loads(card.read_text(encoding="utf-8"))["encoder"]: data for card, data in cards.items()}
    return known.get(encoder_id, UNKNOWN)


def data_of_people(spec: str) -> dict[str, str]:
    """What the sources of a text for `idgen.synth.sources.load_source` were fitted to, source by source.

    Args:
        spec: without folders, as records have it.
    """
    name, _, rest = spec.partition(":")
    if name == "interpolation":
        return data_of_people(rest)
    if name == "mixture":
        parts = [part.partition("*")[2] for part in rest.split(",")]
        return {source: data for part in parts for source, data in data_of_people(part).items()}
    if spec == "pca":
        return {spec: PEOPLE}
    return {spec: NO_PEOPLE if name == "uniform" else UNKNOWN_PEOPLE}
