"""How long the documents of prepared shards are: all of them, or an even sample of very many."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingot.data.shards import TokenShards

MOST = 1 << 21  # documents that are measured, about 150 MB at the peak
RUN = 1 << 10  # neighbours that a sample takes together, so that few pages of the files are read
SHARES = (0.1, 0.5, 0.9, 0.99)


class Lengths:
    """Tokens of documents, the end token included; `documents` are their numbers in the split, sorted."""

    def __init__(self, documents: NDArray[np.int64], tokens: NDArray[np.int64], total: int) -> None:
        self.documents, self.tokens, self.total = documents, tokens, total
        self.order = np.argsort(tokens, kind="stable")

    @classmethod
    def of(cls, shards: TokenShards) -> "Lengths":
        """Measures a split; above MOST documents, runs of RUN neighbours at even distances."""
        total = shards.num_documents
        if total <= MOST:
            documents = np.arange(total)
        else:
            begins = np.linspace(0, total - RUN, MOST // RUN).astype(np.int64)
            documents = (begins[:, None] + np.arange(RUN)).ravel()
        return cls(documents, shards.spans(documents)[2], total)

    def longest(self, size: int) -> list[int]:
        """Numbers of the longest documents, the longest first."""
        return [int(self.documents[i]) for i in self.order[::-1][:size]]

    def shortest(self, size: int) -> list[int]:
        """Numbers of the shortest documents, the shortest first."""
        return [int(self.documents[i]) for i in self.order[:size]]

    def described(self, seq_lengths: Sequence[int]) -> dict[str, Any]:
        """Mean, quantiles, a histogram in powers of two, and what blocks of these lengths would cut."""
        ordered = self.tokens[self.order]
        return {
            "documents": self.total,
            "measured": len(self.tokens),
            "mean": round(float(self.tokens.mean()), 1),
            "least": int(ordered[0]),
            "most": int(ordered[-1]),
            "quantiles": {f"{share:.0%}": int(ordered[int(share * (len(ordered) - 1))]) for share in SHARES},
            "histogram": self._histogram(),
            "cut": [self._cut(length) for length in seq_lengths],
        }

    def _histogram(self) -> list[dict[str, Any]]:
        exponents = np.frexp(self.tokens)[1] - 1
        documents = np.bincount(exponents)
        tokens = np.bincount(exponents, self.tokens)
        first = int(np.flatnonzero(documents)[0])
        return [
            {
                "from": 1 << i,
                "to": (2 << i) - 1,
                "documents": int(documents[i]),
                "share_of_documents": round(float(documents[i] / len(self.tokens)), 5),
                "share_of_tokens": round(float(tokens[i] / self.tokens.sum()), 5),
            }
            for i in range(first, len(documents))
        ]

    def _cut(self, seq_length: int) -> dict[str, Any]:
        """best_fit cuts what is longer than a block; concatenate what a block's end falls into, wherever it lies."""
        longer = self.tokens > seq_length
        meets_an_end = np.minimum(1.0, (self.tokens - 1) / seq_length)
        return {
            "seq_length": seq_length,
            "best_fit": round(float(longer.mean()), 5),
            "concatenate": round(float(meets_an_end.mean()), 5),
            "share_of_tokens_in_longer": round(float(self.tokens[longer].sum() / self.tokens.sum()), 5),
        }
