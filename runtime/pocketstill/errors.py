"""What can go wrong that a user can mend.

    Exception
    └── UserError          one line on stderr, exit status 2
        ├── BundleError    a bundle's folder is not what its pocketstill.json says
        └── EngineError    an inference engine is missing, or cannot run this model

Everything else that is raised is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend; the message says what, where and how, in one line."""


class BundleError(UserError):
    """The bundle is incomplete, changed since it was made, or unsafe to read."""


class EngineError(UserError):
    """The engine that a variant needs is missing or failed."""
