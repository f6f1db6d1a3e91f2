"""LLaVA records for tests."""

from typing import Any


def record(*turns: str, image: str | list[Any] | None = "a.png", **fields: Any) -> dict[str, Any]:
    """Return the LLaVA record of a conversation, the human first."""
    roles = ("human", "gpt") * len(turns)
    conversation = [{"from": role, "value": text} for role, text in zip(roles, turns, strict=False)]
    return {"id": "s1", "conversations": conversation, **({"image": image} if image else {}), **fields}
