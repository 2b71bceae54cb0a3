"""Random samples of images and renditions, at a cost that does not grow with their number."""

import random


def random_start() -> str:
    """A random SHA-256, as `:start` of a query that `at_random` makes."""
    return random.randbytes(32).hex()  # noqa: S311  # a sample, not a secret


def at_random(rows: str, original: str) -> str:
    """SQL that draws up to `:count` of some rows, and all of them where there are no more; binds `:start` as well.

    Hashes are spread evenly, whatever they are of, so the rows that follow a random one in an index of originals are a
    random sample: 2 to 10 ms for some hundreds in a million images. The rows of one original, be it a picture that
    thousands of profiles share, are in random order. Ids would not do: they begin with the time.

    Args:
        rows: a SELECT that ends with its WHERE clause.
        original: its indexed column with the SHA-256 of the original; rows without one are never drawn.
    """

    def part(comparison: str) -> str:
        return f"({rows} AND {original} {comparison} :start ORDER BY {original}, random() LIMIT :count)"

    return f"{part('>=')} UNION ALL {part('<')} LIMIT :count"
