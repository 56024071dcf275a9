"""A byte-level vocabulary in CLIP's layout, learned from a list of words."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

END_OF_WORD = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def byte_letters() -> list[str]:
    """The 256 characters by which CLIP (and GPT-2) write the 256 bytes, in byte order.

    Printable bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(code) for code in range(0x100, 0x200))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def learn_vocabulary(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Byte-pair merges until every word is one token (Sennrich et al. 2016, algorithm 1).

    The same words give the same vocabulary: ties go to the pair that comes first in the alphabet. (The
    trainer of the ``tokenizers`` package breaks ties differently from run to run, and a model trained with
    one vocabulary understands nothing in another.)

    Args:
        words: lower case, of ASCII letters; repetitions count.

    Returns:
        All tokens in the order of their numbers, and the merges as lines of ``merges.txt``.
    """
    pieces = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in sorted(set(words)) if word}
    counts = Counter(words)
    merges: list[tuple[str, str]] = []
    while pairs := _count_pairs(pieces, counts):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    letters = byte_letters()
    merged = dict.fromkeys(left + right for left, right in merges)
    alphabet = [*letters, *(letter + END_OF_WORD for letter in letters)]
    return [*alphabet, *merged, *SPECIAL], [f"{left} {right}" for left, right in merges]


def write_vocabulary(folder: Path, words: Sequence[str]) -> None:
    """Learn a vocabulary and write ``vocab.json`` and ``merges.txt``, the files of a CLIP tokenizer."""
    vocabulary, merges = learn_vocabulary(words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))


def _count_pairs(pieces: dict[str, list[str]], counts: Counter[str]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for word, parts in pieces.items():
        for pair in pairwise(parts):
            pairs[pair] += counts[word]
    return pairs


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
