"""What is asked and answered over HTTP. Every text, list and number has bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_ITEMS, MOST_LIKED, MOST_EVENTS_AT_ONCE, MOST_RULES = 100, 100, 100, 16
ModelName = Literal["own", "global", "fused"]
Id = Annotated[str, Field(min_length=1, max_length=200)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e12, le=1e12)]
Top = Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FilterBody(_Strict):
    """What an item's attribute must be."""

    attribute: Name
    any_of: Annotated[list[Name], Field(max_length=MOST_RULES)] = []
    none_of: Annotated[list[Name], Field(max_length=MOST_RULES)] = []
    at_least: Number | None = None
    at_most: Number | None = None


class _ForSomebody(_Strict):
    """Whom it is for: a user, or somebody who is in no table and likes some items (ids or public keys)."""

    user: Id | None = None
    like: Annotated[list[Id], Field(max_length=MOST_LIKED)] = []
    model: ModelName | None = Field(None, description="By default fused where there is a model, else own.")

    @model_validator(mode="after")
    def _one_of_both(self) -> _ForSomebody:
        if (self.user is None) == (not self.like):
            raise ValueError("say either user or like")
        return self


class RecommendRequest(_ForSomebody):
    """Items for somebody."""

    top: Top = 10
    diversity: float = Field(0.0, ge=0.0, le=1.0, description="0: by score alone; 1: each as unlike those before it as can be.")
    caps: Annotated[dict[Name, Annotated[int, Field(ge=1, le=MOST_ITEMS)]], Field(max_length=MOST_RULES)] = Field(
        default={}, description="Attribute -> most items of one of its values."
    )
    filters: Annotated[list[FilterBody], Field(max_length=MOST_RULES)] = []
    seen: bool = Field(False, description="Whether items that they have had may be in the list.")
    sources: bool = Field(False, description="Whether to say what each part of the score brings into the list.")
    history: bool = Field(False, description="Whether to name the newest items of their history.")


class SimilarRequest(_Strict):
    """Items that are alike with one."""

    item: Id
    model: ModelName | None = None
    top: Top = 10


class ExplainRequest(_ForSomebody):
    """Why somebody would get an item, all of it."""

    item: Id


class EventBody(_Strict):
    """Somebody met an item. What it says is read as the platform file says of its source of interactions."""

    user: Id
    item: Id
    event: Name | None = None
    value: Number | None = None
    liked: bool | None = Field(None, description="Said outright; it counts before event and value.")


class EventsRequest(_Strict):
    """Events, oldest first: all are taken in, or none."""

    events: Annotated[list[EventBody], Field(min_length=1, max_length=MOST_EVENTS_AT_ONCE)]


class ItemsRequest(_Strict):
    """Items whose title has these letters."""

    text: Name
    top: Annotated[int, Field(ge=1, le=20)] = 8


class NamedItem(BaseModel):
    """An item."""

    item: str
    title: str


class SharedItem(NamedItem):
    """An item of the history, and what it adds to a score."""

    adds: float


class ListedItem(NamedItem):
    """A recommended item; both accounts of its score add up to it exactly, in decimals."""

    rank: int
    score: float
    because: str = Field(description="Continues 'because'.")
    parts: dict[str, float]
    from_history: list[SharedItem]
    further_history: float
    besides_history: float
    attributes: dict[str, str]
    probability: float | None = Field(description="That it is the next item that they like; null where the model has none.")


class SourceShare(BaseModel):
    """What one part of the score does for a list."""

    name: str
    adds: float = Field(description="To the score of the list's items, in the mean.")
    brings: int = Field(description="Items of the list that would not be in it without this part.")


class ListAnswer(BaseModel):
    """A list of items, best first."""

    model: ModelName
    note: str = Field(description="What should be known of it; empty where there is nothing.")
    items: list[ListedItem]
    unlikeness: float = Field(description="1 - mean cosine of two items' words: 0, all alike, to 1.")
    sources: list[SourceShare] = []
    history: list[NamedItem] = []


class ExplainAnswer(ListedItem):
    """One item's reasons; `rank` is its rank among all items that the person has not had."""

    model: ModelName
    of: int = Field(description="Items that are ranked.")


class EventsAnswer(BaseModel):
    """How many events were taken in."""

    accepted: int


class ItemsAnswer(BaseModel):
    """Items, in the order of the catalogue."""

    items: list[NamedItem]


class AttributeValues(BaseModel):
    """An attribute of the items, and its most frequent values."""

    name: str
    values: list[str]


class PlatformAnswer(BaseModel):
    """What is served."""

    platform: str
    items: int
    models: list[ModelName]
    same_as_own: bool = Field(description="Whether validation chose the own model in the place of the fused one.")
    attributes: list[AttributeValues]


class UsersAnswer(BaseModel):
    """Ids of some users, drawn at random: for a person who tries lists."""

    users: list[str]


class HealthAnswer(BaseModel):
    """It answers."""

    status: Literal["ok"]
    version: str


class ProblemAnswer(BaseModel):
    """What was found and what to do; nothing of what was sent is repeated."""

    found: str
    do: str = ""
