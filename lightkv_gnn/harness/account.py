"""What the questions of a benchmark cost, added up over batches, tasks and processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from lightkv_gnn.baselines.inspection import Seen
from lightkv_gnn.harness.compression import Cost


@dataclass(frozen=True)
class Account:
    """Sums over questions with pictures.

    Attributes:
        questions: How many.
        vision: Vision tokens held, summed over the decoder's layers.
        vision_full: Without compression.
        kv_bytes: Keys and values after the prefills, text and padding included.
        kv_bytes_full: Without compression.
        first_token: Seconds to the first token, each question's being its batch's.
        method: Seconds of the method in the prefill, likewise.
        ranked: Questions whose vision tokens were looked at.
        rank: Their effective ranks.
        spread: Questions in which the last token's attention was looked at too.
        entropy: Of that attention.
        compared: Questions that were asked without compression too.
        agreed: Those with the same answer, word by word.
    """

    questions: int = 0
    vision: float = 0.0
    vision_full: int = 0
    kv_bytes: int = 0
    kv_bytes_full: int = 0
    first_token: float = 0.0
    method: float = 0.0
    ranked: int = 0
    rank: float = 0.0
    spread: int = 0
    entropy: float = 0.0
    compared: int = 0
    agreed: int = 0

    @classmethod
    def of(
        cls,
        questions: int,
        cost: Cost,
        first_token: float,
        method: float = 0.0,
        seen: Seen | None = None,
    ) -> Account:
        """Of one batch with pictures."""
        ranks, entropies = ([], []) if seen is None else (seen.ranks, seen.entropies)
        return cls(
            questions,
            cost.vision,
            cost.vision_full,
            cost.kv_bytes,
            cost.kv_bytes_full,
            questions * first_token,
            questions * method,
            len(ranks),
            sum(ranks),
            len(entropies),
            sum(entropies),
        )

    @classmethod
    def of_agreement(cls, answers: Sequence[str], full: Sequence[str]) -> Account:
        """Of answers to questions with pictures, and those without compression."""
        pairs = zip(answers, full, strict=True)
        same = sum(one.split() == other.split() for one, other in pairs)
        return cls(compared=len(answers), agreed=same)

    def __add__(self, other: Account) -> Account:
        return Account(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """Means, by the names they are reported under; nothing if there were none."""
        if not self.questions:
            return {}
        found = {
            "retention": self.vision / self.vision_full,
            "kv_bytes": self.kv_bytes / self.questions,
            "kv_bytes_full": self.kv_bytes_full / self.questions,
            "seconds_to_first_token": self.first_token / self.questions,
            "method_seconds": self.method / self.questions,
        }
        if self.ranked:
            found["effective_rank"] = self.rank / self.ranked
        if self.spread:
            found["attention_entropy"] = self.entropy / self.spread
        if self.compared:
            found["agreement"] = self.agreed / self.compared
        return found


Accounts = Mapping[str, Account]
"""By task."""


def together(parts: Iterable[Accounts]) -> dict[str, Account]:
    """Accounts of several processes, or batches, as one."""
    total: dict[str, Account] = {}
    for part in parts:
        for task, account in part.items():
            total[task] = total.get(task, Account()) + account
    return total


def metrics(accounts: Accounts) -> dict[str, float]:
    """All questions' means, and where there are several tasks, each one's with its name ahead."""
    named = together([{"": account} for account in accounts.values()]).get("", Account()).metrics()
    if len(accounts) > 1:
        for task, account in accounts.items():
            named |= {f"{task}_{name}": value for name, value in account.metrics().items()}
    return named
