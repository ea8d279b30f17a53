"""The bodies of requests and answers; what they say is what the OpenAPI description says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

__all__ = [
    "Asked",
    "Document",
    "ErrorAnswer",
    "Found",
    "FoundHit",
    "RankedText",
    "Relevance",
    "RerankAnswer",
    "RerankRequest",
    "Round",
    "SearchAnswer",
    "SearchRequest",
    "Trace",
]


def _unicode(text: str) -> str:
    """Refuse halves of characters, which JSON can hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("expected Unicode, got half of a surrogate pair") from None
    return text


Text = Annotated[StrictStr, AfterValidator(_unicode)]
ItemId = StrictStr | StrictInt
Positive = Annotated[int, Field(strict=True, ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SearchRequest(_Strict):
    """What to search for, and what it may cost."""

    queries: list[Text] = Field(
        min_length=1,
        description="The questions; each is searched for on its own.",
        examples=[["how is flu treated"]],
    )
    k: Positive | None = Field(
        default=None, description="Hits for each query; by default 10, or the limit if it is less."
    )
    budget: Positive | None = Field(
        default=None,
        description="Calls of the cross-encoder for each query, at most; by default 100, or the "
        "limit if it is less.",
        examples=[100],
    )
    rounds: Positive | Literal["auto"] | None = Field(
        default=None,
        description="Rounds that share the budget: a number, or `auto` for as many as the build "
        "found to pay. By default 5, or fewer for a budget below that.",
    )
    deadline_ms: Annotated[FiniteFloat, Field(strict=True, gt=0)] | None = Field(
        default=None,
        description="Milliseconds after which the best answer so far comes back, whatever of the "
        "budget is left.",
        examples=[500],
    )
    first: list[list[ItemId]] | None = Field(
        default=None,
        description="For each query the ids of items to open with, best first, from any retriever; "
        "an empty list leaves the opening to the index.",
        examples=[None],
    )
    exclude: list[ItemId] | None = Field(
        default=None,
        description="Ids of items that are neither scored nor found. Ids that no item has are "
        "passed over.",
        examples=[["0000001-1"]],
    )
    only: Annotated[list[ItemId], Field(min_length=1)] | None = Field(
        default=None,
        description="Ids of the items to search among: no others are scored or found. Ids that no "
        "item has are passed over.",
        examples=[None],
    )
    query_embeddings: list[list[FiniteFloat]] | None = Field(
        default=None,
        description="A dual encoder's embeddings of the queries, one list each, for an index that "
        "was built with the caller's own.",
        examples=[None],
    )
    texts: bool = Field(
        default=True, strict=True, description="Whether hits come with their texts."
    )
    trace: bool = Field(
        default=False,
        strict=True,
        description="Whether to tell, round by round, which items were asked for and why.",
    )


class FoundHit(BaseModel):
    """An item that was found."""

    id: str | int = Field(description="The item's id.", examples=["0000185-2"])
    text: str | None = Field(default=None, description="Its text.")
    score: float = Field(description="The cross-encoder's score; larger is better.")


class Asked(BaseModel):
    """An item that a round asked the cross-encoder about."""

    id: str | int
    text: str | None = None
    estimate: float | None = Field(
        description="Its approximate score, in the units of the index's model, by which it was "
        "chosen; null in the first round, which opens the search."
    )
    score: float | None = Field(
        description="What the cross-encoder said; null where the deadline came first."
    )


class Round(BaseModel):
    """One round of a search. Milliseconds are those of the request's queries together."""

    asked: list[Asked] = Field(description="The items asked for, of this query.")
    best: float | None = Field(description="The best score so far.")
    threshold: float | None = Field(
        description="The k-th best score so far; null while fewer than k items are scored."
    )
    update_ms: float = Field(description="Updating what is believed of the query.")
    top_k_ms: float = Field(description="Finding the items to ask for.")
    score_ms: float = Field(description="Until the scores were there.")
    queue_ms: float = Field(description="Of that, waiting for other requests' batches.")
    model_ms: float = Field(description="Of that, in the model.")
    n_cached: int = Field(description="Scores that were known from before.")


class Trace(BaseModel):
    """What a search did."""

    rounds: list[Round]
    prior_ms: float = Field(description="Making what is believed before any score is known.")
    total_ms: float


class Found(BaseModel):
    """The answer to one query."""

    query: str
    hits: list[FoundHit] = Field(description="Best first, at most k.")
    n_calls: int = Field(description="Pairs scored; never above the budget.")
    complete: bool = Field(description="Whether the search came to its end before the deadline.")
    trace: Trace | None = Field(default=None, description="If it was asked for.")


class SearchAnswer(BaseModel):
    """The answers, in the order of the queries."""

    results: list[Found]


class Document(_Strict):
    """A document as an object."""

    model_config = ConfigDict(extra="ignore")
    text: Text


class RerankRequest(BaseModel):
    """Texts to sort. With `documents` the answer has one shape, with `texts` another.

    Fields that other services know and this one has no use for (`truncate`,
    `max_tokens_per_doc`, `user`) are passed over: pairs are always cut to the model's length.
    """

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "query": "how is flu treated",
                    "documents": ["What are the treatments for Flu ?", "What is Asthma ?"],
                    "top_n": 1,
                    "return_documents": True,
                },
                {
                    "query": "how is flu treated",
                    "texts": ["What are the treatments for Flu ?", "What is Asthma ?"],
                },
            ]
        },
    )
    query: Text
    documents: list[Text | Document] | None = Field(
        default=None, description="What to sort: strings, or objects with `text`."
    )
    texts: list[Text] | None = Field(
        default=None, description="What to sort, under the other name."
    )
    top_n: Positive | None = Field(default=None, description="How many to return; by default all.")
    return_documents: bool = Field(
        default=False, description="With `documents`: whether to return them, too."
    )
    return_text: bool = Field(
        default=False, description="With `texts`: whether to return them, too."
    )
    raw_scores: bool = Field(
        default=False,
        description="Whether to return the model's own scores. By default each is squeezed "
        "between 0 and 1 by the logistic function, which changes no order.",
    )
    model: Any = Field(default=None, description="Passed over: a service has one model.")

    @model_validator(mode="after")
    def _one_of_two(self) -> RerankRequest:
        if (self.documents is None) == (self.texts is None):
            raise ValueError("expected documents or texts, and not both")
        if not (self.documents or self.texts):
            name = "texts" if self.documents is None else "documents"
            raise ValueError(f"{name}: expected one at least")
        return self

    @property
    def argument(self) -> str:
        """Name of the field that holds what is to be sorted."""
        return "texts" if self.documents is None else "documents"

    def strings(self) -> list[str]:
        """Return what is to be sorted as strings."""
        if self.documents is None:
            return list(self.texts or ())
        return [one if isinstance(one, str) else one.text for one in self.documents]


class Relevance(BaseModel):
    """A document and how relevant it is."""

    index: int = Field(description="Its place in the request.")
    relevance_score: float
    document: Document | None = None


class RerankAnswer(BaseModel):
    """The answer where the request said `documents`: best first."""

    id: str
    model: str
    results: list[Relevance]


class RankedText(BaseModel):
    """A text and its score: the answer where the request said `texts` is a list of them."""

    index: int = Field(description="Its place in the request.")
    score: float
    text: str | None = None


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str = Field(description="A word for programs.", examples=["invalid_request"])
    message: str = Field(
        description="A sentence for people.", examples=["k: expected at most 1000, got 5000"]
    )
    argument: str | None = Field(description="The part of the request at fault.", examples=["k"])


class ErrorAnswer(BaseModel):
    """The answer where something went wrong."""

    error: ErrorDetail
