"""Features: rows of numbers that frozen encoders make of texts and images."""
