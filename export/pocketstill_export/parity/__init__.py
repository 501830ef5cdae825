"""Holds every exported file to its checkpoint: same ids, same prompt, same stops, same numbers, same answers."""
