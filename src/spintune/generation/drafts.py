"""Drafts: answers that another model gave under the same draws, read in one call and kept as far as they are right.

A sequence that starts reads its draft with its prompt, so that one call gives the logits after each of its tokens. Each
position then makes its own draw, with the random number that it would have without a draft, and the draft's tokens are
kept up to the first that differs. So nothing that is written depends on drafts, only how many calls it takes. Leviathan
et al. (arXiv 2211.17192) accept a drafted token with a probability; models that share their draws need no such rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from spintune.generation.protocol import SequenceState

_LOGITS = 2**24
"""Logits after drafts that one call may hold."""

_TRIAL = 64
"""Tokens of drafts after which they are judged."""

_WORTH = 0.25
"""Share of a draft's tokens that must be right: reading one costs a part of what writing one does."""


class Drafts:
    """Says how much of each draft is read, and takes what it brings.

    Args:
        vocabulary: number of logits after each token.
        usable: False where a call gives the logits of one token of each sequence alone.
    """

    def __init__(self, vocabulary: int, usable: bool) -> None:
        self.most = max(1, _LOGITS // vocabulary)
        """Tokens of drafts in one call."""
        self._usable, self._read, self._kept = usable, 0, 0

    def cut(self, sequence: SequenceState) -> None:
        """Cuts a sequence's draft to what is worth reading: nothing where drafts have been wrong so far."""
        right = self._read < _TRIAL or self._kept >= self._read * _WORTH
        most = min(sequence.max_len - 1, self.most) if self._usable and right else 0
        sequence.draft = sequence.draft[:most]

    def drawn(self, sequence: SequenceState, tokens: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
        """The draws of a sequence that hold, with their log-probabilities: where the draft was right, and one more."""
        draft, sequence.draft = sequence.draft, ()
        self._read += len(draft)
        for drawn, drafted in zip_longest(tokens, draft):
            yield drawn
            if drawn[0] != drafted:
                return
            self._kept += 1
