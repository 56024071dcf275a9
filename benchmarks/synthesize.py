"""What the whole of `idgen synthesize` costs, beside the bare denoising loop and decoding, in one run.

    python benchmarks/synthesize.py --people 16 --pictures 4
    python benchmarks/synthesize.py --people 40 --pictures 10 --process

Both draw the planned pictures with the same model, batch size and steps; the command looks at them, judges,
encodes and writes them as well, and its pictures are counted before that. The roads are timed in turn, repeat
after repeat, so that a busy machine slows both alike; the median counts, of the rates and of the ratios of
each repeat, whose range says how far to trust it. Imports, opening the model, the people, the plan and the
report are in neither; with --process a command of its own is timed as well, from its first word to its last.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import torch

from idgen.config import Parser
from idgen.opening import choose_device, hide_loading_bars, model_folder, open_kit
from idgen.runs import model_sha256
from idgen.synth.curate import CurationRules
from idgen.synth.engines import choose_threads
from idgen.synth.finding import find_people
from idgen.synth.grammar import read_grammar
from idgen.synth.making import mixed
from idgen.synth.planning import make_plan
from idgen.synth.recipe import Layout, Recipe
from idgen.synth.work import PLAN, Workshop, make_shards


def open_workshop(folder: Path, options: argparse.Namespace) -> Workshop:
    """Everything open, as the command opens it: people found, pictures planned."""
    model = model_folder(options.model)
    kit = open_kit(model, adapter=options.adapter)
    plan = make_plan(read_grammar(), options.people, options.pictures, seed=0)
    plan.write(folder / PLAN)
    find_people(plan, kit, folder)
    device = choose_device(options.device)
    threads = options.threads or choose_threads([device])
    layout = Layout.choose(model, plan, batch_size=options.batch, shard_people=options.shard_people)
    recipe = Recipe(
        dataset=folder, model=options.model, adapter=options.adapter, encoder=None, judge=None,
        detector="mini", precision="auto", steps=options.steps, guidance=None, id_guidance=None, id_scale=1.0,
        id_start=0.0, id_end=1.0, layout=layout, retries=options.retries, kind="png", quality=95,
        rules=CurationRules().resolved(kit.encoder), allow_unchecked=True, threads=threads,
        model_name=options.model, model_hash=model_sha256(model), created="2026-01-01T00:00:00+00:00",
        facts={},
    )  # fmt: skip
    return Workshop(recipe, device)


def bare(shop: Workshop, num_pictures: int) -> float:
    """Pictures a second of the denoising loop and decoding alone, in batches as the command has them."""
    start, drawn = time.perf_counter(), 0
    with ThreadPoolExecutor(1) as pool:
        for number in range(shop.recipe.layout.num_shards(shop.plan)):
            shard = shop.shard(number, pool)
            pictures = mixed(shard.people)
            for first in range(0, len(pictures), shop.recipe.layout.batch_size):
                batch = pictures[first : first + shop.recipe.layout.batch_size]
                shop.draw(batch)
                drawn += len(batch)
    assert drawn == num_pictures
    return drawn / (time.perf_counter() - start)


def whole(shop: Workshop) -> float:
    """Pictures a second of the command, rejected ones counted, from the first draw to the last file."""
    shutil.rmtree(shop.recipe.dataset / "shards", ignore_errors=True)
    start, drawn = time.perf_counter(), 0
    for told in make_shards(shop, iter(range(shop.recipe.layout.num_shards(shop.plan)))):
        drawn += told.drawn
    return drawn / (time.perf_counter() - start)


def process(options: argparse.Namespace, folder: Path) -> float:
    """Pictures a second of the command as a user starts it: with imports, models, people, plan and report."""
    words = ["--people", options.people, "--pictures", options.pictures, "--retries", options.retries,
             "--model", options.model, "--device", options.device]  # fmt: skip
    for name, value in (("--shard-people", options.shard_people), ("--batch-size", options.batch),
                        ("--steps", options.steps), ("--threads", options.threads),
                        ("--adapter", options.adapter)):  # fmt: skip
        words += [name, value] if value is not None else []
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "idgen", "synthesize", *map(str, words), "--out", str(folder)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    drawn = [
        pyarrow.parquet.read_table(file, columns=["attempts"]) for file in folder.glob("shards/*.parquet")
    ]
    return sum(sum(part["attempts"].to_pylist()) for part in drawn) / seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = Parser(description=__doc__)
    parser.add_argument("--people", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--shard-people", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--retries", type=int, default=3)
    parser.add_argument("--threads", type=int, help="as the command chooses")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--process", action="store_true", help="time a command of its own, once")
    options = parser.parse_args(argv)
    hide_loading_bars()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own:
        shop = open_workshop(Path(folder), options)
        num_pictures = options.people * options.pictures
        with ThreadPoolExecutor(1) as pool:
            shop.draw(shop.shard(0, pool).next_batch())  # the first time is slower
        rates: dict[str, list[float]] = {"denoising and decoding alone": [], "the whole command": []}
        for _ in range(options.repeats):
            for name, rate in zip(rates, (bare(shop, num_pictures), whole(shop)), strict=True):
                rates[name].append(rate)
        alone = statistics.median(rates["denoising and decoding alone"])
        started = process(options, Path(own) / "dataset") if options.process else None
    ratios = [everything / bare_rate for bare_rate, everything in zip(*rates.values(), strict=True)]
    with shop.painter.turn() as pipe:
        device = pipe.device
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {device}")
    print(f"{num_pictures} pictures of {shop.painter.steps} steps, {shop.recipe.layout.batch_size} at once\n")
    print("| road | pictures a second |\n| --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g}) |")
    least, most = min(ratios), max(ratios)
    print(f"\nthe whole command / alone: {statistics.median(ratios):.1%} ({least:.1%} to {most:.1%})")
    if started is not None:
        print(f"a command of its own: {started:.3g} pictures a second, {started / alone:.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
