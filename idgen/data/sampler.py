"""Batches of several people with several pictures each: P x K.

Shapes: N pictures.
"""

import numpy as np

from idgen.errors import ConfigError
from idgen.training import batch_rows


class PersonSampler:
    """Batch ``step`` as a function of (seed, step) alone: P people, K pictures of each.

    Every person comes once an epoch. Of people with fewer than K pictures, some come twice; of the others no
    picture comes twice in a batch.
    """

    def __init__(self, person: np.ndarray, *, people: int, pictures: int, seed: int) -> None:
        """Look at who is there.

        Args:
            person: (N,) number of the person of each picture.
            people: P.
            pictures: K.
            seed: of the order.

        Raises:
            ConfigError: if there are fewer than P people.
        """
        self._rows = [np.flatnonzero(person == who) for who in np.unique(person)]
        if not 1 <= people <= len(self._rows):
            raise ConfigError(f"{people} people a batch are wanted, there are {len(self._rows)}")
        self._group = {int(row): i for i, rows in enumerate(self._rows) for row in rows}
        self._people, self._pictures, self._seed = people, pictures, seed

    def rows(self, step: int) -> np.ndarray:
        """(P K,) pictures of batch ``step``; those of a person stand together."""
        chosen = batch_rows(len(self._rows), self._people, step, self._seed)
        return np.concatenate([self._pictures_of(int(who), step) for who in chosen])

    def _pictures_of(self, who: int, step: int) -> np.ndarray:
        own, rng = self._rows[who], np.random.default_rng([self._seed, step, who])
        return rng.choice(own, self._pictures, replace=len(own) < self._pictures)

    def another(self, row: int, rng: np.random.Generator) -> int:
        """Another picture of the person of ``row``; the same where there is no other."""
        own = self._rows[self._group[row]]
        others = own[own != row]
        return int(rng.choice(others)) if len(others) else row
