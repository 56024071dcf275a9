"""A report with everything in it, made of drawn pictures and random numbers: for tests of how it is shown."""

import io

import numpy as np
from PIL import Image

from idgen.report.document import Measure, Pairs, PicturePair, Report, Table
from idgen.report.plots import bars_figure, cmc_figure, det_figure, distribution_figure

EVIL = '<script>fetch("http://example.com")</script>"&'


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((112, 112)).save(stream, "PNG")
    return stream.getvalue()


def sample_report() -> Report:
    rng = np.random.default_rng(0)
    genuine, _ = np.histogram(rng.normal(0.45, 0.12, 4000), bins=20_000, range=(-1, 1))
    impostor, _ = np.histogram(rng.normal(0.02, 0.1, 40_000), bins=20_000, range=(-1, 1))
    fmr = np.logspace(0, -4, 60)
    measures = {
        "mini/eer": Measure(value=0.042, interval=(0.031, 0.055)),
        "mini/auc": Measure(value=0.991, interval=(0.985, 0.995)),
        "mini/undefined": Measure(value=float("nan"), note="needs two people"),
    }
    wide = tuple(f"a measure with a long name {i}" for i in range(9))
    return Report(
        kind="consistency",
        title="Is the person kept?",
        subject=f"600 pictures of 150 people from {EVIL}",
        settings={"encoders": ["mini@371ffa94143d"], "seed": 0, "note": EVIL},
        warnings=("Only one encoder judges.", EVIL),
        measures=measures,
        per_identity={"mini/rank-1": {"anna": 1.0, EVIL: 0.5, "carl": float("nan")}},
        sections=(
            Table(
                title="Is it the same person?",
                columns=("measure", "mini (related)", "other"),
                rows=tuple((name, value, value) for name, value in measures.items()),
                note="Similarities are cosines.",
            ),
            Table(title="By source", columns=wide, rows=((EVIL, *[Measure(value=0.123)] * 8),)),
            distribution_figure("Similarities", genuine, impostor, thresholds={"equal error rate": 0.21}),
            det_figure("Error trade-off", {"mini": (fmr, 0.01 / fmr**0.25), "other": (fmr, 0.02 / fmr**0.2)}),
            cmc_figure("Found within rank", {"mini": np.linspace(0.5, 1, 20)}),
            bars_figure("By pose", {"ahead": measures["mini/eer"], "to the left": measures["mini/auc"]}, "x"),
            Pairs(
                title="The most alike",
                pairs=tuple(
                    PicturePair(left_png=picture(i), right_png=picture(i + 9), caption=f"{EVIL} 0.{i}")
                    for i in range(4)
                ),
            ),
        ),
        data={"histogram": genuine[:3], "infinite": float("inf")},
    )
