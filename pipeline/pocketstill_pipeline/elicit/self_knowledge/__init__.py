"""Self-knowledge: what the student itself says, and what of it is worth learning (survey, section 3.1.6)."""
