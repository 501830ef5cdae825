"""How knowledge is elicited from a teacher: the six routes of Xu et al. 2024 (arXiv 2402.13116, section 3)."""
