"""What is said to a teacher, and the inverse of it: the embedded teacher reads requests by what built them."""
