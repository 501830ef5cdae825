"""Expansion: new instructions and questions made out of a few (survey, section 3.1.2)."""
