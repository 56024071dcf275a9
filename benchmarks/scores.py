"""All pairs of a set of pictures: error rates by idgen against the usual way, time and memory of each.

    python benchmarks/scores.py                                        # 20,000 pictures of 1,000 people
    python benchmarks/scores.py --pictures 100000 --people 5000 --only idgen

The usual way: the score matrix row by row, the genuine and the impostor scores in two lists, these into
`sklearn.metrics.det_curve`. Each way runs in a process of its own; its peak memory is all that the process
held, libraries included. Both get the same unit vectors in float32, and must find the same EER.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from idgen.config import Parser
from idgen.errors import MeasureError

SAME_EER = 2e-4


def drawn_people(num_pictures: int, num_people: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (N, D) spread about centres, and the person of each; an EER of a few percent."""
    rng = np.random.default_rng(0)
    person = np.arange(num_pictures) * num_people // num_pictures
    centres = rng.normal(size=(num_people, dim)).astype(np.float32)
    vectors = centres[person] + 1.5 * rng.standard_normal((num_pictures, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), person


def by_idgen(vectors: np.ndarray, person: np.ndarray) -> dict[str, float]:
    """Histograms in blocks, exact extremes, every rate."""
    from idgen.metrics.operating import operating_points
    from idgen.metrics.scores import pair_statistics

    return operating_points(pair_statistics(vectors, person))


def by_lists(vectors: np.ndarray, person: np.ndarray) -> dict[str, float]:
    """Rows of the score matrix into two lists, and these into scikit-learn."""
    from sklearn.metrics import det_curve

    genuine, impostor = [], []
    for row in range(len(vectors) - 1):
        scores = vectors[row + 1 :] @ vectors[row]
        same = person[row + 1 :] == person[row]
        genuine.append(scores[same])
        impostor.append(scores[~same])
    genuine, impostor = np.concatenate(genuine), np.concatenate(impostor)
    scores = np.concatenate([genuine, impostor])
    truth = np.concatenate([np.ones(len(genuine), bool), np.zeros(len(impostor), bool)])
    fmr, fnmr, threshold = det_curve(truth, scores)
    at = int(np.abs(fmr - fnmr).argmin())
    return {"eer": float(fmr[at] + fnmr[at]) / 2, "eer_threshold": float(threshold[at])}


WAYS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {"idgen": by_idgen, "lists": by_lists}


def run_one(way: str, num_pictures: int, num_people: int, dim: int) -> dict[str, float]:
    """Seconds, peak memory and EER of one way, in this process."""
    WAYS[way](*drawn_people(200, 10, dim))  # imports and first calls are not what is measured
    vectors, person = drawn_people(num_pictures, num_people, dim)
    start = time.perf_counter()
    found = WAYS[way](vectors, person)
    seconds = time.perf_counter() - start
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_gb": peak_bytes / 1e9, "eer": found["eer"]}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each way in its own process and print a table in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--people", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--only", choices=sorted(WAYS), help="one way, without the comparison")
    parser.add_argument("--here", action="store_true", help="run in this process, and print JSON")
    options = parser.parse_args(argv)
    sizes = (options.pictures, options.people, options.dim)
    if options.here:
        print(json.dumps(run_one(options.only or "idgen", *sizes)))
        return 0
    found = {}
    for way in [options.only] if options.only else WAYS:
        words = [f"--{name}={size}" for name, size in zip(("pictures", "people", "dim"), sizes, strict=True)]
        command = [sys.executable, __file__, "--here", "--only", way, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout)
    pairs = options.pictures * (options.pictures - 1) // 2
    print(f"{options.pictures:,} pictures of {options.people:,} people, {options.dim}-d, {pairs:,} pairs\n")
    print("| way | seconds | peak memory | EER |\n| --- | --- | --- | --- |")
    for way, numbers in found.items():
        print(f"| {way} | {numbers['seconds']:.1f} | {numbers['peak_gb']:.2f} GB | {numbers['eer']:.5f} |")
    if len(found) == 2:
        ours, lists = found["idgen"], found["lists"]
        if abs(ours["eer"] - lists["eer"]) > SAME_EER:
            raise MeasureError(f"the two ways disagree: EER {ours['eer']} and {lists['eer']}")
        print(f"\nidgen: {lists['seconds'] / ours['seconds']:.1f} times as fast, "
              f"{ours['peak_gb'] / lists['peak_gb']:.2f} of the memory")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
