"""Reading a user's own data: questions, conversations, recorded traces and documents, in the forms that others write.

    read_data("faq.csv")                                    rows, and those that cannot be used with the reason
    read_data("hf:openai/gsm8k@main", form="question")      a data set of the Hugging Face hub
    read_data("faq.csv", columns={"question": "Frage"})     other names of columns
    read_documents("manuals/")                              texts to ask questions about

The forms, with examples, are in docs/data.md.
"""

from __future__ import annotations

from .documents import Document, read_documents
from .read import describe, iter_data, read_data
from .rows import BadRow, Data, DataRow

__all__ = ["BadRow", "Data", "DataRow", "Document", "describe", "iter_data", "read_data", "read_documents"]
