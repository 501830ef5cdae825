"""Feedback: what the teacher says of given replies (survey, section 3.1.5): D = {(x, y, phi(x, y; teacher))}."""
