r"""How often does the preference model rank a photograph above its distorted copy?

    idgen evaluate preference --faces $IDGEN_FACES/faces_test.parquet

For every kind of mild distortion, in crops of 112 pixels and of 56 (pictures of 128 and of 64 pixels): the
share of pairs that are ranked right, a mean over people, with its 95 % interval over people.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from idgen.config import Parser
from idgen.data.images import load_faces, split_people
from idgen.metrics.bootstrap import interval_over_people
from idgen.preference.distort import DISTORTIONS
from idgen.preference.model import load_preference
from idgen.preference.ranking import SIDES_PX, mean_score, shares_of_people


def main(argv: Sequence[str] | None = None) -> int:
    """Rank, print, write."""
    parser = Parser(description=__doc__)
    parser.add_argument("--faces", type=Path, required=True, help="Parquet of portraits")
    parser.add_argument("--held-out", action="store_true", help="the tenth of the people that is set aside")
    parser.add_argument("--model", type=Path, help="safetensors file of a preference model (mini's)")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    model = load_preference(options.model)
    table = load_faces(options.faces)
    table = split_people(table)[1] if options.held_out else table
    num_people = len(table.people())
    print(f"{len(table)} pictures of {num_people} people")
    print(f"{'distortion':12s}" + "".join(f"  {f'{side} px':>22s}" for side in SIDES_PX))
    shares: dict[str, dict[str, dict[str, object]]] = {}
    for name, kind in DISTORTIONS.items():
        cells = []
        for side_px in SIDES_PX:
            values = shares_of_people(model, table, kind, side_px)
            mean, (low, high) = float(values.mean()), interval_over_people(values)
            shares.setdefault(name, {})[str(side_px)] = {"mean": mean, "interval": (low, high)}
            cells.append(f"  {mean:6.1%} [{low:5.1%}, {high:6.1%}]")
        print(f"{name:12s}" + "".join(cells), flush=True)
    scores = {str(side_px): mean_score(model, table, (side_px,)) for side_px in SIDES_PX}
    print(f"{'mean score':12s}" + "".join(f"  {score:22.3f}" for score in scores.values()))
    print(f"reference score of the model: {model.reference_score:.3f}")
    if options.out:
        report = {"pictures": len(table), "people": num_people, "mean score": scores, "shares": shares}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
