"""What of the elicited knowledge a student should learn from: filters, decontamination, leakage, splits, selection."""
