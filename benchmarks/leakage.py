"""The nearest of M real faces for each of N made ones, exactly: seconds, and what larger galleries cost.

    python benchmarks/leakage.py                       # 100,000 against 100,000
    python benchmarks/leakage.py --pictures 10000 --gallery 10000

Work grows with N x M: the last line says how long a million against a million would take at the same rate.
"""

import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from idgen.config import Parser
from idgen.errors import MeasureError
from idgen.metrics.leakage import nearest, nearest_by_faiss


def drawn_faces(num: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors (num, dim) in float32, drawn evenly."""
    vectors = np.random.default_rng(seed).standard_normal((num, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both searches, check that they agree, print a table in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args(argv)
    made = drawn_faces(options.pictures, options.dim, 0)
    gallery = drawn_faces(options.gallery, options.dim, 1)
    with tqdm(total=len(made), desc="blocks", unit="picture", disable=None) as bar:
        start = time.perf_counter()
        index, cosine = nearest(made, gallery, advance=bar.update)
        seconds = {"blocks (float64, exact)": time.perf_counter() - start}
    start = time.perf_counter()
    other_index, other = nearest_by_faiss(made, gallery)
    seconds["faiss (float32)"] = time.perf_counter() - start
    if np.abs(cosine - other).max() > 1e-6:
        raise MeasureError(f"the two searches disagree by {np.abs(cosine - other).max():.2g}")
    pairs = options.pictures * options.gallery
    print(f"{options.pictures:,} pictures against {options.gallery:,} photos, {options.dim}-d; "
          f"{int((index != other_index).sum())} neighbours differ, none by more than 1e-6\n")  # fmt: skip
    print("| search | seconds | million pairs a second | 10^6 x 10^6 would take |")
    print("| --- | --- | --- | --- |")
    for name, value in seconds.items():
        rate = pairs / value
        print(f"| {name} | {value:.1f} | {rate / 1e6:.0f} | {1e12 / rate / 3600:.1f} hours |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
