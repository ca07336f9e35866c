"""What captions cost: tokens, requests, seconds and, by a recipe's prices, money."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from magicdistill.data_pipeline.captioning.captions import Captions


@dataclass(frozen=True)
class CaptionCost:
    """The cost of some captions together."""

    captions: int = 0
    """Clips that were asked about, those without an answer included."""
    tokens_in: int = 0
    tokens_out: int = 0
    requests: int = 0
    seconds: float = 0.0
    """Time in which writers worked, summed over requests that ran side by side."""

    def __add__(self, other: "CaptionCost") -> "CaptionCost":
        names = [field.name for field in fields(self)]
        return CaptionCost(*(getattr(self, name) + getattr(other, name) for name in names))

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, float | None]]) -> "CaptionCost":
        """Return the cost of clips by their scores."""
        found = cls()
        for scores in rows:
            taken = {
                field.name: scores.get(f"caption.{field.name}") or 0
                for field in fields(cls)
                if field.name != "captions"
            }
            found += cls(
                1,
                int(taken["tokens_in"]),
                int(taken["tokens_out"]),
                int(taken["requests"]),
                taken["seconds"],
            )
        return found

    def money(self, captions: Captions) -> float | None:
        """Return what the tokens cost by the recipe's prices; None without any."""
        if captions.price_in is None and captions.price_out is None:
            return None
        paid = self.tokens_in * (captions.price_in or 0) + self.tokens_out * (
            captions.price_out or 0
        )
        return paid / 1e6

    def describe(self, captions: Captions) -> str:
        """Return the cost in one line."""
        money = self.money(captions)
        return (
            f"{self.captions} clips, {self.requests} requests, {self.tokens_in} tokens in, "
            f"{self.tokens_out} tokens out, {self.seconds:.1f} s of writing"
        ) + ("" if money is None else f", {money:.4g} by the recipe's prices")
