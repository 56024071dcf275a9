"""What was found of a dataset, as plain data for its dataset.json, under names that the datasheet knows."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from idgen.metrics.diversity import vendi_score
from idgen.metrics.leakage import centres
from idgen.metrics.scores import Scores
from idgen.synth.counts import kept_rows, quotas_of, yield_of
from idgen.synth.measuring import MADE, Eye, Findings, Sample, nearest_own

WITHIN = ("yaw", "smile", "luminance")  # probes whose spread within people is told


def facts_of(found: Findings) -> dict[str, Any]:
    """What goes into dataset.json, under the names that the datasheet knows."""
    sample, drawn = found.sample, yield_of(found.manifest)
    facts: dict[str, Any] = {
        "yield": {**asdict(drawn), "kept_of_drawn": drawn.kept_of_drawn},
        "quotas": quotas_of(found.manifest),
        "measured": {
            "people": len(sample.names),
            "pictures": len(sample.pictures),
            "which": "all" if sample.is_everybody else "people drawn at random",
        },
        "similarity": {eye.encoder.id: _similarity(eye, found) for eye in found.eyes},
        "separation": {eye.encoder.id: _separation(eye, sample) for eye in found.eyes},
        "diversity": _diversity(found),
        "leakage": _leakage(found),
        "provenance": {"pictures_looked_at": len(sample.pictures), "marked": found.num_marked},
    }
    return json.loads(json.dumps(_finite(facts)))


def _similarity(eye: Eye, found: Findings) -> dict[str, Any]:
    said: dict[str, Any] = {"role": eye.role}
    if eye.role == MADE and "similarity" in found.manifest.column_names:
        planned = planned_similarity(found)
        if len(planned):
            said["to_the_planned_person"] = {
                "mean": planned.mean(), "sd": planned.std(), "5 %": np.percentile(planned, 5)
            }  # fmt: skip
    said["within_people"] = _cosines(eye.pairs.genuine, 0.05)
    said["between_people"] = _cosines(eye.pairs.impostor, 0.95)
    return said


def planned_similarity(found: Findings) -> np.ndarray:
    """Of all kept pictures, to the vector that they were conditioned on."""
    values = np.array(found.manifest["similarity"].to_pylist(), dtype=float)
    return values[kept_rows(found.manifest) & np.isfinite(values)]


def _cosines(scores: Scores, share: float) -> dict[str, Any]:
    return {
        "pairs": scores.count,
        "mean": scores.mean,
        "sd": scores.std,
        f"{share * 100:g} %": quantile(scores, share),
        "lowest": scores.lowest,
        "highest": scores.highest,
    }


def quantile(scores: Scores, share: float) -> float:
    """The upper border of the bin below which, or in which, that share of the cosines lies."""
    if not scores.count:
        return math.nan
    edges = np.linspace(-1.0, 1.0, len(scores.histogram) + 1)
    return float(edges[1 + int(np.searchsorted(np.cumsum(scores.histogram), share * scores.count))])


def _separation(eye: Eye, sample: Sample) -> dict[str, Any]:
    names = ("eer", "eer_threshold", "auc", "d_prime", "tar_at_far_0.001", "threshold_at_fmr_0.001")
    return {
        "nearest_to_their_own_person": nearest_own(eye, sample).value,
        **{name: eye.points[name] for name in names if name in eye.points},
    }


def _diversity(found: Findings) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for eye in found.eyes:
        known = eye.spread[np.isfinite(eye.spread)]
        directions = centres(eye.vectors, found.sample.person, len(found.sample.names))
        said[eye.encoder.id] = {
            "spread_within_people": known.mean() if len(known) else None,
            "people_as_told_apart": vendi_score(directions[directions.any(axis=1)]),
        }
    return said | {"sd_within_people": spread_of_probes(found)}


def spread_of_probes(found: Findings) -> dict[str, float]:
    """Probe -> mean over people of its standard deviation over their kept pictures."""
    names = [name for name in WITHIN if name in found.manifest.column_names]
    rows: dict[str, list[int]] = {}
    identities = found.manifest["identity"].to_pylist()
    for row in np.flatnonzero(kept_rows(found.manifest)).tolist():
        rows.setdefault(identities[row], []).append(row)
    said = {}
    for name in names:
        values = np.array(found.manifest[name].to_pylist(), dtype=float)
        spreads = [values[own].std() for own in rows.values() if len(own) > 1]
        if spreads:
            said[name] = float(np.nanmean(spreads))
    return said


def _leakage(found: Findings) -> dict[str, Any]:
    said: dict[str, Any] = {"galleries": len({audit.gallery for audit in found.audits})}
    for audit in found.audits:
        said.setdefault(audit.gallery, {})[audit.eye.encoder.id] = {
            "photos": audit.num_photos,
            "nearest_mean": float(np.nanmean(audit.cosine)),
            "nearest_highest": float(np.nanmax(audit.cosine)),
            **{f"threshold_fmr_{fmr}": value for fmr, value in audit.thresholds.items()},
            **{f"pictures_above_fmr_{fmr}": measure.value for fmr, measure in audit.above.items()},
            **{f"centres_above_fmr_{fmr}": value for fmr, value in audit.centres_above.items()},
        }
    return said


def _finite(value: Any) -> Any:  # noqa: ANN401 - plain data of any shape
    """Plain data with six figures, and None for what is no number."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
