"""Random splits of samples into training, validation and test."""

import numpy as np

SPLITS = ("train", "valid", "test")


def shares(valid: str, test: str) -> tuple[float | None, float | None]:
    """The shares of the training samples for ``valid`` and ``test``; None for the name of a file.

    Raises:
      ValueError: a share is not above 0 and below 1, or their sum is 1 or more.
    """
    values = []
    for source in (valid, test):
        try:
            values.append(float(source))
        except ValueError:
            values.append(None)
    fractions = [share for share in values if share is not None]
    if not all(0 < share < 1 for share in fractions) or not sum(fractions) < 1:
        raise ValueError(
            f"valid is {valid} and test {test}; expected shares between 0 and 1 with a sum below "
            "1, or names of files"
        )
    return values[0], values[1]


def files(train: str, valid: str, test: str) -> tuple[str, ...]:
    """The file names among these; ``valid`` and ``test`` may be shares instead."""
    sources = zip((valid, test), shares(valid, test), strict=True)
    return (train, *(source for source, share in sources if share is None))


def draw_splits(count: int, valid: str, test: str, seed: int) -> dict[str, np.ndarray]:
    """Draw the rows of "train" and, if these are shares, "valid" and "test" from ``count`` samples.

    Raises:
      ValueError: as for :func:`shares`, or a split would be empty.
    """
    order = np.random.default_rng(seed).permutation(count)
    rows = {}
    for split, source, share in zip(
        ("valid", "test"), (valid, test), shares(valid, test), strict=True
    ):
        if share is None:
            continue
        size = round(share * count)
        rows[split], order = order[:size], order[size:]
        if not size or not len(order):
            raise ValueError(
                f"{split} is {source} of {count} samples, which leaves it or the training without "
                "any; expected another share, or a file"
            )
    return {"train": order} | rows
