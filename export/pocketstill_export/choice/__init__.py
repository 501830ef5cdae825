"""The choice among variants under a budget, measured."""
