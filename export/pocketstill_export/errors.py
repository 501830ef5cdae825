"""What can go wrong in an export that a user can mend.

pocketstill.errors.UserError
└── ExportError    the checkpoint cannot be exported, or a converted file is not what it should be
"""

from __future__ import annotations

from pocketstill.errors import UserError


class ExportError(UserError):
    """The checkpoint cannot be exported as asked, or the conversion failed its exactness gate."""
