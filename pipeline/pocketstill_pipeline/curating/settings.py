"""What a recipe's [curate] says: which filters are on, what is kept apart from the suite, how much is selected."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pocketstill_pipeline.sections import Rate, Section


class Curate(Section):
    """What is kept of what was elicited; what is not goes to rejected.parquet with its reason."""

    refusals: bool = Field(True, description="leave out replies that refuse to answer")
    midway: bool = Field(True, description="leave out texts that stop in the middle, whatever the finish reason says")
    answer_filter: bool = Field(
        True, description="leave out wrong answers; false keeps them with the tag wrong (an ablation)"
    )
    rationale: bool = Field(True, description="leave out rationales that come to another answer than the one given")
    language: str = Field(
        "question",
        pattern=r"^(?:question|any|[a-z]{2,3})$",
        description='language of the answers: "question" (as each is asked), "any", or an ISO 639 code such as "en"',
    )
    min_words: int | None = Field(None, ge=1, description="fewest words of rationale and answer together")
    max_words: int | None = Field(None, ge=1, description="most words of rationale and answer together")
    repetition: int = Field(4, ge=0, description="times in a row that the same words make a loop (0 = off)")
    decontaminate: list[str] = Field(
        default_factory=list, description="files of questions that, like the suite, nothing may overlap with"
    )
    decontaminate_ngram: int | None = Field(
        None, ge=0, description="words in a row that are an overlap; left out, as in GPT-3 (8 to 13); 0 = off"
    )
    decontaminate_similarity: Rate = Field(
        0.95, description="Jaccard similarity of two questions that are one (1 = off)"
    )
    decontaminate_scope: Literal["written", "all"] = Field(
        "written", description="whose overlap with the suite counts: of what a model wrote, or of the recipe's own too"
    )
    near_duplicate: Rate = Field(0.95, description="Jaccard similarity at which two examples are one (1 = off)")
    max_per_question: int = Field(8, ge=1, description="most examples of one question that are kept")
    select: int | None = Field(None, ge=1, description="most examples to train on, chosen as DEITA does")
    diversity: Rate = Field(0.9, description="most that a selected example may be like another (cosine of TF-IDF)")
    weights: Literal["none", "quality", "evol"] = Field(
        "none", description="weight in training: none, the quality score, or quality times complexity"
    )
